"""The RBF kernel, and coordinates in which a machine with it is a linear model.

With K = U s U' among m landmark rows, a row x is k(x)' U s^-1/2 (Williams and Seeger, 2001). Where all rows are
landmarks nothing is lost, and a model that is trained on some of them ends where it would in a basis of its own: what
is orthogonal to its rows is shrunk to zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.solvers.basis import RotatedRows
from pipeline.heads.solvers.gram import spanned

Array = NDArray[np.float64]


def rbf(rows: Array, vectors: Array, gamma: float) -> Array:
    """Kernel values (n, m) of rows (n, D) and vectors (m, D)."""
    squares = (np.einsum("nd,nd->n", some, some) for some in (rows, vectors))
    return rbf_of(rows @ vectors.T, *squares, gamma=gamma)


def rbf_of(products: Array, of_rows: Array, of_vectors: Array, *, gamma: float) -> Array:
    """Kernel values (n, m), written over inner products (n, m), from squared lengths (n,) and (m,)."""
    products *= -2
    products += of_rows[:, None] + of_vectors
    np.maximum(products, 0, out=products)
    products *= -gamma
    return np.asarray(np.exp(products, out=products))


def kernel_basis(rows: Array, landmarks: Array, gamma: float) -> RotatedRows:
    """Coordinates of rows (n, D) by landmarks (m, D), whose weights leave as those (m, M) of the landmarks."""
    values, vectors = spanned(rbf(landmarks, landmarks, gamma))
    back = vectors / np.sqrt(values)
    features = (rbf(rows, landmarks, gamma) @ back).astype(np.float32)
    return RotatedRows.of(features, np.square(features).mean(axis=0), back=back)
