"""What may be printed, and counts with their nouns."""

from __future__ import annotations

import pytest

from pipeline.text import lines_shown, plural, shown

HOSTILE = [
    "\x1b]52;c;YQ==\x07",
    "\x1b[2J",
    "a\rb",
    "\x9b1m",
    "\x7f",
    "a\u202egpj.exe",
    "\u2066x",
    "\udc80",
    "\u2028",
    "\x00",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_moves_the_cursor_is_escaped(text: str) -> None:
    for printed in (shown(text), lines_shown(text)):
        assert "\\" in printed
        assert all(sign.isprintable() for sign in printed)
        printed.encode()


def test_a_name_is_on_one_line_and_our_lines_stay() -> None:
    assert shown("a\n\tb") == r"a\n\tb"
    assert lines_shown("a\n\tb") == "a\n\tb"


@pytest.mark.parametrize("text", ["Жук", "蚂蚁", "👩‍🔬", "a\u3000b\xa0c", "back\\slash", "ä/ö.jpg"])
def test_names_of_any_language_are_as_they_are(text: str) -> None:
    assert shown(text) == lines_shown(text) == text


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
