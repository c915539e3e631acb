"""Plural forms."""

from __future__ import annotations

import pytest

from pipeline.wording import plural


@pytest.mark.parametrize(
    ("count", "noun", "expected"),
    [
        (1, "row", "1 row"),
        (0, "row", "0 rows"),
        (2, "class", "2 classes"),
        (1, "class", "1 class"),
        (1000, "box", "1,000 boxes"),
        (2, "epoch", "2 epochs"),
    ],
)
def test_a_count_and_its_noun_agree(count: int, noun: str, expected: str) -> None:
    assert plural(count, noun) == expected
