"""Registries: families of named members, where an unknown name is answered with the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from pipeline.errors import PipelineError, SettingsError

T = TypeVar("T")

#: Known names that a message lists.
MOST_LISTED = 12


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'resnet18'?)"`` where a known name is close to `name`, else the empty string.

    >>> nearest("ANTS", ["ants", "bees"])
    " (did you mean 'ants'?)"
    """
    known = list(known)
    close = [one for one in known if one.casefold() == name.casefold()]
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def unknown(kind: str, name: str, known: Iterable[str], *, where: str | Path = "") -> str:
    """Return the message for a `name` that is none of the `known` ones, of all or of those that `where` has.

    >>> unknown("split", "vall", ["train", "val"])
    "unknown split 'vall' (did you mean 'val'?); known: train, val"
    >>> unknown("split", "vall", [], where="a.h5")
    "a.h5 has no split 'vall'; known: none"
    """
    known = list(known)
    listed = ", ".join(known[:MOST_LISTED]) or "none"
    more = f" and {len(known) - MOST_LISTED} more" if len(known) > MOST_LISTED else ""
    said = f"{where} has no {kind}" if where else f"unknown {kind}"
    return f"{said} {name!r}{nearest(str(name), known)}; known: {listed}{more}"


def refuse_unknown(
    kind: str,
    name: str,
    known: Iterable[str],
    *,
    where: str | Path = "",
    error: type[PipelineError] = SettingsError,
) -> None:
    """Raise `error` with the message of `unknown` where `name` is none of the `known` ones."""
    known = list(known)
    if name not in known:
        raise error(unknown(kind, name, known, where=where))


class Registry(Generic[T]):
    """A mapping of names to the members of one family.

    >>> colours: Registry[int] = Registry("colour")
    >>> colours.add("red", 1)
    >>> colours["red"]
    1
    >>> colours["rad"]
    Traceback (most recent call last):
    pipeline.errors.SettingsError: unknown colour 'rad' (did you mean 'red'?); known: red
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._members: dict[str, T] = {}

    def add(self, name: str, member: T) -> None:
        """Add `member`; a second one of the same name is a mistake in the program."""
        if name in self._members:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._members[name] = member

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds what it decorates under `name`."""

        def keep(member: T) -> T:
            self.add(name, member)
            return member

        return keep

    def __getitem__(self, name: str) -> T:
        refuse_unknown(self.kind, name, self._members)
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __len__(self) -> int:
        return len(self._members)
