"""Temperatures against a search by brute force, and intervals against their promise."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.heads.calibration import ABSENT, fit_inverse_temperature, interval_half_width, least_in_set, softmax


def test_softmax_of_large_scores_is_finite_and_sums_to_one():
    said = softmax(np.array([[1000.0, 0.0], [-1000.0, -1000.0]]), 2.0)
    np.testing.assert_allclose(said, [[1, 0], [0.5, 0.5]])


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_scores_that_are_calibrated_but_for_a_factor_get_it_back(scale):
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 3)) * 2
    y = np.array([random.choice(3, p=row) for row in softmax(logits)])
    found = fit_inverse_temperature(logits * scale, y, np.ones(4000))
    assert found * scale == pytest.approx(1, abs=0.08)


def test_the_temperature_is_where_the_log_loss_is_least():
    random = np.random.default_rng(1)
    scores, y = random.normal(size=(3000, 4)), random.integers(0, 4, 3000)
    scores[np.arange(3000), y] += 1
    found = fit_inverse_temperature(scores, y, np.ones(3000))

    def loss(inverse):
        return -np.log(softmax(scores, inverse)[np.arange(3000), y]).mean()

    best = min(np.linspace(0.2, 5, 500), key=loss)
    assert found == pytest.approx(best, abs=0.02)


def test_a_class_without_examples_has_no_probability():
    scores = np.array([[2.0, 0.0, ABSENT], [0.0, 2.0, ABSENT]])
    found = fit_inverse_temperature(scores, np.array([0, 1]), np.ones(2))
    assert 0 < found < 1e4
    assert softmax(scores, found)[:, 2].tolist() == [0, 0]


def test_an_interval_covers_what_it_promises_and_few_rows_have_none():
    random = np.random.default_rng(2)
    half = interval_half_width(random.normal(size=5000), 0.9)
    assert half == pytest.approx(1.645, abs=0.06)
    assert interval_half_width(np.arange(9.0), 0.9) == 8
    assert interval_half_width(np.arange(8.0), 0.9) is None


def test_a_prediction_set_covers_what_it_promises_and_few_rows_have_none():
    random = np.random.default_rng(3)
    chances = random.dirichlet(np.ones(5) / 2, size=6000)
    y = np.array([random.choice(5, p=row) for row in chances])
    for coverage in (0.8, 0.9, 0.99):
        least = least_in_set(chances[:3000], y[:3000], coverage)
        covered = chances[np.arange(3000, 6000), y[3000:]] >= least
        assert covered.mean() == pytest.approx(coverage, abs=0.02)
    exact = np.linspace(0.1, 0.9, 9)[:, None] * [1, 0]
    assert least_in_set(exact, np.zeros(9, np.int64), 0.9) == exact[:, 0].min()
    assert least_in_set(exact[:8], np.zeros(8, np.int64), 0.9) is None
