"""A named family of things: a member is one decorated function, a stranger is answered with the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from pipeline.errors import SettingsError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'resnet18'?)"`` where a known name is close to `name`, else the empty string.

    >>> nearest("ANTS", ["ants", "bees"])
    " (did you mean 'ants'?)"
    """
    known = list(known)
    close = [one for one in known if one.casefold() == name.casefold()]
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


class Registry(Generic[T]):
    """Names to members of one family.

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
        """Use as a decorator: add what follows under `name`."""

        def keep(member: T) -> T:
            self.add(name, member)
            return member

        return keep

    def __getitem__(self, name: str) -> T:
        if name not in self._members:
            listed = ", ".join(self._members) if len(self._members) <= 12 else f"{len(self._members)} of them"
            raise SettingsError(f"unknown {self.kind} {name!r}{nearest(name, self._members)}; known: {listed}")
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __len__(self) -> int:
        return len(self._members)
