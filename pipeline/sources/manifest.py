"""Manifests: one record an image, sorted by id, with the targets that are known of it."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError, PipelineError, SourceError
from pipeline.registry import nearest, unknown
from pipeline.text import plural
from pipeline.text import shown as shown

Task = Literal["classes", "numbers"]

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

WHOLE_NUMBER = re.compile(r"[+-]?\d+")


class ImageRef(Protocol):
    """A place where the bytes of one image are; nothing is read before it is asked for."""

    @property
    def where(self) -> str:
        """Place, for messages."""

    def stat(self) -> tuple[int, int]:
        """Return size in bytes and modification time in nanoseconds; raise `ImageError` (missing, unreadable)."""

    def read(self, limit: int) -> bytes:
        """Return the bytes; raise `ImageError` (missing, unreadable, too-large for more than `limit` bytes)."""


class Unchanging(Protocol):
    """A file that must not change between the first image and the last."""

    def require_unchanged(self) -> None:
        """Raise `SourceError` where it has changed."""


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image that is a file of its own."""

    path: str

    @property
    def where(self) -> str:
        """Path, for messages."""
        return shown(self.path)

    def stat(self) -> tuple[int, int]:
        """Return size in bytes and modification time in nanoseconds, links followed."""
        try:
            found = os.stat(self.path)  # noqa: PTH116 (a Path for every one of 100,000 files is slow)
        except (OSError, ValueError) as error:
            raise _bad_file(error) from error
        return found.st_size, found.st_mtime_ns

    def read(self, limit: int) -> bytes:
        """Return the bytes; raise `ImageError` for a file that is not regular, or larger than `limit`."""
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
    """A quantity to predict: codes of named classes, or numbers.

    `values` is int64 (N,), -1 where unknown, with `names`; or float64 (N,), NaN where unknown, without. `notices` say
    what may have been meant in another way, each one line.
    """

    name: str
    values: np.ndarray[Any, Any]
    names: tuple[str, ...] | None = None
    notices: tuple[str, ...] = ()

    def take(self, rows: Any) -> Target:
        """Return the same target for some of the rows."""
        return replace(self, values=self.values[rows])

    @property
    def task(self) -> Task:
        """Task: classes or numbers."""
        return "numbers" if self.names is None else "classes"

    @property
    def known(self) -> NDArray[np.bool_]:
        """Mask (N,) of the rows that have a value."""
        return np.asarray(~np.isnan(self.values) if self.task == "numbers" else self.values >= 0)

    def recoded(self, classes: tuple[str, ...] | None) -> Target:
        """Return the same target under the codes of a model's `classes`, matched by name; numbers as they are.

        Raises `SourceError` where rows are of a class that is none of them.

        >>> class_target("kind", ["ant", "bee", None]).recoded(("bee", "ant")).values.tolist()
        [1, 0, -1]
        """
        if classes is None:
            return self
        codes = {name: code for code, name in enumerate(classes)}
        foreign = [
            f"{name!r}{nearest(name, codes)} with {plural(count, 'row')}"
            for name, count in sorted(self._counts().items())
            if count and name not in codes
        ]
        if foreign:
            more = f" and {len(foreign) - 3} classes more" if len(foreign) > 3 else ""
            raise SourceError(
                f"{self.name}: the model knows no class {', '.join(foreign[:3])}{more}; it knows "
                f"{', '.join(codes)[:200]}; correct the names, or leave those rows out"
            )
        code_of = np.array([codes.get(name, UNKNOWN_CLASS) for name in self.names or ()] + [UNKNOWN_CLASS], np.int64)
        return replace(self, values=code_of[self.values], names=classes)

    def describe(self) -> str:
        """Return kind and extent of the target in one line.

        >>> class_target("kind", ["ant", "bee", "ant"]).describe()
        'kind: 2 classes (ant 2, bee 1)'
        >>> Target("length", np.array([4.5, np.nan, 2])).describe()
        'length: numbers from 2 to 4.5, 2 of 3 known'
        """
        count = np.count_nonzero(self.known)
        known = f", {count} of {len(self.values)} known"
        if self.task == "numbers":
            between = f" from {np.nanmin(self.values):.7g} to {np.nanmax(self.values):.7g}" if count else ""
            return f"{shown(self.name)}: numbers{between}{known}"
        counts = {shown(name): count for name, count in self._counts().items()}
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        listed = listed if len(counts) <= MOST_LISTED else counted(counts, words="classes")
        classes = f"{len(counts)} class{'' if len(counts) == 1 else 'es'}"
        return f"{shown(self.name)}: {classes} ({listed}){known if count < len(self.values) else ''}"

    def to_json(self) -> dict[str, Any]:
        """Return what `describe` says, for a program."""
        known = int(np.count_nonzero(self.known))
        if self.task == "numbers":
            return {"kind": "number", "known": known}
        return {"kind": "class", "known": known, "classes": self._counts()}

    def _counts(self) -> dict[str, int]:
        names = self.names or ()
        found = np.bincount(self.values[self.known], minlength=len(names))
        return dict(zip(names, found.tolist(), strict=True))


#: So many classes are listed with their counts; of more, those with the largest.
MOST_LISTED = 8


@dataclass(frozen=True)
class Manifest:
    """The images of one source, sorted by id, and their targets in the same order.

    `source` is what was given, byte for byte: it leads to the images again. `notices` tell the user, a line each, of
    what was left out or guessed. `containers` are the files that hold several of the images.
    """

    source: str
    records: list[Record]
    targets: dict[str, Target]
    notices: tuple[str, ...] = ()
    containers: tuple[Unchanging, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as columns, which takes a tenth of the time that an object for each row takes."""
        columns = [[getattr(record, name) for record in self.records] for name in ("index", "id", "image", "split")]
        if all(type(image) is FileImage for image in columns[2]):
            columns[2] = [image.path for image in columns[2]]
        return _of_columns, (columns, self.source, self.targets, self.notices, self.containers)

    def rows(self, start: int, stop: int) -> Manifest:
        """Return the rows from `start` up to `stop`, numbered from 0 again; codes of classes stay the same."""
        if not 0 <= start < stop <= len(self):
            raise SourceError(f"rows {start}:{stop} are not in {shown(self.source)}, which has 0:{len(self)}")
        records = self.records[start:stop]
        part = [Record(index, record.id, record.image, record.split) for index, record in enumerate(records)]
        targets = {name: target.take(slice(start, stop)) for name, target in self.targets.items()}
        return replace(self, records=part, targets=targets)

    def all_notices(self) -> list[str]:
        """Return the notices for the user: of the source, and of each target."""
        return [*self.notices, *(notice for target in self.targets.values() for notice in target.notices)]

    def require_unchanged(self) -> None:
        """Raise `SourceError` where a file that holds many of the images is not the one that was listed any more."""
        for container in self.containers:
            container.require_unchanged()


def _of_columns(columns: Sequence[Sequence[Any]], source: str, *rest: Any) -> Manifest:
    indices, ids, images, splits = columns
    images = [FileImage(image) if isinstance(image, str) else image for image in images]
    return Manifest(source, list(map(Record, indices, ids, images, splits)), *rest)


class Row(NamedTuple):
    """One image as a reader of sources finds it, in any order."""

    id: str
    image: ImageRef
    split: str = ""


def make_manifest(
    source: str, rows: Sequence[Row], targets: Iterable[Target] = (), notices: Sequence[str] = ()
) -> Manifest:
    """Sort rows and targets by id; raise `SourceError` where there is no row or two have the same id."""
    if not rows:
        raise SourceError(f"{shown(source)} lists no image")
    order = sorted(range(len(rows)), key=[row.id for row in rows].__getitem__)
    records = [Record(index, *rows[old]) for index, old in enumerate(order)]
    for before, after in pairwise(records):
        if before.id == after.id:
            raise SourceError(
                f"{shown(source)}: the id {after.id!r} is there twice ({before.image.where}, {after.image.where});"
                " name a column of unique ids with --id-column, or remove one of the two"
            )
    return Manifest(source, records, {t.name: t.take(np.array(order)) for t in targets}, tuple(notices))


def class_target(name: str, labels: Sequence[str | None]) -> Target:
    """Encode labels by the sorted names of their classes; None is unknown.

    >>> class_target("label", ["cat", None, "ant"]).values.tolist()
    [1, -1, 0]
    """
    names = sorted({label for label in labels if label is not None}, key=_class_order)
    codes: dict[str | None, int] = {label: code for code, label in enumerate(names)}
    codes[None] = UNKNOWN_CLASS
    values = np.array([codes[label] for label in labels], np.int64)
    return Target(name, values, tuple(names), tuple(_easily_confused(name, names)))


def choose_target(
    targets: Mapping[str, Target],
    *,
    where: str,
    name: str | None = None,
    task: Task | None = None,
    error: type[PipelineError] = SourceError,
) -> Target:
    """Return the target called `name`, or the only one; with `task`, one of that task.

    Raises `error` where there is none such, or several to choose from.
    """
    if name is None:
        if len(targets) == 1:
            return next(iter(targets.values()))
        if targets:
            raise error(f"{where} has several targets; say which with --target: {', '.join(targets)}")
        raise error(f"{where} has no labels; name the column to learn with --target")
    if name not in targets:
        more = "; the model predicts nothing else" if task else ""
        raise error(unknown("target", name, targets, where=where) + more)
    if task not in (None, targets[name].task):
        raise error(f"{where}: target {name!r} is of another kind (classes or numbers) than the model's")
    return targets[name]


def _easily_confused(target: str, names: Sequence[str]) -> Iterator[str]:
    """Yield a notice on classes whose names differ in case, spaces or the way of writing accents alone."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[" ".join(unicodedata.normalize("NFC", name).casefold().split())].append(name)
    groups = [group for group in alike.values() if len(group) > 1]
    if groups:
        more = f", and {len(groups) - 1} more like that" if len(groups) > 1 else ""
        alike_names = ", ".join(map(repr, groups[0]))
        yield f"{shown(target)}: {alike_names} are {len(groups[0])} classes{more}; spell them alike if they are one"


def _class_order(label: str) -> tuple[int, int, str]:
    """Sort whole numbers first and by value, so that class 10 follows class 9."""
    if WHOLE_NUMBER.fullmatch(label) and len(label) < 20:
        return 0, int(label), label
    return 1, 0, label


def split_name(text: str) -> str | None:
    """Return train, val or test for any usual spelling of it, the empty string for none, None for another word.

    >>> split_name("Validation"), split_name(""), split_name("dev")
    ('val', '', None)
    """
    return "" if not text else SPLITS.get(text.lower())


def as_id(path: str) -> str:
    r"""Return the id of a relative POSIX path: the path itself, with `\xNN` for bytes that are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def counted(counts: Mapping[str, int], most: int = 4, *, words: str = "kinds") -> str:
    """Return counts as ``".txt 10, .db 2"``, the largest first.

    >>> counted({"b": 1, "a": 3})
    'a 3, b 1'
    """
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{name} {count}" for name, count in largest[:most])
    return listed + (f" and {len(counts) - most} {words} more" if len(counts) > most else "")
