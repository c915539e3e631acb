"""Coordinates in which features are uncorrelated: the solvers converge fast there, and wide data becomes small.

Features X (n, D), standardised, are written as Z (n, r) with orthogonal columns, r = min(n, D). L2-penalised models
have the same optimum in both: the penalty does not change under rotation, and weights outside the span of the rows
are zero (the representer theorem).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.heads.rows import ArrayRows, Rows
from pipeline.heads.solvers.gram import add_products, eigen, zero_products
from pipeline.heads.standard import Standard

#: Decompositions larger than this cost more than the iterations that they save.
LARGEST_DECOMPOSITION = 4096
#: Rows a dimension that tell the directions well enough. Where there are more, it is the weights that are rotated:
#: rotating the rows would cost more than the decomposition.
ENOUGH_ROWS = 8
_RANK_TOLERANCE = 1e-7
#: Floats of a block of logits: 1 MB, which a core's cache holds.
BLOCK_FLOATS = 1 << 18
CPU = torch.device("cpu")


class Basis(ABC):
    """Rotated features and, as the last one, a feature that is 1, whose weight is the bias: r + 1 in all.

    `variance` (r + 1,) is their mean square. `rotation` (D, r) is None where the rows of `blocks` are rotated already.
    """

    variance: Tensor
    rotation: Tensor | None

    @abstractmethod
    def double(self) -> Basis:
        """Return the same basis in double precision."""

    @abstractmethod
    def sorted_by(self, folds: NDArray[np.int64]) -> Basis | None:
        """Return the basis with rows in the order of their folds; None where rows have to be read as they come."""

    @abstractmethod
    def blocks(self, columns: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Rows `start` to `stop` to multiply with `columns` columns of what `enter` gives, block by block."""

    def enter(self, weights: Tensor) -> Tensor:
        """Weights (r + 1, M) of the rotated features as weights of the rows of `blocks`."""
        return weights if self.rotation is None else torch.cat([self.rotation @ weights[:-1], weights[-1:]])

    def leave(self, gradient: Tensor) -> Tensor:
        """Return a gradient for the rows of `blocks` as one for the rotated features, (r + 1, M)."""
        return gradient if self.rotation is None else torch.cat([self.rotation.T @ gradient[:-1], gradient[-1:]])

    @abstractmethod
    def standard_weights(self, weights: Tensor) -> Tensor:
        """Weights (r, M) of the rotated features as weights (D, M) of the standardised ones."""


class RotatedRows(Basis):
    """Rows and a column of ones in memory: Z, of which `back` (D, r) makes standardised features, or these."""

    def __init__(self, features: Tensor, variance: Tensor, *, rotation: Tensor | None, back: Tensor | None) -> None:
        self._features = features  # in single precision whatever the basis: blocks are converted as they pass
        self._back = back
        self.rotation = rotation
        self.variance = variance

    @classmethod
    def of(
        cls, features: Tensor, variance: Tensor, *, rotation: Tensor | None = None, back: Tensor | None = None
    ) -> RotatedRows:
        """From rows (n, r) or (n, D) and the mean square (r,) of rotated ones."""
        return cls(_with_ones(features), torch.cat([variance, variance.new_ones(1)]), rotation=rotation, back=back)

    def double(self) -> Basis:
        """On the same rows."""
        rotation = None if self.rotation is None else self.rotation.double()
        back = None if self._back is None else self._back.double()
        return RotatedRows(self._features, self.variance.double(), rotation=rotation, back=back)

    def sorted_by(self, folds: NDArray[np.int64]) -> Basis:
        """Copy the rows."""
        order = torch.from_numpy(np.argsort(folds, kind="stable")).to(self._features.device)
        return RotatedRows(self._features[order], self.variance, rotation=self.rotation, back=self._back)

    def blocks(self, columns: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Parts of the rows, so long that the product stays in a cache."""
        length = min(max(BLOCK_FLOATS // columns, 256), 8192)
        end = len(self._features) if stop is None else stop
        for first in range(start, end, length):
            which = slice(first, min(first + length, end))
            yield which, self._features[which].to(self.variance.dtype)

    def standard_weights(self, weights: Tensor) -> Tensor:
        """Rotated back."""
        back = self.rotation if self._back is None else self._back
        return weights if back is None else back @ weights


class StreamedRotation(Basis):
    """Rows stay on disk and are standardised as they pass; it is the weights that are rotated."""

    def __init__(self, rows: Rows, standard: Standard, rotation: Tensor | None, variance: Tensor) -> None:
        self._rows = rows
        self._standard = standard
        self.rotation = rotation
        self.variance = variance

    def double(self) -> Basis:
        """On the same rows."""
        rotation = None if self.rotation is None else self.rotation.double()
        return StreamedRotation(self._rows, self._standard, rotation, self.variance.double())

    def sorted_by(self, folds: NDArray[np.int64]) -> None:
        """Not here."""

    def blocks(self, columns: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Read, standardise, forget; always all rows."""
        for which, block in self._rows.blocks():
            yield which, _with_ones(torch.from_numpy(self._standard.apply(block)).to(self.variance))

    def standard_weights(self, weights: Tensor) -> Tensor:
        """Rotated to features."""
        return weights if self.rotation is None else self.rotation @ weights


def _with_ones(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def make_basis(rows: Rows, standard: Standard, device: torch.device = CPU) -> Basis:
    """Make the basis for `rows` by the smaller of Gram matrix and covariance; none is rotated where both are large."""
    count, dimensions = rows.shape
    if not isinstance(rows, ArrayRows):
        return _streamed(rows, standard, device)
    features = torch.from_numpy(standard.apply(rows.array())).to(device)
    if min(count, dimensions) > LARGEST_DECOMPOSITION:
        return RotatedRows.of(features, features.square().mean(dim=0))
    if count <= dimensions:
        return _from_gram(features)
    some = features[:: max(count // (ENOUGH_ROWS * dimensions), 1)]
    variance, rotation = _eigen((some.T @ some).double() / len(some))
    if len(some) < count:
        return RotatedRows.of(features, variance, rotation=rotation)
    return RotatedRows.of(features @ rotation, variance, back=rotation)


def _from_gram(features: Tensor) -> Basis:
    squares, left = _eigen((features @ features.T).double())
    kept = squares > _RANK_TOLERANCE * squares[-1]
    back = features.T @ (left[:, kept] / squares[kept].sqrt())
    return RotatedRows.of(features @ back, squares[kept] / len(features), back=back)


def _streamed(rows: Rows, standard: Standard, device: torch.device) -> Basis:
    count, dimensions = rows.shape
    if dimensions > LARGEST_DECOMPOSITION:
        informative = torch.from_numpy(np.isfinite(standard.scale).astype(np.float32))
        return StreamedRotation(rows, standard, None, torch.cat([informative, torch.ones(1)]).to(device))
    some = rows.take(np.arange(0, count, max(count // (ENOUGH_ROWS * dimensions), 1)))
    products = zero_products(dimensions)
    for _, block in some.blocks():
        add_products(products, standard.apply(block).astype(np.float64))
    squares, vectors = eigen(products)
    variance = np.append(squares / some.shape[0], 1).astype(np.float32)
    rotation = torch.from_numpy(vectors.astype(np.float32))
    return StreamedRotation(rows, standard, rotation.to(device), torch.from_numpy(variance).to(device))


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Values and vectors in float32: the basis steers how fast a solver is, not where it ends."""
    if matrix.device == CPU:
        found = (torch.from_numpy(part) for part in eigen(np.array(matrix.numpy(), order="F")))
    else:
        found = iter(torch.linalg.eigh(matrix))
    values, vectors = found
    return values.clamp(min=0).float(), vectors.float()
