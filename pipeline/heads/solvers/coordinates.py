"""Coordinates in which one learning rate fits any number of features, and which are never more than the rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.rows import Rows
from pipeline.heads.solvers.gram import LARGEST_DECOMPOSITION, Matrix, gram, spanned
from pipeline.heads.standard import Standard

#: Mean square length of a row that steps of the usual learning rate suit; an optimizer that takes steps of the same
#: size in all weights moves a hidden unit by their number, and longer rows overfit within the first epochs.
LENGTH = 10.0


class Coordinates:
    """Coordinates of the steps: standardised features times `scale`, or similarities of rows where those are fewer.

    All that more features than rows can say is in the Gram matrix G = X X'. A row x is then written as x X' G^-1/2: of
    all rotations that keep the lengths of the training rows, the one whose coordinates are most like those rows.
    """

    def __init__(self, rows: Rows, standard: Standard) -> None:
        count, dimensions = rows.shape
        self._features = standard.apply(rows.array())
        self._scale = min(1.0, (LENGTH / dimensions) ** 0.5)
        self._gram: Matrix | None = None
        if dimensions > count and count <= LARGEST_DECOMPOSITION:
            self._gram = gram(self._features)
        self._root: Matrix | None = None

    def of_folds(self, folds: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows (n, r) for all folds; or (folds, n, r), from what each fold's network may know: the rows outside."""
        if self._gram is None:
            return self._plain()
        count = np.bincount(folds)
        found = np.zeros((len(count), len(folds), len(folds) - count.min()), dtype=np.float32)
        for fold in range(len(count)):
            others = np.flatnonzero(folds != fold)
            similar = self._gram[:, others]
            found[fold, :, : len(others)] = similar @ _inverse_root(similar[others]) * self._scale
        return found

    def of_all(self) -> NDArray[np.float32]:
        """Rows (n, r) from all of them."""
        if self._gram is None:
            return self._plain()
        self._root = _inverse_root(self._gram) * self._scale
        return np.asarray((self._gram @ self._root).astype(np.float32))

    def standard_weights(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights (D, H) of standardised features from those (r, H) of the rows of `of_all`."""
        if self._root is None:
            return np.asarray(weights * self._scale)
        turned = self._features.T @ (self._root @ weights).astype(np.float32)
        return turned.astype(np.float64)

    def _plain(self) -> NDArray[np.float32]:
        return np.asarray(self._features * np.float32(self._scale))


def _inverse_root(matrix: Matrix) -> Matrix:
    """G^-1/2 of a Gram matrix (n, n), of its pseudo-inverse where it has no full rank."""
    squares, vectors = spanned(matrix)
    return np.asarray(vectors / np.sqrt(squares) @ vectors.T)
