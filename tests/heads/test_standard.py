"""Standardisation: layers side by side, constant features, and features that training rows hardly know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from examples import blobs, problem_of

from pipeline.config import FitSettings
from pipeline.errors import HeadError
from pipeline.heads import HEADS
from pipeline.heads.rows import ArrayRows
from pipeline.heads.standard import Standard

QUICK = FitSettings.of({"epochs": 20, "hidden": 32})


def rare_features(rows: int = 800) -> tuple[Any, Any]:
    """Like a flattened map: a few features that know the number, and thousands that are zero in nearly all rows."""
    random = np.random.default_rng(3)
    known = random.normal(size=(rows, 100))
    rare = random.exponential(size=(rows, 3000)) * (random.random((rows, 3000)) < 0.002)
    rare[:400] *= random.random((400, 3000)) ** 4  # what few training rows show of them is faint
    features = np.concatenate([known, 0.5 * rare], axis=1).astype(np.float32)
    return features, 5 * known[:, :50].sum(axis=1) + random.normal(size=rows)


def test_a_layer_has_a_mean_variance_of_one_and_features_keep_their_order():
    features, _ = blobs(500, 30, 3)
    scaled = Standard.of(ArrayRows(features)).apply(features)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    assert scaled.var(axis=0).mean() == pytest.approx(1, rel=1e-4)
    own, left = features.std(axis=0), scaled.std(axis=0)
    assert (np.argsort(own) == np.argsort(left)).all()  # what varies more counts more, but by less than before:
    assert left.max() / left.min() < own.max() / own.min()


def test_units_of_a_layer_have_no_say():
    features, _ = blobs(300, 24, 3)
    mixed = np.concatenate([features[:, :8] * 1e-4, features[:, 8:] * 1e3], axis=1)
    apart = [Standard.of(ArrayRows(part)).apply(part) for part in (features[:, :8], features[:, 8:])]
    together = Standard.of(ArrayRows(mixed), (8, 16)).apply(mixed)
    np.testing.assert_allclose(together, np.concatenate(apart, axis=1), rtol=1e-3, atol=1e-4)


def test_constant_features_have_no_say():
    features, _ = blobs(100, 6, 2)
    features[:, 2] = 7.3
    features[:, 5] = 0
    standard = Standard.of(ArrayRows(features), (3, 3))
    new = features + np.float32(5)
    assert not standard.apply(new)[:, [2, 5]].any()
    weight, _ = standard.fold(np.ones((1, 6)), np.zeros(1))
    assert not weight[:, [2, 5]].any()
    constant = np.ones((4, 2), dtype=np.float32)
    assert not Standard.of(ArrayRows(constant)).apply(constant + 1).any()


def test_a_feature_that_training_rows_hardly_know_does_not_explode():
    features = np.abs(np.random.default_rng(0).normal(size=(400, 50))).astype(np.float32)
    features[:, 7] = 0
    features[3, 7] = 1e-3
    new = features[:1].copy()
    new[0, 7] = 2
    assert np.abs(Standard.of(ArrayRows(features)).apply(new)[0, 7]) < 5  # by its own spread it would be 40,000


@pytest.mark.parametrize("head", ["ridge", "svm", "knn", "mlp"])
def test_wide_features_that_are_mostly_zero_are_learned_from(head):
    """Divided by their own spread alone they leave every head with next to a guess, or far worse."""
    features, y = rare_features()
    fitted = HEADS[head]("numbers", QUICK).fit(problem_of(features[:400], y[:400]))
    error = np.square(fitted.predict(features[400:]) - y[400:]).mean()
    assert error < 0.75 * y[400:].var()


def test_bad_features_are_refused():
    features = np.ones((10, 3), dtype=np.float32)
    features[4, 1] = np.inf
    with pytest.raises(HeadError, match="NaN or infinity"):
        Standard.of(ArrayRows(features))
    features[5, 1] = -np.inf
    with pytest.raises(HeadError, match="NaN or infinity"):
        Standard.of(ArrayRows(features))
    with pytest.raises(HeadError, match="layers of 2, 2 dimensions are not rows of 3"):
        Standard.of(ArrayRows(features), (2, 2))
    with pytest.raises(HeadError, match="no row"):
        Standard.of(ArrayRows(features[:0]))
