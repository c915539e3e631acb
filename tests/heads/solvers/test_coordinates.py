"""Coordinates of the steps are features turned and scaled, and those of a fold know nothing of its rows."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.heads.rows import ArrayRows
from pipeline.heads.solvers.coordinates import Coordinates
from pipeline.heads.standard import Standard


def wide(rows: int, dimensions: int = 600) -> np.ndarray:
    random = np.random.default_rng(0)
    hidden, mixing = random.normal(size=(rows, 8)), random.normal(size=(8, dimensions))
    return np.asarray(hidden @ mixing + random.normal(size=(rows, dimensions)), dtype=np.float32)


@pytest.mark.parametrize("dimensions", [40, 600])
def test_weights_come_back_to_the_features(dimensions):
    rows = ArrayRows(wide(80, dimensions))
    standard = Standard.of(rows)
    coordinates = Coordinates(rows, standard)
    coded = coordinates.of_all()
    weights = np.random.default_rng(0).normal(size=(coded.shape[1], 5))
    features = standard.apply(rows.array())
    said = features.astype(np.float64) @ coordinates.standard_weights(weights)
    np.testing.assert_allclose(said, coded.astype(np.float64) @ weights, atol=2e-5 * np.abs(said).max())
    np.testing.assert_allclose(np.square(coded).sum(axis=1).mean(), 10, rtol=1e-4)


def test_coordinates_of_a_fold_keep_distances_and_know_nothing_of_its_rows():
    features, folds = wide(60), np.arange(60) % 3
    standard = Standard.of(ArrayRows(features))
    honest = Coordinates(ArrayRows(features), standard).of_folds(folds)
    features[folds == 1] *= 3
    other = Coordinates(ArrayRows(features), standard).of_folds(folds)
    trained = folds != 1
    np.testing.assert_allclose(other[1][trained], honest[1][trained], atol=1e-5)
    assert np.abs(other[0][trained] - honest[0][trained]).max() > 0.1
    plain = standard.apply(features)[trained] * (10 / 600) ** 0.5
    np.testing.assert_allclose(honest[1][trained] @ honest[1][trained].T, plain @ plain.T, atol=1e-3)
