"""What a function of the library shows in place of ``**options``, held to the settings classes that it takes."""

from __future__ import annotations

import doctest
import inspect
import os
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from generated import TAKEN, options_name

import pipeline
import pipeline.config.signatures
from pipeline.config import (
    CompareSettings,
    EvaluateSettings,
    ExtractSettings,
    FetchSettings,
    FinetuneSettings,
    FitSettings,
    LabelSettings,
    PlotSettings,
    RerunSettings,
    Settings,
    options,
)
from pipeline.errors import SettingsError

STAGES: dict[str, type[Settings]] = {
    "extract": ExtractSettings,
    "fit_head": FitSettings,
    "finetune": FinetuneSettings,
    "evaluate": EvaluateSettings,
    "fetch": FetchSettings,
    "export": RerunSettings,
    "label": LabelSettings,
    "compare": CompareSettings,
    "plot": PlotSettings,
    "predict": RerunSettings,
    "verify": RerunSettings,
    "load_model": RerunSettings,
}
each_stage = pytest.mark.parametrize(("name", "settings"), STAGES.items())


def own(function: Callable[..., Any]) -> list[str]:
    """The parameters that a function has beside those of its settings."""
    code = inspect.unwrap(function).__code__
    return list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def test_every_function_with_options_is_held() -> None:
    public = {name: getattr(pipeline, name) for name in pipeline.__all__}
    functions = [name for name, one in public.items() if "options" in getattr(one, "__annotations__", {})]
    assert sorted(functions) == sorted(STAGES)


@each_stage
def test_a_signature_has_the_fields_with_their_defaults(name: str, settings: type[Settings]) -> None:
    function = getattr(pipeline, name)
    parameters = inspect.signature(function).parameters
    assert list(parameters) == [*own(function), *settings.model_fields]
    for field_name, field in settings.model_fields.items():
        assert parameters[field_name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[field_name].default == field.default


@each_stage
def test_the_help_has_each_option_with_type_default_and_meaning(name: str, settings: type[Settings]) -> None:
    shown = inspect.getdoc(getattr(pipeline, name)) or ""
    told = typing.get_type_hints(getattr(options, options_name(settings)))
    for field_name, field in settings.model_fields.items():
        line = next(line for line in shown.splitlines() if line.startswith(f"    {field_name} ("))
        assert line.endswith(f", default {field.default!r}): {field.description}")
        written = line.removeprefix(f"    {field_name} (").partition(", default ")[0]
        assert eval(written, {"Literal": Literal, "Sequence": Sequence, "os": os}) == told[field_name]


@each_stage
def test_type_checkers_are_told_of_the_same_settings(name: str, settings: type[Settings]) -> None:
    function = getattr(pipeline, name)
    assert settings in TAKEN
    assert function.__annotations__["options"] == f"Unpack[{options_name(settings)}]"


def alternatives(told: Any) -> tuple[Any, ...]:
    return typing.get_args(told) if typing.get_origin(told) in (typing.Union, types.UnionType) else (told,)


def refused_for_its_type(settings: type[Settings], name: str, value: object) -> bool:
    """Where options do not go together, the message is another one."""
    try:
        settings.of({name: value})
    except SettingsError as error:
        return str(error).startswith(f"{name}={value!r}: give ")
    return False


VALUES: dict[Any, Any] = {
    str: "auto",
    bool: True,
    int: 2,
    float: 0.5,
    type(None): None,
    Sequence[str]: ["a"],
    os.PathLike[str]: Path("a"),
}


@pytest.mark.parametrize("settings", TAKEN)
def test_a_value_of_each_type_that_is_told_is_taken(settings: type[Settings]) -> None:
    for name, told in typing.get_type_hints(getattr(options, options_name(settings))).items():
        for kind in alternatives(told):
            for value in typing.get_args(kind) if typing.get_origin(kind) is Literal else [VALUES[kind]]:
                assert not refused_for_its_type(settings, name, value)


def test_a_path_is_told_where_a_path_is_meant() -> None:
    hints = typing.get_type_hints(options.FinetuneOptions)
    paths = {name for name, told in hints.items() if os.PathLike[str] in typing.get_args(told)}
    assert paths == {"weights", "image_root", "labels", "head"}


def test_without_docstrings_it_works_too() -> None:
    """As where python runs with -OO."""

    def train(store: str, **options: object) -> None: ...

    assert train.__doc__ is None
    taking = pipeline.config.signatures.takes(FitSettings)(train)
    assert taking.__doc__ is None
    assert list(inspect.signature(taking).parameters)[:2] == ["store", "head"]


def test_a_misspelled_option_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(pipeline.PipelineError, match=r"unknown option 'bach_size' \(did you mean 'batch_size'\?\)"):
        pipeline.extract(tmp_path, tmp_path / "a.h5", bach_size=3)  # type: ignore[call-arg]


def test_its_examples_run() -> None:
    assert doctest.testmod(pipeline.config.signatures).failed == 0
