"""Coordinates in which features are uncorrelated: the solvers converge fast there, and wide data becomes small.

Features X (n, D), standardised, are written as Z (n, r) with orthogonal columns, r = min(n, D). L2-penalised models
have the same optimum in both: the penalty does not change under rotation, and weights outside the span of the rows
are zero (the representer theorem).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.rows import ArrayRows, Rows
from pipeline.heads.solvers.arrays import Array, cast, device_of, double, library, put
from pipeline.heads.solvers.gram import LARGEST_DECOMPOSITION, eigen, gram, spanned
from pipeline.heads.standard import Standard

if TYPE_CHECKING:
    import torch

#: Rows a dimension that tell the directions well enough. Where there are more, it is the weights that are rotated:
#: rotating the rows would cost more than the decomposition.
ENOUGH_ROWS = 8
#: Floats of a block of logits: 1 MB, which a core's cache holds.
BLOCK_FLOATS = 1 << 18

Single = NDArray[np.float32]


class Basis(ABC):
    """Rotated features and, as the last one, a feature that is 1, whose weight is the bias: r + 1 in all.

    `variance` (r + 1,) is their mean square. `rotation` (D, r) is None where the rows of `blocks` are rotated already.
    """

    variance: Array
    rotation: Array | None

    @abstractmethod
    def double(self) -> Basis:
        """Return the same basis in double precision."""

    @abstractmethod
    def sorted_by(self, folds: NDArray[np.int64]) -> Basis | None:
        """Return the basis with rows in the order of their folds; None where rows have to be read as they come."""

    @abstractmethod
    def blocks(self, columns: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, Array]]:
        """Rows `start` to `stop` to multiply with `columns` columns of what `enter` gives, block by block."""

    def enter(self, weights: Array) -> Array:
        """Weights (r + 1, M) of the rotated features as weights of the rows of `blocks`."""
        if self.rotation is None:
            return weights
        return library(weights).concatenate([self.rotation @ weights[:-1], weights[-1:]])

    def leave(self, gradient: Array) -> Array:
        """Return a gradient for the rows of `blocks` as one for the rotated features, (r + 1, M)."""
        if self.rotation is None:
            return gradient
        return library(gradient).concatenate([self.rotation.T @ gradient[:-1], gradient[-1:]])

    @abstractmethod
    def standard_weights(self, weights: Array) -> Array:
        """Weights (r, M) of the rotated features as weights (D, M) of the standardised ones."""


class RotatedRows(Basis):
    """Rows and a column of ones in memory: Z, of which `back` (D, r) makes standardised features, or these."""

    def __init__(self, features: Array, variance: Array, *, rotation: Array | None, back: Array | None) -> None:
        self._features = features  # in single precision whatever the basis: blocks are converted as they pass
        self._back = back
        self.rotation = rotation
        self.variance = variance

    @classmethod
    def of(
        cls,
        features: Single,
        variance: NDArray[np.floating],
        *,
        rotation: Single | None = None,
        back: NDArray[np.floating] | None = None,
        device: torch.device | None = None,
    ) -> RotatedRows:
        """From rows (n, r) or (n, D) and the mean square (r,) of rotated ones; arrays go to the `device`."""
        return cls(
            put(_with_ones(features), device),
            put(np.append(variance, 1).astype(np.float32), device),
            rotation=None if rotation is None else put(rotation, device),
            back=None if back is None else put(back, device),
        )

    def double(self) -> Basis:
        """On the same rows."""
        rotation = None if self.rotation is None else double(self.rotation)
        back = None if self._back is None else double(self._back)
        return RotatedRows(self._features, double(self.variance), rotation=rotation, back=back)

    def sorted_by(self, folds: NDArray[np.int64]) -> Basis:
        """Copy the rows."""
        order = put(np.argsort(folds, kind="stable"), device_of(self._features))
        return RotatedRows(self._features[order], self.variance, rotation=self.rotation, back=self._back)

    def blocks(self, columns: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, Array]]:
        """Parts of the rows, so long that the product stays in a cache."""
        length = min(max(BLOCK_FLOATS // columns, 256), 8192)
        end = len(self._features) if stop is None else stop
        for first in range(start, end, length):
            which = slice(first, min(first + length, end))
            yield which, cast(self._features[which], self.variance)

    def standard_weights(self, weights: Array) -> Array:
        """Rotated back."""
        back = self.rotation if self._back is None else self._back
        return weights if back is None else back @ weights


class StreamedRotation(Basis):
    """Rows stay on disk and are standardised as they pass; it is the weights that are rotated."""

    def __init__(self, rows: Rows, standard: Standard, rotation: Array | None, variance: Array) -> None:
        self._rows = rows
        self._standard = standard
        self.rotation = rotation
        self.variance = variance

    def double(self) -> Basis:
        """On the same rows."""
        rotation = None if self.rotation is None else double(self.rotation)
        return StreamedRotation(self._rows, self._standard, rotation, double(self.variance))

    def sorted_by(self, folds: NDArray[np.int64]) -> None:
        """Not here."""

    def blocks(self, columns: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, Array]]:
        """Read, standardise, forget; always all rows."""
        for which, block in self._rows.blocks():
            rows = put(_with_ones(self._standard.apply(block)), device_of(self.variance))
            yield which, cast(rows, self.variance)

    def standard_weights(self, weights: Array) -> Array:
        """Rotated to features."""
        return weights if self.rotation is None else self.rotation @ weights


def _with_ones(rows: Single) -> Single:
    return np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)


def make_basis(rows: Rows, standard: Standard, device: torch.device | None = None) -> Basis:
    """Make the basis for `rows` by the smaller of Gram matrix and covariance; none is rotated where both are large.

    It is in single precision: it steers how fast a solver is, not where it ends.
    """
    count, dimensions = rows.shape
    if not isinstance(rows, ArrayRows):
        return _streamed(rows, standard, device)
    features = standard.apply(rows.array())
    if min(count, dimensions) > LARGEST_DECOMPOSITION:
        return RotatedRows.of(features, np.square(features).mean(axis=0), device=device)
    if count <= dimensions:
        squares, left = spanned(gram(features))
        back = features.T @ (left / np.sqrt(squares)).astype(np.float32)
        return RotatedRows.of(features @ back, squares / count, back=back, device=device)
    variance, rotation = _directions(rows, standard)
    if count >= 2 * ENOUGH_ROWS * dimensions:
        return RotatedRows.of(features, variance, rotation=rotation, device=device)
    return RotatedRows.of(features @ rotation, variance, back=rotation, device=device)


def _directions(rows: Rows, standard: Standard) -> tuple[NDArray[np.float64], Single]:
    """Variances (D,) and directions (D, D) of standardised features, from as many of the rows as tell them."""
    count, dimensions = rows.shape
    some = rows.take(np.arange(0, count, max(count // (ENOUGH_ROWS * dimensions), 1)))
    squares, vectors = eigen(np.sum([gram(standard.apply(block).T) for _, block in some.blocks()], axis=0))
    return squares / some.shape[0], vectors.astype(np.float32)


def _streamed(rows: Rows, standard: Standard, device: torch.device | None) -> Basis:
    if rows.shape[1] > LARGEST_DECOMPOSITION:
        informative = np.append(np.isfinite(standard.scale), 1).astype(np.float32)
        return StreamedRotation(rows, standard, None, put(informative, device))
    variance, rotation = _directions(rows, standard)
    return StreamedRotation(
        rows, standard, put(rotation, device), put(np.append(variance, 1).astype(np.float32), device)
    )
