"""Columns of text cells as targets: their kind, their unknown cells, their likely mistakes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from pipeline.errors import SourceError
from pipeline.sources.manifest import WHOLE_NUMBER, Target, class_target, counted, shown
from pipeline.text import plural

Kind = Literal["class", "number"]

#: What people write for a value that they do not have, in lower case.
MISSING = frozenset(("", "na", "n/a", "#n/a", "<na>", "nan", "null", "none", "nil", "-", "--", "?"))

#: More different whole numbers than this are rarely the codes of classes.
MANY_CODES = 20
#: A column of text in which this share of the cells look like numbers may have been meant as numbers.
NEARLY_ALL = 0.8
#: Up to so many different cells are more likely codes of classes, unless most of them have a fraction.
FEW = 10

_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_WITH_UNIT = re.compile(r"([+-]?\d+(?:[.,]\d+)?)\s*[^\W\d_%°]{0,3}[%°²³]?")


def column_target(name: str, cells: Sequence[str], kind: Kind | None, place: Callable[[int], str]) -> Target:
    """Parse a column as a target; empty cells and those of `MISSING` are unknown.

    Text and whole numbers are classes, other numbers are numbers, unless `kind` says which. What may be meant in
    another way is in the target's notices. `place(row)` names a row in messages.
    """
    known = {row: cell for row, cell in enumerate(cells) if cell.lower() not in MISSING}
    if not known:
        raise SourceError(f"column {name!r} is empty: there is nothing to learn from it")
    notices: list[str] = []
    if kind is None:
        kind = _guess_kind(name, list(known.values()))
        notices = list(_doubts(shown(name), known, kind, place))
    if kind == "number":
        return Target(name, _numbers(name, cells, known, place), notices=tuple(notices))
    words = Counter(cell for cell in cells if cell and cell.lower() in MISSING)
    if words:
        notices.append(
            f"{shown(name)}: words for a missing value count as unknown ({counted(words)}); rename a class of that name"
        )
    target = class_target(name, [known.get(row) for row in range(len(cells))])
    return replace(target, notices=(*target.notices, *notices))


def _guess_kind(name: str, known: Sequence[str]) -> Kind:
    different = set(known)
    if all(WHOLE_NUMBER.fullmatch(cell) for cell in different):
        if len(different) > MANY_CODES and len(different) > len(known) / 2:
            raise SourceError(
                f"column {name!r} holds {len(different)} different whole numbers in {len(known)} rows:"
                f" say --target {name}:number to predict the number, or {name}:class"
            )
        return "class"
    return "number" if all(_value(cell) is not None for cell in different) else "class"


def _value(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # Python reads 1_2 as 12
    except ValueError:
        return None


def _doubts(name: str, known: dict[int, str], kind: Kind, place: Callable[[int], str]) -> Iterator[str]:
    """Yield a notice where the kind that was guessed may not be the one that was meant."""
    different = set(known.values())
    if kind == "number":
        if len(known) > 2 * len(different) and all(cell.rstrip("0").endswith(".") for cell in different):
            whole = f"{name}: {plural(len(different), 'different whole number')}, taken as numbers"
            yield f"{whole}; to predict classes give --target {name}:class"
    elif all(WHOLE_NUMBER.fullmatch(cell) for cell in different):
        if len(different) > MANY_CODES:
            whole = f"{name}: {len(different)} different whole numbers, taken as classes"
            yield f"{whole}; to predict the number give --target {name}:number"
    else:
        yield from _almost_numbers(name, known, place)


def _almost_numbers(name: str, known: dict[int, str], place: Callable[[int], str]) -> Iterator[str]:
    """Yield a notice where nearly all cells of a column of text look like measurements, not like codes of classes."""
    ways = {cell: _way_of_writing(cell) for cell in set(known.values())}
    alike = sum(ways[cell] != "" for cell in known.values())
    measured = sum(way != "" and not WHOLE_NUMBER.fullmatch(cell) for cell, way in ways.items())
    codes = len(ways) <= FEW and (measured < len(ways) / 2 or "number" not in ways.values())
    if codes or alike < NEARLY_ALL * len(known):
        return
    row = next(row for row, cell in known.items() if ways[cell] != "number")
    yield (
        f"{name}: taken as {plural(len(ways), 'class')} of text, though {alike} of {plural(len(known), 'cell')} look"
        f" like numbers; {place(row)}, column {name!r}: {known[row]!r} is not a number{_advice(known[row])};"
        f" fix such cells and give --target {name}:number to predict the number"
    )


def _way_of_writing(cell: str) -> str:
    """Return number, comma (a decimal one) or unit for a cell that writes a number so, else the empty string."""
    if _value(cell) is not None:
        return "number"
    if _DECIMAL_COMMA.fullmatch(cell):
        return "comma"
    return "unit" if _WITH_UNIT.fullmatch(cell) else ""


def _advice(cell: str) -> str:
    way = _way_of_writing(cell)
    if way == "comma":
        return f" (write {cell.replace(',', '.')})"
    found = _WITH_UNIT.fullmatch(cell)
    return f" (write {found[1].replace(',', '.')}, without the unit)" if way == "unit" and found else ""


def _numbers(
    name: str, cells: Sequence[str], known: dict[int, str], place: Callable[[int], str]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = np.full(len(cells), np.nan)
    for row, cell in known.items():
        value = _value(cell)
        where = f"{place(row)}, column {name!r}"
        if value is None:
            raise SourceError(f"{where}: {cell!r} is not a number{_advice(cell)}")
        if not math.isfinite(value):
            raise SourceError(f"{where}: {cell!r} is not finite, and no base or head can learn it")
        values[row] = value
    return values
