"""Keyword arguments of a function that are the fields of a settings class: its signature, and its docstring's options.

`pipeline.config.options` says the same to type checkers and editors, which run no code; it is generated from here.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from pipeline.config import PATH, Settings

Function = TypeVar("Function", bound=Callable[..., Any])


def takes(settings: type[Settings]) -> Callable[[Function], Function]:
    """Show the fields of `settings` where the decorated function has ``**options``: in its signature and docstring."""

    def decorate(function: Function) -> Function:
        vars(function)["__signature__"] = _expanded(inspect.signature(function), settings)
        if function.__doc__ is not None:  # python -OO has none
            function.__doc__ = f"{inspect.cleandoc(function.__doc__)}\n\n{_section(settings)}"
        return function

    return decorate


def takes_paths(field: FieldInfo) -> bool:
    """Return True where what `field` takes is the name of a file or a folder."""
    return "os.PathLike[str]" in type_text(field).split(" | ")


def type_text(field: FieldInfo) -> str:
    """Return the type of what `field` takes, as it is written in code.

    >>> type_text(FieldInfo(annotation=int | None))
    'int | None'
    >>> type_text(FieldInfo(annotation=tuple[str, ...]))
    'str | Sequence[str]'
    """
    return _text(field.annotation, field.metadata)


def _text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _text(parts[0], parts[1:])
    if origin is Literal:
        return f"Literal[{', '.join(_quoted(word) for word in parts)}]"
    if origin in (Union, types.UnionType):
        return " | ".join(_text(part) for part in parts)
    if origin is tuple:
        return "str | Sequence[str]"
    if annotation is type(None):
        return "None"
    name: str = annotation.__name__
    return f"{name} | os.PathLike[str]" if PATH in metadata else name


def _quoted(text: str) -> str:
    return f'"{text}"'


def _expanded(signature: Signature, settings: type[Settings]) -> Signature:
    named = [one for one in signature.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=field.default, annotation=type_text(field))
        for name, field in settings.model_fields.items()
    ]
    return signature.replace(parameters=[*named, *options])


def _section(settings: type[Settings]) -> str:
    lines = [
        f"    {name} ({type_text(field)}, default {field.default!r}): {field.description}"
        for name, field in settings.model_fields.items()
    ]
    return "\n".join(["Options:", *lines])
