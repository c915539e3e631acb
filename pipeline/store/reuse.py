"""Rows of earlier files, finished or not, that may be kept, and rows that have the same content."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.errors import (
    BAD_IMAGE,
    ImageError,
    OutputExistsError,
    RecipeMismatchError,
    StoreDamagedError,
    StoreError,
)
from pipeline.sources import Manifest
from pipeline.store.header import FIRST_BAD, GOOD, PENDING, STATUS_NAMES, Environment, Header, unescape
from pipeline.store.plan import Request
from pipeline.store.rows import RowFile, row_checksums, runs

#: These reasons lie outside the image: another day the same file may be fine.
RETRIED = tuple(FIRST_BAD + BAD_IMAGE.index(reason) for reason in ("missing", "unreadable"))

TOO_LARGE = FIRST_BAD + BAD_IMAGE.index("too-large")
#: Ends the name of a file until every row has a final status.
PARTIAL = ".partial"
UNKNOWN = -1  # size and time of a file that is not there

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The image file that a row was made from: bytes, time of its last change, and sha256 of its content."""

    size: int
    mtime_ns: int
    sha256: bytes | None


@dataclass
class Seen:
    """The image files as they are now, one a row; `status` is the reason where one cannot be seen, else 0."""

    size: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    status: NDArray[np.uint8]

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Ask the operating system for every image of `manifest`."""
        rows = len(manifest.records)
        seen = cls(np.full(rows, UNKNOWN), np.full(rows, UNKNOWN), np.zeros(rows, np.uint8))
        for row, record in enumerate(manifest.records):
            try:
                seen.size[row], seen.mtime_ns[row] = record.image.stat()
            except ImageError as error:
                seen.status[row] = FIRST_BAD + BAD_IMAGE.index(error.reason)
        return seen


@dataclass
class Origin:
    """The rows of one file and what they were made from. Status 0 is not final."""

    file: RowFile
    size: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    sha256: NDArray[np.uint8]
    status: NDArray[np.uint8]
    #: Bad rows with these statuses are looked at again.
    retried: tuple[int, ...] = RETRIED

    @classmethod
    def finished(cls, file: RowFile) -> Self:
        """Read the columns of a published file, checked. Raises `StoreDamagedError`."""
        names = ("source/size", "source/mtime_ns", "source/sha256", "status")
        size, mtime_ns, sha256, status = (file.column(name) for name in names)
        return cls(file, size, mtime_ns, sha256, status)

    @classmethod
    def unfinished(cls, file: RowFile) -> Self:
        """Read the columns of a file that is being written: rows that fail their commit checksum count as pending."""
        names = ("source/size", "source/mtime_ns", "source/sha256", "status")
        size, mtime_ns, sha256, status = (file.raw(name) for name in names)
        return cls(file, size, mtime_ns, sha256, status)

    @classmethod
    def blank(cls, file: RowFile) -> Self:
        """Make the origin of a file without a row yet."""
        rows = file.header.rows
        unknown = np.full(rows, UNKNOWN)
        return cls(file, unknown, unknown.copy(), np.zeros((rows, 32), np.uint8), np.zeros(rows, np.uint8))

    @property
    def final(self) -> NDArray[np.bool_]:
        """Mask of the rows that are settled, with features or without."""
        return np.asarray((self.status >= GOOD) & (self.status < len(STATUS_NAMES)))

    def features(self, rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Read each layer's features of `rows`, unchecked."""
        return [self._gather(layer, rows) for layer in self.file.header.layers]

    def intact(self, rows: NDArray[np.int64], features: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
        """Return a mask of those of `rows` that, with these features, are final and match their commit checksum."""
        found = row_checksums(
            features,
            size=self.size[rows],
            mtime_ns=self.mtime_ns[rows],
            sha256=self.sha256[rows],
            status=self.status[rows],
        )
        return np.asarray(self.final[rows] & (found == self._gather("commit", rows)))

    def _gather(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        gathered = self.file.header.columns[name].empty(len(rows))
        for start, stop in runs(rows):
            gathered[start:stop] = self.file.raw(name, int(rows[start]), int(rows[stop - 1]) + 1)
        return gathered

    def up_to_date(self, rows: NDArray[np.int64], seen: Seen, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return a mask of those of `rows` that still describe the image files that `seen` has at `places`."""
        status = self.status[rows]
        there = seen.status[places] == 0
        same = (self.size[rows] == seen.size[places]) & (self.mtime_ns[rows] == seen.mtime_ns[places])
        unchanged = there & same & ~np.isin(status, self.retried)
        still_away = ~there & (status == seen.status[places])
        return np.asarray(self.final[rows] & (unchanged | still_away))

    def matches(self, ids: NDArray[np.bytes_], seen: Seen) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows that are up to date, and the places of the same ids among `ids`."""
        rows_of = {key: row for row, key in enumerate(self.file.column("id").tolist())}
        wanted = [(rows_of[key], place) for place, key in enumerate(ids.tolist()) if key in rows_of]
        rows, places = np.array(wanted, np.int64).reshape(-1, 2).T
        fresh = self.up_to_date(rows, seen, places)
        return rows[fresh], places[fresh]

    def strangers(self, ids: NDArray[np.bytes_], seen: Seen) -> int:
        """Count the rows with features that are neither among `ids` nor of the size and time of a file of `seen`."""
        known, stamps = set(ids.tolist()), set(zip(seen.size.tolist(), seen.mtime_ns.tolist(), strict=True))
        mine = zip(self.file.column("id").tolist(), self.size.tolist(), self.mtime_ns.tolist(), strict=True)
        strange = [key not in known and (size, mtime) not in stamps for key, size, mtime in mine]
        return int(np.count_nonzero((self.status == GOOD) & strange))

    def has_limit_of(self, environment: Environment) -> bool:
        """Return True where images were too large here at as many pixels as in `environment`."""
        return self.file.header.environment.max_pixels == environment.max_pixels

    def heed(self, environment: Environment) -> None:
        """Have images looked at again that were too large by another limit."""
        if not self.has_limit_of(environment):
            self.retried = (*RETRIED, TOO_LARGE)

    def all_up_to_date(self, seen: Seen) -> bool:
        """Return True where every row is final and describes the image file that is there now."""
        rows = np.arange(self.file.header.rows)
        return bool(self.up_to_date(rows, seen, rows).all())

    def may_go_on(self, seen: Seen) -> bool:
        """Return True where no row has to be taken back: each is pending, or up to date and as it was committed."""
        rows = np.flatnonzero(self.status != PENDING)
        return bool(self.up_to_date(rows, seen, rows).all()) and all(
            self.intact(rows[piece], self.features(rows[piece])).all()
            for piece in pieces(len(rows), self.file.header.feature_bytes)
        )

    def contents(self) -> Iterator[tuple[bytes, int]]:
        """Yield sha256 and number of every row that has features.

        A bad image is looked at again: one moment without memory, or an older version, may have found it bad.
        """
        for row in np.flatnonzero((self.status == GOOD) & self.sha256.any(axis=1)).tolist():
            yield self.sha256[row].tobytes(), row


def pieces(rows: int, row_bytes: int, *, piece_bytes: int = 1 << 24) -> Iterator[slice]:
    """Cut 0 to `rows` into slices of about `piece_bytes` each."""
    step = max(1, piece_bytes // max(1, row_bytes))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def partial_path(path: Path) -> Path:
    """Return the name that a file has until every row has a final status."""
    return path.with_name(path.name + PARTIAL)


def origins_of(paths: Sequence[Path], recipe: Recipe, opened: contextlib.ExitStack) -> Iterator[Origin]:
    """Open files that others make or have made, unfinished ones too, for their rows; they are closed with `opened`.

    One that is gone, damaged or of another recipe has none.
    """
    for path in paths:
        try:
            file = opened.enter_context(RowFile.open(path))
            _check_recipe(file, recipe)
            yield Origin.unfinished(file) if path.suffix == PARTIAL else Origin.finished(file)
        except StoreError as error:
            log.info("no row is taken over: %s", error)


def earlier_headers(path: Path) -> Iterator[Header]:
    """Yield the headers of the unfinished and of the finished file of `path`, as far as there are such and readable.

    Of a folder, they are those of all its parts.
    """
    parts = sorted(path.glob(f"*.h5{PARTIAL}")) + sorted(path.glob("*.h5")) if path.is_dir() else []
    for there in parts or (partial_path(path), path):
        try:
            with RowFile.open(there) as file:
                yield file.header
        except (StoreError, OSError):  # whoever goes on with the file says what is wrong with it
            continue


@dataclass(frozen=True)
class Earlier:
    """The files of earlier runs that have the recipe that is asked for."""

    partial: Origin | None = None
    published: Origin | None = None

    @classmethod
    def find(cls, path: Path, recipe: Recipe, opened: contextlib.ExitStack, *, writable: bool = True) -> Self:
        """Open both files of `path`; they are closed with `opened`.

        An unfinished file was begun later than a finished one: with it, the finished one may differ. Raises
        `RecipeMismatchError` or `StoreDamagedError`, with the ways out.
        """
        partial = _find_partial(path, recipe, opened, writable=writable)
        published = None
        if path.exists():
            try:
                file = opened.enter_context(_open(path))
                _check_recipe(file, recipe)
                published = Origin.finished(file)
            except (StoreDamagedError, RecipeMismatchError):
                if partial is None:
                    raise
        return cls(partial, published)

    @classmethod
    def find_forced(cls, path: Path, recipe: Recipe, opened: contextlib.ExitStack, *, writable: bool = True) -> Self:
        """Open the unfinished file that a run which started anew has left; nothing else counts for the next such."""
        try:
            partial = _find_partial(path, recipe, opened, writable=writable)
        except (StoreDamagedError, RecipeMismatchError):
            return cls()
        return cls(partial) if partial and partial.file.header.environment.forced else cls()


@dataclass(frozen=True)
class Start:
    """The beginning of a run: in `own`, or in a new file where that is None, knowing the rows of `origins`.

    `settled`: `own` is finished and all that is asked.
    """

    own: Origin | None
    origins: list[Origin]
    settled: bool = False

    @classmethod
    def of(cls, request: Request, earlier: Earlier, seen: Seen, *, rehash: bool) -> Self:
        """Decide what to keep of `earlier` files."""
        published, partial = earlier.published, earlier.partial
        environment = request.header.environment
        for origin in (published, partial):
            if origin:
                origin.heed(environment)
        if not rehash:
            if published and request.is_met_by(published.file) and published.all_up_to_date(seen):
                return cls(published, [partial] if partial else [], settled=True)
            goes_on = partial and request.is_met_by(partial.file) and partial.has_limit_of(environment)
            if partial and goes_on and partial.may_go_on(seen):
                return cls(partial, [published] if published else [])
        return cls(None, [origin for origin in (partial, published) if origin])

    def refuse_to_drop(self, request: Request, seen: Seen) -> None:
        """Raise `OutputExistsError` where all earlier files are of other images and most of their rows would go."""
        if self.own or not self.origins:
            return
        ids, newest = request.fixed["id"], self.origins[0]
        if all(_would_be_emptied(origin, request, seen) for origin in self.origins):
            raise OutputExistsError(
                f"{newest.file.path} has {np.count_nonzero(newest.status == GOOD)} images of"
                f" {unescape(newest.file.header.source)}, and {newest.strangers(ids, seen)} of them are not among the"
                f" {len(ids)} of {unescape(request.header.source)}; give --force to start anew, or another -o"
            )

    def waiting(self, ids: NDArray[np.bytes_], seen: Seen) -> NDArray[np.int64]:
        """Return the places among `ids` of the rows that no file has."""
        if self.own:
            return np.flatnonzero(~self.own.final)
        pending = np.ones(len(ids), bool)
        for origin in self.origins:
            pending[origin.matches(ids, seen)[1]] = False
        return np.flatnonzero(pending)


def _would_be_emptied(origin: Origin, request: Request, seen: Seen) -> bool:
    """Return True where a file is of other images, and more than half of its rows with features would go."""
    mine, theirs = request.header, origin.file.header
    same_images = mine.source == theirs.source and mine.part.is_whole and theirs.part.is_whole
    rows = int(np.count_nonzero(origin.status == GOOD))
    return not same_images and 2 * origin.strangers(request.fixed["id"], seen) > rows


def _find_partial(path: Path, recipe: Recipe, opened: contextlib.ExitStack, *, writable: bool) -> Origin | None:
    unfinished = partial_path(path)
    if unfinished.is_symlink():
        raise StoreError(f"{unfinished} is a link, which no run of ours makes; remove it")
    if not unfinished.exists():
        return None
    file = opened.enter_context(_open(unfinished, writable=writable))
    _check_recipe(file, recipe)
    return Origin.unfinished(file)


def _open(path: Path, *, writable: bool = False) -> RowFile:
    try:
        return RowFile.open(path, writable=writable)
    except StoreDamagedError as error:
        raise StoreDamagedError(f"{error}; or give --force to start anew, or another -o") from None


def _check_recipe(file: RowFile, recipe: Recipe) -> None:
    recipe.refuse_other(file.header.recipe, where=file.path, way_out="give --force to start anew, or another -o")
