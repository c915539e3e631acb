"""Tests of targets: what is known of them, under which codes, and which one is meant."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import SettingsError, SourceError
from pipeline.sources.manifest import Target, Task, choose_target, class_target

CODES = Target("class", np.array([0, 1, 1, -1]), ("ant", "bee"))
LENGTHS = Target("length", np.array([1.0, 3.0, 5.0, np.nan]))
BOTH = {"class": CODES, "length": LENGTHS}


def test_a_target_is_classes_or_numbers_and_knows_some_of_its_rows() -> None:
    assert (CODES.task, LENGTHS.task) == ("classes", "numbers")
    for target in BOTH.values():
        assert target.known.tolist() == [True, True, True, False]


def test_codes_are_those_of_a_model_and_numbers_stay() -> None:
    recoded = CODES.recoded(("bee", "wasp", "ant"))
    assert recoded.names == ("bee", "wasp", "ant")
    assert recoded.values.tolist() == [2, 0, 0, -1]
    assert LENGTHS.recoded(None) is LENGTHS


def test_a_class_without_rows_needs_no_code() -> None:
    assert CODES.take([0, 3]).recoded(("ant",)).values.tolist() == [0, -1]
    with pytest.raises(SourceError, match="class: the model knows no class 'bee' with 2 rows; it knows ant, wasp"):
        CODES.recoded(("ant", "wasp"))


def test_of_many_strangers_three_are_named() -> None:
    target = class_target("kind", ["a", "b", "c", "d", "e", "Ant"])
    with pytest.raises(SourceError, match=r"did you mean 'ant'.* with 1 row, 'a' .*, 'b' .* and 3 classes more"):
        target.recoded(("ant",))


def test_the_only_target_is_taken_and_among_several_one_must_be_named() -> None:
    assert choose_target({"class": CODES}, where="photos") is CODES
    assert choose_target(BOTH, where="photos", name="length") is LENGTHS
    with pytest.raises(SourceError, match="photos has several targets; say which with --target: class, length"):
        choose_target(BOTH, where="photos")
    with pytest.raises(SourceError, match="photos has no labels; name the column"):
        choose_target({}, where="photos")
    with pytest.raises(SettingsError, match=r"no target 'clas' \(did you mean 'class'\?\); known: class, length"):
        choose_target(BOTH, where="photos", name="clas", error=SettingsError)


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("age", "numbers", "photos has no target 'age'; known: class, length; the model predicts nothing else"),
        ("class", "numbers", "target 'class' is of another kind"),
        ("length", "classes", "target 'length' is of another kind"),
    ],
)
def test_a_model_goes_on_with_its_own_target_alone(name: str, task: Task, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        choose_target(BOTH, where="photos", name=name, task=task)
