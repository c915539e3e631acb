"""Numbers by way of ranges: what heaps gain by it, and what is said where rows are too few for it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from examples import blobs, line, problem_of

from pipeline.config import FitSettings
from pipeline.errors import ModelError
from pipeline.heads import HEADS, load_head
from pipeline.heads.binned import BINS, BinnedHead, bins
from pipeline.heads.rows import StreamedRows
from pipeline.heads.selection import candidates, train_head


def heaps(rows: int, *, seed: int = 0) -> tuple[Any, Any]:
    """Two kinds that look different, one of them short and alike, the other long and various."""
    features, kind = blobs(rows, 60, 2, seed=seed)
    random = np.random.default_rng(seed)
    return features, np.where(kind == 0, random.normal(40, 8, rows), random.normal(100, 30, rows))


def fitted(features: Any, y: Any, **options: Any) -> BinnedHead:
    return BinnedHead("numbers", FitSettings.of(options)).fit(problem_of(features, y))


def test_ranges_hold_as_many_numbers_each_and_equal_numbers_stay_together():
    assert bins(np.arange(10.0), 2).tolist() == [0] * 5 + [1] * 5
    assert np.bincount(bins(np.random.default_rng(0).normal(size=90), 3)).tolist() == [30, 30, 30]
    assert bins(np.array([1.0, 1.0, 1.0, 1.0, 2.0, 3.0]), 3).tolist() == [0, 0, 0, 0, 1, 1]
    assert bins(np.array([7.0, 7.0, 7.0, 8.0]), 8).tolist() == [0, 0, 0, 1]
    assert bins(np.array([7.0, 8.0, 8.0, 8.0]), 2).tolist() == [0, 1, 1, 1]
    assert bins(np.array([7.0, 7.0]), 2).tolist() == [0, 0]


def test_heaps_are_told_better_than_by_a_line_and_regressor_notices():
    features, y = heaps(900)
    train, rest = slice(300), slice(300, None)
    problem = problem_of(features[train], y[train])
    error = {
        name: np.square(HEADS[name]("numbers").fit(problem).predict(features[rest]) - y[rest]).mean()
        for name in ("ridge", "binned")
    }
    assert error["binned"] < 0.93 * error["ridge"]
    assert train_head("regressor", problem, FitSettings.of({"epochs": 10})).head.name == "binned"


def test_a_line_stays_with_the_heads_that_draw_one():
    features, y = line(300, 20, noise=2)
    trained = train_head("regressor", problem_of(features, y), FitSettings.of({"epochs": 10}))
    assert trained.head.name != "binned"
    assert [entry["chosen"] for entry in trained.ranking] == [True, False, False, False]


def test_out_of_fold_values_are_not_told_by_their_own_numbers():
    """Features say nothing here; whoever beats the mean has seen the numbers."""
    random = np.random.default_rng(0)
    features, y = random.normal(size=(60, 200)).astype(np.float32), random.normal(size=60)
    head = fitted(features, y)
    assert np.square(head.search.scores - y).mean() > 0.95 * y.var()


def test_values_are_means_by_weight():
    features, y = heaps(200)
    weights = np.where(y > 60, 3.0, 1.0)
    head = BinnedHead("numbers").fit(problem_of(features, y, sample_weight=weights))
    codes = bins(y, len(head.values))
    wanted = [np.average(y[codes == code], weights=weights[codes == code]) for code in range(len(head.values))]
    np.testing.assert_allclose(head.values, wanted)
    said = head.predict(features)
    assert head.values.min() < said.min()
    assert said.max() < head.values.max()


def test_intervals_cover_what_they_promise():
    features, y = heaps(1500, seed=4)
    head = fitted(features[:500], y[:500])
    covered = (np.abs(head.predict(features[500:]) - y[500:]) <= head.interval_half_width).mean()
    assert covered == pytest.approx(0.9, abs=0.04)


@pytest.mark.parametrize("y", [np.full(30, 7.0), np.repeat([7.0, 8.0], [1, 29]), np.repeat([7.0, 8.0], [29, 1])])
def test_numbers_that_are_nearly_all_equal(y):
    features, _ = blobs(30, 8, 2)
    said = fitted(features, y).predict(features)
    assert y.min() - 1e-9 <= said.min()
    assert said.max() <= y.max() + 1e-9


@pytest.mark.parametrize("rows", [2, 3, 7, 15, 40])
def test_few_rows(rows):
    features, y = heaps(rows)
    head = fitted(features, y)
    assert np.isfinite(head.predict(features)).all()
    assert bool(head.search.notices) == (rows < 9)  # says that nothing could be searched, or that no interval is told
    assert (head.interval_half_width is None) == (rows < 9)


@pytest.mark.parametrize("rows", [5, 10, 15, 19, 60])
def test_regressor_and_blend_of_few_rows(rows):
    features, y = line(rows, 10)
    settings = FitSettings.of({"epochs": 4, "hidden": 16, "cv": 20 if rows == 60 else 5})
    problem = problem_of(features, y)
    assert np.isfinite(train_head("regressor", problem, settings).head.predict(features)).all()
    assert HEADS["blend"]("numbers", settings).fit(problem).search.scores is not None


def test_mostly_zero_numbers():
    features, y = heaps(100)
    y[:92] = 0
    trained = train_head("regressor", problem_of(features, y), FitSettings.of({"epochs": 4}))
    assert all(np.isfinite(entry["loss"]) for entry in trained.ranking)


@pytest.mark.parametrize("contents", [3, 4, 8, 10])
def test_identical_contents_are_in_no_two_folds_and_every_row_is_told(contents):
    features, y = line(contents, 10)
    groups = np.repeat(np.arange(contents), 12)
    problem = problem_of(features[groups], y[groups], groups=groups)
    head = BinnedHead("numbers").fit(problem)
    assert np.isfinite(head.search.scores).all()
    trained = train_head("regressor", problem, FitSettings.of({"epochs": 4}))
    assert all(np.isfinite(entry["loss"]) for entry in trained.ranking)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_trained_is_what_was_best(seed):
    """Cut in three and in five, many equal numbers give three ranges both times, but not the same."""
    y = np.repeat([0.0, 10.0, 11.0, 12.0], [250, 130, 520, 100])
    random = np.random.default_rng(seed)
    features = (random.normal(size=(1000, 8)) + y[:, None] * random.normal(size=8) / 4).astype(np.float32)
    head = fitted(features, y)
    best = min(head.search.table, key=lambda row: row["loss"])
    assert len(head.values) == best["bins"]
    error = np.sqrt(np.square(head.predict(features) - y).mean())
    assert error == pytest.approx(best["rmse"], rel=0.1)
    assert len(fitted(features, (y > 5) * 3.0).search.table) == 1  # two numbers can be cut in one way


def test_views_are_searched_as_they_are_served():
    features, y = heaps(300)
    random = np.random.default_rng(0)
    views = np.stack([features + random.normal(size=features.shape).astype(np.float32) for _ in range(4)], axis=1)
    head = BinnedHead("numbers").fit(problem_of(views[:200], y[:200], score_views="mean"))
    served = np.sqrt(np.square(head.predict(views[200:]) - y[200:]).mean())
    searched = np.sqrt(np.square(head.search.scores - y[:200]).mean())
    assert served == pytest.approx(searched, rel=0.15)


def test_it_streams():
    features, y = heaps(200)
    held = problem_of(features, y)
    streamed = replace(held, rows=StreamedRows(lambda which: features[which], np.arange(200), 60))
    one, other = BinnedHead("numbers").fit(held), BinnedHead("numbers").fit(streamed)
    assert one.search.chosen == other.search.chosen
    np.testing.assert_allclose(one.predict(features), other.predict(features), rtol=1e-3)
    assert "binned" not in candidates("regressor", streamed)[0]


def test_it_comes_back_from_its_folder_or_says_why_not(tmp_path):
    features, y = heaps(120)
    head = fitted(features, y)
    config = json.loads(json.dumps({"name": "binned", **head.save(tmp_path)}))
    np.testing.assert_array_equal(load_head(tmp_path, config).predict(features), head.predict(features))
    for damage in ({"values": [1.0] * (max(BINS) + 1)}, {"values": None}, {"classifier": {}}):
        with pytest.raises(ModelError, match=r"ranges|damaged"):
            load_head(tmp_path, {**config, **damage})
