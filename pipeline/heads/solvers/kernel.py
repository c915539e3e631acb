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
    squares = np.einsum("nd,nd->n", rows, rows)[:, None] + np.einsum("md,md->m", vectors, vectors)
    squares -= 2 * (rows @ vectors.T)
    np.maximum(squares, 0, out=squares)
    squares *= -gamma
    return np.asarray(np.exp(squares, out=squares))


def kernel_basis(rows: Array, landmarks: Array, gamma: float) -> RotatedRows:
    """Coordinates of rows (n, D) by landmarks (m, D), whose weights leave as those (m, M) of the landmarks."""
    values, vectors = spanned(rbf(landmarks, landmarks, gamma))
    back = vectors / np.sqrt(values)
    features = (rbf(rows, landmarks, gamma) @ back).astype(np.float32)
    return RotatedRows.of(features, np.square(features).mean(axis=0), back=back)
