"""Intervals of numbers: errors of rows that were not seen, wider where the head is further off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from examples import line, problem_of

from pipeline.config import FitSettings
from pipeline.errors import ModelError
from pipeline.heads import HEADS, load_head, save_head
from pipeline.heads.calibration import interval_half_width
from pipeline.heads.contract import WIDEST, spread_factors
from pipeline.heads.spread import fit_interval


def uneven(rows: int, seed: int = 0):
    """Numbers whose noise grows with the third feature: from a fifth to five times as large."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, 6)).astype(np.float32)
    noise = random.normal(size=rows) * np.exp(0.8 * features[:, 2])
    return features, 50 + 3 * features[:, 0] + noise


@pytest.fixture(scope="module")
def fitted():
    features, y = uneven(500)
    problem = problem_of(features, y)
    head = HEADS["ridge"]("numbers", FitSettings.of({})).fit(problem)
    fit_interval(head, problem)
    return head


def test_intervals_are_wider_where_the_head_is_further_off(fitted):
    features, y = uneven(4000, seed=1)
    half = fitted.half_widths(features)
    covered = np.abs(fitted.predict(features) - y) <= half
    noisy, quiet = features[:, 2] > 0.5, features[:, 2] < -0.5
    assert covered.mean() == pytest.approx(0.9, abs=0.03)
    assert covered[noisy].mean() == pytest.approx(0.9, abs=0.05)
    assert covered[quiet].mean() == pytest.approx(0.9, abs=0.06)
    assert half[noisy].mean() > 2.5 * half[quiet].mean()


def test_intervals_are_equally_wide_where_features_do_not_tell(fitted):
    features, y = line(300, 6)
    problem = problem_of(features, y)
    head = HEADS["ridge"]("numbers", FitSettings.of({})).fit(problem)
    fit_interval(head, problem)
    assert head.spread is None
    folds = problem.folds(5, 13)
    plain = interval_half_width(head.fold_scores(problem, folds) - y, 0.9)
    assert head.interval_half_width == pytest.approx(plain * (1 + 30 / 300**2))
    assert set(head.half_widths(features)) == {head.interval_half_width}


def test_what_tells_the_spread_is_kept_with_the_head(fitted, tmp_path: Path):
    features, _ = uneven(50, seed=2)
    again = load_head(tmp_path, save_head(fitted, tmp_path))
    np.testing.assert_array_equal(again.half_widths(features), fitted.half_widths(features))
    described = {**fitted.config(), "name": "ridge", "spread": {"task": "classes"}}
    with pytest.raises(ModelError, match="the description of its head is damaged"):
        load_head(tmp_path, described)


def test_no_interval_is_beyond_all_measure():
    assert spread_factors(np.array([-1e9, 0.0, 1e9])).tolist() == pytest.approx([1 / WIDEST, 1, WIDEST])


def test_a_head_that_makes_no_error_has_the_same_interval_everywhere():
    features = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    problem = problem_of(features, np.repeat([1.0, 2.0], 30) + features[:, 0].astype(np.float64) * 0)
    head = HEADS["knn"]("numbers", FitSettings.of({})).fit(problem)
    fit_interval(head, problem)
    assert np.isfinite(head.half_widths(features)).all()


@pytest.mark.slow
def test_intervals_cover_where_there_are_as_many_rows_as_features():
    covered = []
    for seed in range(30):
        features, y = line(100, 100, seed=seed)
        problem = problem_of(features, y)
        head = HEADS["ridge"]("numbers", FitSettings.of({})).fit(problem)
        fit_interval(head, problem)
        fresh, truth = (part[100:] for part in line(1100, 100, seed=seed))
        covered.append((np.abs(head.predict(fresh) - truth) <= head.half_widths(fresh)).mean())
    assert np.mean(covered) >= 0.88
