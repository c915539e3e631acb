"""Parts: several machines each extract a range of rows of one list; a folder of their files is one store."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import SettingsError, StoreError
from pipeline.store.header import Header


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


def part_paths(folder: Path) -> list[Path]:
    """List the feature files of a folder. Raises `StoreError` where there is none."""
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".h5" and not path.name.startswith("."))
    if not paths:
        raise StoreError(f"{folder} holds no feature file (*.h5)")
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
