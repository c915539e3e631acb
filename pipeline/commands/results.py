"""The base class of results: `--json` prints the fields, a person reads the summary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, ClassVar


class Result(ABC):
    """A dataclass that a command returns; a field's metadata may say to how many `digits` JSON rounds it.

    >>> from dataclasses import dataclass, field
    >>> @dataclass
    ... class Measured(Result):
    ...     store: Path
    ...     seconds: float = field(metadata={"digits": 1})
    ...     def summary(self) -> str:
    ...         return f"{self.store}: {self.seconds} s"
    >>> Measured(Path("a.h5"), 1.26).to_json()
    {'store': 'a.h5', 'seconds': 1.3}
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def to_json(self) -> dict[str, Any]:
        """Return the keys that `--json` promises: the fields as JSON values."""
        return {one.name: _plain(getattr(self, one.name), one.metadata.get("digits")) for one in fields(self)}

    @abstractmethod
    def summary(self) -> str:
        """Summarise the result for a person."""


def _plain(value: Any, digits: int | None) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _plain(one, digits) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, digits) for one in value]
    return round(value, digits) if isinstance(value, float) and digits is not None else value
