"""RBF coordinates: their products are the kernel, and a linear model in them is a machine with it."""

from __future__ import annotations

import numpy as np
from sklearn.metrics.pairwise import rbf_kernel

from pipeline.heads.solvers.kernel import kernel_basis, rbf

ROWS = np.random.default_rng(0).normal(size=(60, 5))


def test_kernel_values_are_scikit_learns():
    np.testing.assert_allclose(rbf(ROWS, ROWS[:9], 0.2), rbf_kernel(ROWS, ROWS[:9], gamma=0.2), atol=1e-12)


def test_products_of_coordinates_by_all_rows_are_the_kernel():
    whole = np.concatenate([block for _, block in kernel_basis(ROWS, ROWS, 0.2).blocks(1)])[:, :-1]
    np.testing.assert_allclose(whole @ whole.T, rbf(ROWS, ROWS, 0.2), atol=1e-3)


def test_weights_leave_as_those_of_the_landmarks():
    basis = kernel_basis(ROWS, ROWS[:20], 0.2)
    features = np.concatenate([block for _, block in basis.blocks(1)])
    weights = np.random.default_rng(1).normal(size=(features.shape[1], 2))
    of_landmarks = basis.double().standard_weights(weights[:-1])
    said = features[:, :-1] @ weights[:-1]
    np.testing.assert_allclose(rbf(ROWS, ROWS[:20], 0.2) @ of_landmarks, said, atol=2e-2)
