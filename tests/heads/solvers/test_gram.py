"""Symmetric products and their eigenvectors, against numpy."""

from __future__ import annotations

import numpy as np

from pipeline.heads.solvers.gram import add_products, eigen, zero_products


def test_products_of_blocks_add_up_to_those_of_all_rows():
    rows = np.random.default_rng(0).normal(size=(50, 7))
    products = zero_products(7)
    for start in range(0, 50, 20):
        add_products(products, rows[start : start + 20], 0.5)
    np.testing.assert_allclose(np.tril(products), np.tril(rows.T @ rows) / 2)
    assert (np.triu(products, 1) == 0).all()


def test_eigenvectors_of_a_lower_triangle_give_the_matrix_again():
    rows = np.random.default_rng(1).normal(size=(4, 6))  # of rank 4
    values, vectors = eigen(np.asfortranarray(np.tril(rows.T @ rows)))
    assert (np.diff(values) >= 0).all()
    assert values.min() >= 0
    assert values[:2].max() < 1e-9
    np.testing.assert_allclose(vectors * values @ vectors.T, rows.T @ rows, atol=1e-9)
