"""Rotated features say the same as the features: every basis gives the same scores for the same model."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.heads.rows import ArrayRows, StreamedRows
from pipeline.heads.solvers.basis import RotatedRows, make_basis
from pipeline.heads.standard import Standard


def rows_of(kind, count, dimensions):
    features = np.random.default_rng(0).normal(size=(count, dimensions)).astype(np.float32)
    features[:, 1] += features[:, 0]
    if kind == "streamed":
        return features, StreamedRows(lambda which: features[which], np.arange(count), dimensions)
    return features, ArrayRows(features)


@pytest.mark.parametrize(
    ("kind", "count", "dimensions"),
    [("array", 30, 80), ("array", 200, 40), ("array", 2000, 20), ("streamed", 2000, 20)],
)
def test_scores_in_the_basis_are_those_of_standardised_features(kind, count, dimensions):
    features, rows = rows_of(kind, count, dimensions)
    standard = Standard.of(rows)
    basis = make_basis(rows, standard)
    weights = np.random.default_rng(1).normal(size=(len(basis.variance), 3)).astype(np.float32)
    said = np.concatenate([block @ basis.enter(weights) for _, block in basis.blocks(3)])
    plain = basis.standard_weights(weights[:-1])
    np.testing.assert_allclose(said, standard.apply(features) @ plain + weights[-1], atol=2e-3)


def test_rotated_features_are_uncorrelated_and_as_wide_as_their_variance():
    _, rows = rows_of("array", 200, 40)
    basis = make_basis(rows, Standard.of(rows))
    assert isinstance(basis, RotatedRows)
    whole = np.concatenate([block for _, block in basis.blocks(1)])[:, :-1]
    products = whole.T @ whole / len(whole)
    np.testing.assert_allclose(products, np.diag(basis.variance[:-1]), atol=1e-3)


def test_rows_in_the_order_of_their_folds_are_the_same_rows():
    _, rows = rows_of("array", 200, 40)
    basis = make_basis(rows, Standard.of(rows))
    folds = np.arange(200) % 5
    ordered = basis.sorted_by(folds)
    first, second = (np.concatenate([block for _, block in one.blocks(1)]) for one in (basis, ordered))
    np.testing.assert_array_equal(second, first[np.argsort(folds, kind="stable")])
    assert basis.double().variance.dtype == np.float64
