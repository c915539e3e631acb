"""Rotated features say the same as the features: every basis gives the same scores for the same model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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
    basis = make_basis(rows, standard, torch.device("cpu"))
    weights = torch.randn(len(basis.variance), 3, generator=torch.Generator().manual_seed(0))
    said = torch.cat([block @ basis.enter(weights) for _, block in basis.blocks(3)]).numpy()
    plain = basis.standard_weights(weights[:-1]).numpy()
    np.testing.assert_allclose(said, standard.apply(features) @ plain + weights[-1].numpy(), atol=2e-3)


def test_rotated_features_are_uncorrelated_and_as_wide_as_their_variance():
    _, rows = rows_of("array", 200, 40)
    basis = make_basis(rows, Standard.of(rows), torch.device("cpu"))
    assert isinstance(basis, RotatedRows)
    whole = torch.cat([block for _, block in basis.blocks(1)])[:, :-1]
    products = (whole.T @ whole / len(whole)).numpy()
    np.testing.assert_allclose(products, np.diag(basis.variance[:-1].numpy()), atol=1e-3)


def test_rows_in_the_order_of_their_folds_are_the_same_rows():
    _, rows = rows_of("array", 200, 40)
    basis = make_basis(rows, Standard.of(rows), torch.device("cpu"))
    folds = np.arange(200) % 5
    ordered = basis.sorted_by(folds)
    first = torch.cat([block for _, block in basis.blocks(1)])
    second = torch.cat([block for _, block in ordered.blocks(1)])
    torch.testing.assert_close(second, first[np.argsort(folds, kind="stable")])
    assert basis.double().variance.dtype == torch.float64
