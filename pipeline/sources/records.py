"""What a source is read into: one record an image, sorted by id, with the targets that are known of it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from pipeline.errors import ImageError, SourceError
from pipeline.terminal import shown as shown

UNKNOWN_CLASS = -1

#: How a split may be called, and what it is called here.
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

_WHOLE_NUMBER = re.compile(r"[+-]?\d+")

Kind = Literal["class", "number"]


class ImageRef(Protocol):
    """Where the bytes of one image are. Nothing is read before it is asked for."""

    @property
    def where(self) -> str:
        """The place, for messages."""

    def stat(self) -> tuple[int, int]:
        """Size in bytes and modification time in nanoseconds; raises `ImageError` (missing, unreadable)."""

    def read(self, limit: int) -> bytes:
        """The bytes; raises `ImageError` (missing, unreadable, too-large for more than `limit` bytes)."""


class Unchanging(Protocol):
    """What has to be at the end what it was at the start."""

    def require_unchanged(self) -> None:
        """Raise `SourceError` where it is not."""


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image that is a file of its own."""

    path: str

    @property
    def where(self) -> str:
        return shown(self.path)

    def stat(self) -> tuple[int, int]:
        try:
            found = os.stat(self.path)  # noqa: PTH116 (a Path for every one of 100,000 files is slow)
        except (OSError, ValueError) as error:
            raise _bad_file(error) from error
        return found.st_size, found.st_mtime_ns

    def read(self, limit: int) -> bytes:
        try:
            # O_NONBLOCK: opening a pipe that is named like an image must not wait for a writer.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise ImageError("unreadable", "not a regular file")
                if found.st_size > limit:
                    raise ImageError("too-large", f"{found.st_size} bytes, the limit is {limit}")
                # A file that grows meanwhile is read whole; one that hides its size, as in /proc, is not.
                return file.read(min(limit, found.st_size + 2**16))
        except (OSError, ValueError) as error:
            raise _bad_file(error) from error


def _bad_file(error: Exception) -> ImageError:
    absent = isinstance(error, FileNotFoundError | NotADirectoryError | ValueError)
    cause = getattr(error, "strerror", None) or str(error)
    return ImageError("missing" if absent else "unreadable", cause)


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a source: its row, its unique id, its bytes, and train, val, test or nothing."""

    index: int
    id: str
    image: ImageRef
    split: str


@dataclass(frozen=True)
class Target:
    """What is to be predicted: codes of named classes, or numbers.

    `values` is int64 (N,), -1 where unknown, with `names`; or float64 (N,), NaN where unknown, without.
    """

    name: str
    values: np.ndarray[Any, Any]
    names: tuple[str, ...] | None = None

    def take(self, rows: Any) -> Target:
        """The same target for some of the rows."""
        return replace(self, values=self.values[rows])


@dataclass(frozen=True)
class Manifest:
    """The images of one source, sorted by id, and their targets in the same order.

    `notes` are remarks for the user, each one line: what was left out, what was guessed. `containers` are the files
    that hold several of the images.
    """

    source: str
    records: list[Record]
    targets: dict[str, Target]
    notes: tuple[str, ...] = ()
    containers: tuple[Unchanging, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def rows(self, start: int, stop: int) -> Manifest:
        """The part from row `start` up to `stop`, numbered from 0 again. Codes of classes stay the same."""
        if not 0 <= start < stop <= len(self):
            raise SourceError(f"rows {start}:{stop} are not in {self.source}, which has 0:{len(self)}")
        part = [replace(record, index=index) for index, record in enumerate(self.records[start:stop])]
        targets = {name: target.take(slice(start, stop)) for name, target in self.targets.items()}
        return replace(self, records=part, targets=targets)

    def require_unchanged(self) -> None:
        """Raise `SourceError` where a file that holds many of the images is not the one that was listed any more."""
        for container in self.containers:
            container.require_unchanged()


class Row(NamedTuple):
    """One image as a reader of sources finds it, in any order."""

    id: str
    image: ImageRef
    split: str = ""


def make_manifest(
    source: str, rows: Sequence[Row], targets: Iterable[Target] = (), notes: Sequence[str] = ()
) -> Manifest:
    """Sort rows and targets by id; raise `SourceError` where there is no row or two have the same id."""
    if not rows:
        raise SourceError(f"{source} lists no image")
    order = sorted(range(len(rows)), key=[row.id for row in rows].__getitem__)
    records = [Record(index, *rows[old]) for index, old in enumerate(order)]
    for before, after in pairwise(records):
        if before.id == after.id:
            raise SourceError(
                f"{source}: the id {after.id!r} is there twice ({before.image.where}, {after.image.where});"
                " name a column of unique ids with --id-column, or remove one of the two"
            )
    return Manifest(source, records, {t.name: t.take(np.array(order)) for t in targets}, tuple(notes))


def class_target(name: str, labels: Sequence[str | None]) -> Target:
    """Codes by the sorted names of the classes; None is unknown.

    >>> class_target("label", ["cat", None, "ant"]).values.tolist()
    [1, -1, 0]
    """
    names = sorted({label for label in labels if label is not None}, key=_class_order)
    codes: dict[str | None, int] = {label: code for code, label in enumerate(names)}
    codes[None] = UNKNOWN_CLASS
    return Target(name, np.array([codes[label] for label in labels], np.int64), tuple(names))


def _class_order(label: str) -> tuple[int, int, str]:
    """Whole numbers first and by value, so that class 10 follows class 9."""
    if _WHOLE_NUMBER.fullmatch(label) and len(label) < 20:
        return 0, int(label), label
    return 1, 0, label


def column_target(name: str, cells: Sequence[str], kind: Kind | None, place: Callable[[int], str]) -> Target:
    """A column of text cells as a target; empty cells are unknown.

    Text and whole numbers are classes, other numbers are numbers, unless `kind` says which.
    `place(row)` names a row in messages.
    """
    known = [cell for cell in cells if cell]
    if not known:
        raise SourceError(f"column {name!r} is empty: there is nothing to learn from it")
    if kind is None:
        kind = _guess_kind(name, known)
    if kind == "class":
        return class_target(name, [cell or None for cell in cells])
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        if cell:
            values[row] = _number(cell, f"{place(row)}, column {name!r}")
    return Target(name, values)


def _guess_kind(name: str, known: Sequence[str]) -> Kind:
    different = set(known)
    if all(_WHOLE_NUMBER.fullmatch(cell) for cell in different):
        if len(different) > 20 and len(different) > len(known) / 2:
            raise SourceError(
                f"column {name!r} holds {len(different)} different whole numbers in {len(known)} rows:"
                f" say --target {name}:number to predict the number, or {name}:class"
            )
        return "class"
    try:
        for cell in different:
            float(cell)
    except ValueError:
        return "class"
    return "number"


def _number(cell: str, place: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise SourceError(f"{place}: {cell!r} is not a number") from None
    if value in (float("inf"), float("-inf")):
        raise SourceError(f"{place}: {cell!r} is not finite, and no base or head can learn it")
    return value


def split_name(text: str) -> str | None:
    """train, val or test for any of the usual spellings, the empty string for none, None for a stranger."""
    return "" if not text else SPLITS.get(text.lower())


def as_id(path: str) -> str:
    r"""The id of a relative POSIX path: the path itself, with `\xNN` for bytes that are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def counted(counts: Mapping[str, int], most: int = 4) -> str:
    """``".txt 10, .db 2"``: the largest counts first.

    >>> counted({"b": 1, "a": 3})
    'a 3, b 1'
    """
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{name} {count}" for name, count in largest[:most])
    return listed + (f" and {len(counts) - most} kinds more" if len(counts) > most else "")
