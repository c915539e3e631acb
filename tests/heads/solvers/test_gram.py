"""Products of rows, and what their eigenvectors make of them again."""

from __future__ import annotations

import numpy as np

from pipeline.heads.solvers.gram import eigen, gram, spanned

ROWS = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)


def test_products_are_in_double_precision():
    np.testing.assert_allclose(gram(ROWS), ROWS.astype(np.float64) @ ROWS.T.astype(np.float64), rtol=1e-14)


def test_eigenvectors_give_the_matrix_again():
    values, vectors = eigen(gram(ROWS.T))  # of rank 4
    assert (np.diff(values) >= 0).all()
    assert values.min() >= 0
    assert values[:2].max() < 1e-9
    np.testing.assert_allclose(vectors * values @ vectors.T, gram(ROWS.T), atol=1e-9)


def test_what_is_rounding_spans_nothing():
    values, vectors = spanned(gram(ROWS.T))
    assert (len(values), vectors.shape) == (4, (6, 4))
    np.testing.assert_allclose(vectors * values @ vectors.T, gram(ROWS.T), atol=1e-9)
