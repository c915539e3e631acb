"""Scores against the number of training rows: they rise, and only enough rows tell of more."""

from __future__ import annotations

import numpy as np
import pytest
from examples import blobs, line, problem_of

from pipeline.config import FitSettings
from pipeline.heads.learning_curve import gain_of_twice, learning_curve

HELD = np.arange(300)


@pytest.mark.parametrize(("make", "measure", "sign"), [(blobs, "accuracy", 1), (line, "mae", -1)])
def test_more_rows_score_better_on_the_same_held_out_ones(make: object, measure: str, sign: int) -> None:
    X, y = blobs(700, 32, 3, apart=0.6) if make is blobs else line(700, 32)
    train, held = problem_of(X[300:], y[300:]), problem_of(X[:300], y[:300])
    points = learning_curve(train, held, HELD, y[:300], HELD, FitSettings.of({}))
    assert [point["rows"] for point in points] == [40, 80, 160, 280, 400]
    assert all(point["low"] < point[measure] < point["high"] for point in points)
    assert sign * (points[-1][measure] - points[0][measure]) > 0
    gain = gain_of_twice(points)
    assert gain is not None
    assert gain > 0


def test_few_rows_and_no_mistakes_tell_nothing_of_more() -> None:
    falling = [{"rows": rows, "accuracy": 1 - 4 / rows} for rows in (30, 60, 120, 240)]
    assert gain_of_twice(falling) is None
    falling.append({"rows": 480, "accuracy": 1 - 4 / 480})
    assert gain_of_twice(falling) == pytest.approx(2 / 480)
    assert gain_of_twice([*falling, {"rows": 960, "accuracy": 1.0}]) is None


def test_parts_of_one_class_alone_are_left_out() -> None:
    X, y = blobs(24, 8, 2)
    y = (np.arange(24) >= 20).astype(np.int64)
    train = problem_of(X, y)
    points = learning_curve(train, train, np.arange(24), y, np.arange(24), FitSettings.of({}))
    assert 1 <= len(points) < 5
