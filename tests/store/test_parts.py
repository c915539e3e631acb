"""Ranges of rows: parts cover every row once."""

from __future__ import annotations

import pytest

from pipeline.errors import SettingsError
from pipeline.store import part_range


def test_parts_cover_every_row_once() -> None:
    for total in 1, 7, 100:
        for of in range(1, total + 1):
            ranges = [part_range(total, part=f"{number}/{of}") for number in range(1, of + 1)]
            assert [row for start, stop in ranges for row in range(start, stop)] == list(range(total))
    assert part_range(10) == (0, 10)
    assert part_range(10, rows="2:5") == (2, 5)
    assert part_range(10, rows=":5") == (0, 5)
    assert part_range(10, rows="5:") == (5, 10)


@pytest.mark.parametrize(
    "wrong",
    [{"part": text} for text in ("0/8", "9/8", "1/11", "a/b", "1", "1/0", "-1/8")]
    + [{"rows": text} for text in ("5:5", "6:5", "0:11", "a", "5", "::", "-1:3")]
    + [{"rows": "0:1", "part": "1/2"}],
)
def test_ranges_that_are_none_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(SettingsError):
        part_range(10, **wrong)
