"""The noise floor: reached by predictions that know all there is to know, and by no others."""

from __future__ import annotations

import numpy as np

from pipeline.heads.noise import CONTENT, noise_floors

RANDOM = np.random.default_rng(0)
CONTENTS = np.repeat(np.arange(200), 3)
TRUTH = np.repeat(RANDOM.normal(size=200) * 5, 3)
Y = TRUTH + RANDOM.normal(size=600)


def test_who_knows_the_mean_of_each_content_has_reached_the_floor():
    (floor,) = noise_floors(Y, TRUTH, CONTENTS, {})
    assert floor.reached
    assert floor.within == CONTENT
    assert abs(floor.spread - 1) < 0.1
    assert abs(floor.rmse - 1) < 0.1
    assert floor.rows == 600
    assert "better features will not help" in floor.notice("length")


def test_who_knows_less_has_not():
    (floor,) = noise_floors(Y, TRUTH + RANDOM.normal(size=600), CONTENTS, {})
    assert not floor.reached


def test_who_knows_the_noise_itself_has_passed_it():
    (floor,) = noise_floors(Y, (Y + TRUTH) / 2, CONTENTS, {})
    assert not floor.reached
    assert floor.rmse < floor.spread


def test_contents_that_are_all_different_and_classes_that_say_nothing_have_no_floor():
    different = np.arange(600)
    assert noise_floors(Y, TRUTH, different, {}) == []
    assert noise_floors(Y, TRUTH, different, {"class": RANDOM.integers(0, 5, 600)}) == []
    assert [floor.within for floor in noise_floors(Y, TRUTH, different, {"kind": CONTENTS})] == ["kind"]


def test_a_floor_is_json():
    (floor,) = noise_floors(Y, TRUTH, CONTENTS, {})
    assert floor.to_json()["reached"] is True
