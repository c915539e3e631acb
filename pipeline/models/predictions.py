"""Answers as CSV, as in predictions.csv: with text that no spreadsheet takes for a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import atomic_write


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` as CSV; the header is the keys of the first one.

    Text that a spreadsheet would take for a formula, because of its first character, gets an apostrophe in front, as
    does text that has apostrophes in front of such a character: `plain_text` gives back what it was.
    """
    table = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(table, fieldnames=list(rows[0]))
        writer.writerow({name: _cell(name) for name in rows[0]})
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    with atomic_write(path) as file:
        file.write(table.getvalue().encode("utf-8", "surrogateescape"))


def plain_text(cell: str) -> str:
    """Return the text that `write_rows` wrote a cell for.

    >>> plain_text("'=1.jpg"), plain_text("'tis.jpg")
    ('=1.jpg', "'tis.jpg")
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _cell(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and _FORMULA.match(value) else value


#: The beginning of text that a spreadsheet computes, also after the sign that keeps it from doing so.
_FORMULA = re.compile("'*[=+\\-@\t\r\n]")
