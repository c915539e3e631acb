"""The RBF kernel, and coordinates in which a machine with it is a linear model.

With K = U s U' among m landmark rows, a row x is k(x)' U s^-1/2 (Williams and Seeger, 2001). Where all rows are
landmarks nothing is lost, and a model that is trained on some of them ends where it would in a basis of its own: what
is orthogonal to its rows is shrunk to zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.solvers.gram import eigen

if TYPE_CHECKING:
    from pipeline.heads.solvers.basis import RotatedRows

_RANK_TOLERANCE = 1e-7

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
    import torch  # which a trained machine answers without

    from pipeline.heads.solvers.basis import RotatedRows

    values, vectors = eigen(np.asfortranarray(rbf(landmarks, landmarks, gamma)))
    kept = values > _RANK_TOLERANCE * values[-1]
    back = vectors[:, kept] / np.sqrt(values[kept])
    features = torch.from_numpy((rbf(rows, landmarks, gamma) @ back).astype(np.float32))
    return RotatedRows.of(features, features.square().mean(dim=0), back=torch.from_numpy(back))
