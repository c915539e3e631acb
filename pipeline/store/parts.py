"""Parts: several machines each extract a range of rows of one list; a folder of their files is one store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from pipeline.config import Recipe
from pipeline.errors import OutputExistsError, SettingsError, StoreDamagedError, StoreError
from pipeline.store.header import GOOD, Header, Part, decode_texts, unescape
from pipeline.store.rows import RowFile


def part_range(total: int, *, rows: str | None = None, part: str | None = None) -> tuple[int, int]:
    """Return start and stop of ``rows="0:5000"`` or of ``part="2/8"`` (the second eighth) of `total` rows.

    Without either it is all of them. Raises `SettingsError` for both at once, and for rows that do not exist.

    >>> part_range(10, part="3/4")
    (5, 7)
    """
    if rows is not None and part is not None:
        raise SettingsError("give rows or part, not both: each says which rows to extract")
    if part is not None:
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", part)
        number, of = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= number <= of <= total:
            raise SettingsError(f"part={part!r} is not K/N with 1 <= K <= N <= {total} rows")
        return total * (number - 1) // of, total * number // of
    if rows is not None:
        found = re.fullmatch(r"([0-9]{0,18}):([0-9]{0,18})", rows)
        start, stop = (int(found[1] or 0), int(found[2] or total)) if found else (0, 0)
        if not start < stop <= total:
            raise SettingsError(f"rows={rows!r} is not START:STOP with START < STOP <= {total} rows")
        return start, stop
    return 0, total


#: The name of one of N parts that are made together, finished or not.
_NAME = re.compile(r"part-([0-9]{1,9})-of-([0-9]{1,9})\.h5(\.partial)?")
_WAY_OUT = "give --force to start anew, or another -o"


@dataclass(frozen=True)
class EarlierRows:
    """A file of an earlier run: its first and last id, and the contents of rows with features that are not wanted."""

    path: Path
    first: str
    last: str
    source: str
    good: int
    unwanted: dict[str, bytes]

    @classmethod
    def of(cls, path: Path, wanted: set[str]) -> Self:
        """Read them; `wanted` has the ids of the rows that are asked for. Raises `StoreError`."""
        with RowFile.open(path) as file:
            ids = decode_texts(file.raw("id"))
            good, digests = file.raw("status") == GOOD, file.raw("source/sha256")
            unwanted = {
                name: digests[row].tobytes() for row, name in enumerate(ids) if good[row] and name not in wanted
            }
            return cls(path, min(ids), max(ids), file.header.source, int(np.count_nonzero(good)), unwanted)


@dataclass(frozen=True)
class Asked:
    """The whole list that parts are wanted of, where its images are, and its recipe; `forced`: begun anew."""

    part: Part
    source: str
    recipe: Recipe
    forced: bool = False


@dataclass(frozen=True)
class PartFolder:
    """A folder that gets `of` parts of one list; rows of `earlier` files, of other lists or counts, may be kept."""

    path: Path
    of: int
    earlier: tuple[EarlierRows, ...] = ()

    @classmethod
    def plan(cls, path: Path, asked: Asked, ids: Sequence[str], *, parts: int, also: Path | None = None) -> Self:
        """Go on with the parts of the same list that are in `path`, or make as many as `parts` says.

        `also` is one more file whose rows may be kept. With `asked.forced`, earlier parts count only where
        such a run was stopped.
        Raises `RecipeMismatchError` where files there were made otherwise, `OutputExistsError` where some are none of
        ours, or of other images, most of which would go, and `StoreDamagedError`.
        """
        layouts, forced = _layouts(path), asked.forced
        of = next((of for of, found in layouts.items() if _goes_on(path, of, found, asked)), None)
        if of is None:
            of = next(count for count in _counts(parts, len(ids)) if count not in layouts)
        if forced:
            return cls(path, of)
        files = [file for other, found in layouts.items() if other != of for file in found]
        wanted = set(ids) if files or also else set()
        earlier = tuple(EarlierRows.of(file, wanted) for file in (*files, *([also] if also else [])))
        for one in earlier:
            asked.recipe.refuse_other(_header_of(one.path).recipe, where=one.path, way_out=_WAY_OUT)
        _refuse_to_drop(earlier, asked, path)
        return cls(path, of, earlier)

    def part(self, number: int) -> Path:
        """Return the file of a part, from 1 on."""
        return self.path / f"part-{number}-of-{self.of}.h5"

    def range(self, number: int, total: int) -> tuple[int, int]:
        """Return start and stop of a part's rows, of `total` in all."""
        return total * (number - 1) // self.of, total * number // self.of

    def near(self, ids: Sequence[str]) -> tuple[Path, ...]:
        """Return the earlier files that may have some of these ids, which are sorted."""
        return tuple(one.path for one in self.earlier if one.first <= ids[-1] and ids[0] <= one.last)

    def clear(self) -> None:
        """Remove earlier parts, and what stopped runs left beside those that are finished now."""
        finished = {self.part(number + 1).name for number in range(self.of)}
        for file in self.path.iterdir():
            if _NAME.fullmatch(file.name.removesuffix(".lock")) and file.name not in finished:
                file.unlink()


def _layouts(folder: Path) -> dict[int, list[Path]]:
    """Return the parts in `folder` by their number in all. Raises `OutputExistsError` for feature files beside them."""
    layouts: dict[int, list[Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if found := _NAME.fullmatch(file.name):
            layouts.setdefault(int(found[2]), []).append(file)
        elif file.suffix == ".h5":
            raise OutputExistsError(f"{file} is no part that this command makes; give another -o, or move it away")
    return layouts


def _goes_on(folder: Path, of: int, found: Sequence[Path], asked: Asked) -> bool:
    """Return True where all files of a layout are parts of the list that is asked for; raise for another recipe."""
    forced = asked.forced
    try:
        known = [_header_of(file) for file in found]
    except StoreDamagedError:
        if forced:
            return False
        raise
    if not forced:
        for file, one in zip(found, known, strict=True):
            asked.recipe.refuse_other(one.recipe, where=file, way_out=_WAY_OUT)
    unfinished = any(not (folder / f"part-{number}-of-{of}.h5").exists() for number in range(1, of + 1))
    return all(
        (one.part.total, one.part.ids_sha256) == (asked.part.total, asked.part.ids_sha256)
        and (not forced or (one.environment.forced and one.recipe == asked.recipe and unfinished))
        for one in known
    )


def _header_of(file: Path) -> Header:
    try:
        with RowFile.open(file) as opened:
            return opened.header
    except StoreDamagedError as error:
        raise StoreDamagedError(f"{error}; or {_WAY_OUT}") from None


def _refuse_to_drop(earlier: Sequence[EarlierRows], asked: Asked, path: Path) -> None:
    """Raise `OutputExistsError` where the files are of another source and most of their rows would go."""
    good, unwanted = sum(one.good for one in earlier), sum(len(one.unwanted) for one in earlier)
    if 2 * unwanted > good and all(one.source != asked.source for one in earlier):
        raise OutputExistsError(
            f"{path} has {good} images of {unescape(earlier[0].source)}, and {unwanted} of them are not among the "
            f"{asked.part.total} of {unescape(asked.source)}; {_WAY_OUT}"
        )


def _counts(parts: int, total: int) -> Iterator[int]:
    """Yield numbers of parts, those near `parts` first."""
    yield from range(parts, total + 1)
    yield from range(parts - 1, 0, -1)
    raise SettingsError("there are parts of every number in this folder; give another -o")


def part_paths(folder: Path) -> list[Path]:
    """List the feature files of a folder. Raises `StoreError` where there is none."""
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".h5" and not path.name.startswith("."))
    if not paths:
        raise StoreError(f"{folder} holds no feature file (*.h5); make one with pipeline extract")
    return paths


def check_parts(where: Path, parts: Sequence[tuple[Path, Header]]) -> list[tuple[Path, Header]]:
    """Sort the parts by their rows, and check that these are all the rows of one list, once each.

    Raises `StoreError` naming the first part that is foreign, missing, or there twice.
    """
    ordered = sorted(parts, key=lambda part: part[1].part.start)
    first_path, first = ordered[0]
    expected = 0
    for path, header in ordered:
        if difference := _difference(first, header):
            raise StoreError(f"{path} and {first_path} are not parts of one store: other {difference}")
        if header.part.start > expected:
            raise StoreError(_describe_gap(where, expected, header.part.start, first.part.total))
        if header.part.start < expected:
            raise StoreError(
                f"{path}: rows {header.part.start}:{min(expected, header.part.stop)} are in another part too;"
                " remove one of them"
            )
        expected = header.part.stop
    if expected < first.part.total:
        raise StoreError(_describe_gap(where, expected, first.part.total, first.part.total))
    return ordered


def _describe_gap(where: Path, start: int, stop: int, total: int) -> str:
    unfinished = sorted(path.name for path in where.glob("*.partial")) if where.is_dir() else []
    hint = f" ({', '.join(unfinished)} not finished)" if unfinished else ""
    return f"{where} lacks rows {start}:{stop} of {total}{hint}; extract them with --rows {start}:{stop}"


def _difference(mine: Header, theirs: Header) -> str | None:
    if found := mine.recipe.first_difference(theirs.recipe):
        name, my_value, their_value = found
        return f"recipe, {name}: {my_value!r} and {their_value!r}"
    if (mine.part.total, mine.part.ids_sha256) != (theirs.part.total, theirs.part.ids_sha256):
        return "list of all ids"
    if mine.targets != theirs.targets:
        return "targets or class names"
    if _row_shapes(mine) != _row_shapes(theirs):
        return "shape of the features"
    return None


def _row_shapes(header: Header) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (header.columns[name].dtype, header.columns[name].shape[1:]) for name in header.layers}
