"""What a column of cells is taken for, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.sources.columns import MISSING, Kind, column_target
from pipeline.sources.manifest import Target


def target_of(cells: Sequence[str], kind: Kind | None = None) -> Target:
    return column_target("length", cells, kind, lambda row: f"t.csv, line {row + 2}")


LENGTHS = [f"{30 + number / 7:.1f}" for number in range(400)]


@pytest.mark.parametrize("word", sorted({word for word in MISSING if word} | {"NA", "N/A", "NaN", "None", "NULL"}))
def test_words_for_nothing_are_unknown_among_numbers_and_classes(word: str) -> None:
    numbers = target_of([*LENGTHS, word])
    assert numbers.names is None
    assert numbers.known.sum() == 400
    assert np.isnan(numbers.values[-1])
    assert numbers.describe() == "length: numbers from 30 to 87, 400 of 401 known"
    assert target_of(["1", "2", word], "number").known.tolist() == [True, True, False]
    classes = target_of(["cat", "dog", word, "cat", ""])
    assert classes.names == ("cat", "dog")
    assert classes.values.tolist() == [0, 1, -1, 0, -1]
    assert classes.describe() == "length: 2 classes (cat 2, dog 1), 3 of 5 known"
    assert f"words for a missing value count as unknown ({word} 1)" in classes.notices[0]


def test_a_column_of_nothing_is_empty() -> None:
    with pytest.raises(SourceError, match="column 'length' is empty"):
        target_of(["NA", "", "-"])


@pytest.mark.parametrize(
    ("cell", "advice"),
    [
        ("42.9 cm", "'42.9 cm' is not a number (write 42.9, without the unit); fix"),
        ("42,9", "'42,9' is not a number (write 42.9); fix"),
        ("42,9cm", "'42,9cm' is not a number (write 42.9, without the unit); fix"),
        ("about forty", "'about forty' is not a number; fix"),
        ("1_000", "'1_000' is not a number; fix"),
    ],
)
def test_one_cell_of_text_among_numbers_is_named(cell: str, advice: str) -> None:
    cells = [*LENGTHS[:3], cell, *LENGTHS[3:]]
    target = target_of(cells)
    assert target.names is not None
    (note,) = target.notices
    assert advice in note
    assert "t.csv, line 5, column 'length'" in note
    assert "--target length:number" in note
    with pytest.raises(SourceError, match=r"t\.csv, line 5, column 'length': .* is not a number") as caught:
        target_of(cells, "number")
    assert advice.removesuffix("; fix") in str(caught.value)
    assert target_of(cells, "class").notices == ()


def test_decimal_commas_and_units_throughout_are_told() -> None:
    (note,) = target_of([cell.replace(".", ",") for cell in LENGTHS]).notices
    assert "400 of 400 cells look like numbers; t.csv, line 2, column 'length': '30,0' is not a number" in note
    (note,) = target_of([f"{cell} cm" for cell in LENGTHS]).notices
    assert "(write 30.0, without the unit)" in note


def test_whole_numbers_that_are_taken_as_classes_are_told() -> None:
    (note,) = target_of([str(number % 124) for number in range(400)]).notices
    assert note.startswith("length: 124 different whole numbers, taken as classes; ")
    assert note.endswith("--target length:number")


def test_classes_that_became_numbers_on_their_way_through_a_table_are_told() -> None:
    target = target_of(["0.0", "1.0", ""] * 9)
    assert target.names is None
    assert target.notices[0].endswith(
        "2 different whole numbers, taken as numbers; to predict classes give --target length:class"
    )


@pytest.mark.parametrize(
    "cells",
    [
        LENGTHS,
        ["0", "1"] * 50,
        ["1a", "1b", "2a", "2b"] * 20,
        ["1", "2", "3", "other"] * 20,
        ["cat", "dog"],
        ["2x", "4x", "8x"] * 5,
        ["1_1", "1_2", "2_1"] * 9,
        [f"n0{number}" for number in range(400)],
    ],
)
def test_columns_that_are_what_they_look_like_need_no_note(cells: list[str]) -> None:
    assert target_of(cells).notices == ()


def test_names_with_underscores_are_no_numbers() -> None:
    assert target_of(["1_1", "1_2", "1_1"]).names == ("1_1", "1_2")


def test_classes_that_are_spelt_alike_are_told() -> None:
    (note,) = target_of(["Ant", "ant", "bee", "bee"]).notices
    assert note == "length: 'Ant', 'ant' are 2 classes; spell them alike if they are one"
    (note,) = target_of(["\u00e9", "e\u0301", "a b", "A  b"]).notices
    assert "and 1 more like that" in note


def test_many_classes_are_described_by_the_largest() -> None:
    target = target_of([f"c{number}" for number in range(30) for _ in range(number + 1)])
    assert target.describe() == "length: 30 classes (c29 30, c28 29, c27 28, c26 27 and 26 classes more)"
    assert target.to_json() == {
        "kind": "class",
        "known": 465,
        "classes": {f"c{number}": number + 1 for number in range(30)},
    }
    assert target_of(LENGTHS).to_json() == {"kind": "number", "known": 400}


def test_notes_are_one_line_whatever_the_names() -> None:
    target = column_target("two\nlines", [*LENGTHS, "x\ny", "NA"], None, lambda row: f"line {row}")
    notes = [*target.notices, target.describe(), *column_target("a\nb", ["X\n", "x\n", "-"], None, str).notices]
    assert len(notes) == 5
    assert not any("\n" in note for note in notes)
