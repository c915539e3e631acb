"""Ridge regression, and classification on its values: the whole path of penalties from one decomposition.

Leave-one-out is exact and costs no fit (Golub, Heath and Wahba, 1979): the residual of row i by the model without it is
its residual divided by 1 - h_i, the diagonal of the hat matrix. Where identical content or views come in several rows,
leaving out one of them would leave its twin in, and whole groups are held out in folds instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import HeadError
from pipeline.heads.affine import AffineHead
from pipeline.heads.contract import Problem, Search
from pipeline.heads.rows import Rows, block_length
from pipeline.heads.solvers.gram import eigen, gram
from pipeline.heads.standard import Standard
from pipeline.heads.tensors import Tensors

PENALTIES = 50
DEFAULT_PENALTY = 1.0
LARGEST_DECOMPOSITION = 8192
#: Floats of the residuals of a block, over targets and penalties: what a cache holds.
_FLOATS = 1 << 20
#: The same where held-out rows have to be read again for each part of the penalties.
_HELD_FLOATS = 1 << 22

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """Targets of a regression: `values` (n, T), weighed by `weights` (n,)."""

    values: Array
    weights: Array

    @property
    def mean(self) -> Array:
        """Weighted mean, (T,)."""
        return np.asarray(self.weights @ self.values / self.weights.sum())


class Decomposition:
    """sqrt(w) (X - mean) = Q sqrt(s) V': all that a path of penalties needs of standardised features X (n, D).

    The vectors are V where there are more rows than dimensions, and Q otherwise.
    """

    def __init__(self, rows: Rows, standard: Standard | None, target: Target) -> None:
        self._rows = rows
        self._standard = standard
        self._root = np.sqrt(target.weights)
        self._total = float(target.weights.sum())
        self.target_mean = target.mean
        self._values = target.values - self.target_mean
        self._values *= self._root[:, None]
        count, dimensions = rows.shape
        if min(count, dimensions) > LARGEST_DECOMPOSITION:
            raise HeadError(
                f"ridge decomposes min(rows, dimensions) = {min(count, dimensions)}, which is more than "
                f"{LARGEST_DECOMPOSITION}; take --head linear, or a layer of fewer dimensions"
            )
        self._dual = count <= dimensions
        if self._dual:
            self._decompose_gram()
        else:
            self._decompose_covariance()

    def _blocks(self) -> Iterator[tuple[slice, Array]]:
        """Standardised rows in double precision; not centred by weight yet."""
        for which, block in self._rows.blocks():
            part = block.astype(np.float64)
            if self._standard is not None:
                part -= self._standard.mean
                part /= self._standard.scale
            yield which, part

    def _decompose_covariance(self) -> None:
        dimensions, targets = self._rows.shape[1], len(self.target_mean)
        products = np.zeros((dimensions + targets + 1, dimensions + targets + 1))
        for which, part in self._blocks():
            root = self._root[which, None]
            part *= root
            products += gram(np.concatenate([part, self._values[which], root], axis=1).T)
        against = products[:dimensions, dimensions:-1]
        self.feature_mean = products[-1, :dimensions] / self._total
        products = products[:dimensions, :dimensions] - self._total * gram(self.feature_mean[:, None])
        self._squares, self._vectors = eigen(products)
        self._against = self._vectors.T @ against

    def _decompose_gram(self) -> None:
        self._features = np.empty(self._rows.shape)
        for which, part in self._blocks():
            self._features[which] = part
        weights = np.square(self._root)
        self.feature_mean = np.einsum("n,nd->d", weights, self._features) / self._total
        self._features -= self.feature_mean
        self._features *= self._root[:, None]
        similar = gram(self._features)
        direction = self._root / np.linalg.norm(self._root)
        # The intercept is not penalised: its direction gets an eigenvalue of its own and then has no part in the path.
        similar += np.outer(direction * max(float(similar.diagonal().mean()), 1.0), direction)
        self._squares, self._vectors = eigen(similar)
        self._intercept = int(np.abs(direction @ self._vectors).argmax())
        self._against = self._vectors.T @ self._values

    def _shrink(self, penalties: Sequence[float]) -> Array:
        """1 / (s + penalty), (r, P)."""
        inverse: Array = 1 / (self._squares[:, None] + np.array(penalties))
        if self._dual:
            inverse[self._intercept] = 0
        return inverse

    def _path(self, shrink: Array) -> Array:
        """Return factors (r, P T) of rotated rows that give residuals (Q) or predictions (V) of P penalties."""
        path: Array = (shrink[:, :, None] * self._against[:, None, :]).reshape(len(shrink), -1)
        return path

    def coefficients(self, penalties: Sequence[float]) -> tuple[Array, Array]:
        """Weight (P, T, D) and bias (P, T) on standardised features."""
        weight: Array = self._vectors @ self._path(self._shrink(penalties))
        if self._dual:
            weight = self._features.T @ weight
        targets, dimensions = len(self.target_mean), len(weight)
        bias = self.target_mean - (self.feature_mean @ weight).reshape(-1, targets)
        return weight.T.reshape(-1, targets, dimensions), bias

    def _rotated(self) -> Iterator[tuple[slice, Array]]:
        """Rows of Q, or of Q sqrt(s), block by block."""
        if self._dual:
            length = block_length(len(self._vectors))
            for start in range(0, len(self._vectors), length):
                which = slice(start, start + length)
                yield which, self._vectors[which]
            return
        for which, part in self._blocks():
            part -= self.feature_mean
            part *= self._root[which, None]
            yield which, part @ self._vectors

    def _left_out(self, penalties: Sequence[float]) -> Iterator[tuple[slice, slice, Array, Array]]:
        """Which rows (b) and which penalties (p), numerators (b, p, T) and denominators (b, p).

        The ratio is sqrt(w) (y - what the model without the row predicts).
        """
        shrink, targets = self._shrink(penalties), len(self.target_mean)
        for which, rotated in self._rotated():
            below = np.square(rotated) @ shrink
            if not self._dual:  # the hat matrix less one
                below += (np.square(self._root[which]) / self._total - 1)[:, None]
            together = max(_FLOATS // (max(rotated.shape) * targets), 1)
            for first in range(0, len(penalties), together):
                some = slice(first, first + together)
                above = (rotated @ self._path(shrink[:, some])).reshape(len(rotated), -1, targets)
                if not self._dual:
                    above -= self._values[which, None, :]
                yield which, some, above, below[:, some]

    def errors(self, penalties: Sequence[float]) -> Array:
        """Mean weighted squared leave-one-out residual of every penalty, (P,)."""
        total = np.zeros(len(penalties))
        for _, some, above, below in self._left_out(penalties):
            total[some] += (np.einsum("bpt,bpt->bp", above, above) / np.square(below)).sum(axis=0)
        return total / self._values.size

    def predictions(self, penalty: float) -> Array:
        """Predict each row by the model without it, (n, T)."""
        said = self._values.copy()
        for which, _, above, below in self._left_out([penalty]):
            said[which] -= above[:, 0] / below
        said /= self._root[:, None]
        said += self.target_mean
        return said


class RidgeHead(AffineHead):
    """Ridge; for classes on targets of -1 and 1, as scikit-learn's RidgeClassifierCV."""

    name = "ridge"
    streams = True
    nests = 1000

    #: Whether the search held rows out one by one.
    left_one_out = False

    def train(self, problem: Problem, folds: NDArray[np.int64] | None) -> Search:
        """Leave-one-out over the whole path; folds where contents repeat."""
        whole, standard = _decomposed(problem)
        penalties = _path(*problem.rows.shape)
        alone = problem.views == 1 and len(np.unique(problem.groups)) == len(problem.groups)
        self.left_one_out = alone and folds is not None
        if folds is None:
            search = Search(chosen={"alpha": DEFAULT_PENALTY * max(problem.rows.shape)})
        elif alone:
            search = _by_leaving_one_out(problem, whole, penalties)
        else:
            search = _by_folds(problem, folds, penalties)
        (weight,), (bias,) = whole.coefficients([search.chosen["alpha"]])
        if problem.classes == 2:  # one regression says both
            weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
        weight, bias = standard.fold(weight, bias)
        self.place(Tensors.trained({"weight": weight, "bias": bias}))
        return search

    def _fold_scores(self, problem: Problem, folds: NDArray[np.int64]) -> NDArray[Any] | None:
        """Those of the search, or of models without a fold where it left out one row at a time."""
        if not self.left_one_out:
            return self.search.scores
        return _fold_scores(problem, folds, self.search.chosen["alpha"])


def _path(count: int, dimensions: int) -> list[float]:
    """From hardly any penalty to one that leaves next to nothing, strong first."""
    return [float(value) for value in np.geomspace(100 * max(count, dimensions), 1e-5 * count, PENALTIES)]


def _targets(y: NDArray[np.generic], classes: int | None) -> Array:
    if classes is None:
        return y.astype(np.float64)[:, None]
    if classes == 2:
        return np.where(y == 1, 1.0, -1.0)[:, None]
    return np.where(y[:, None] == np.arange(classes), 1.0, -1.0)


def _raw_scores(values: Array, classes: int | None) -> Array:
    """Regressed values (n, T) as raw scores: (n,) for numbers, (n, C) for classes."""
    if classes is None:
        return values[:, 0]
    return np.concatenate([-values, values], axis=1) if classes == 2 else values


def _by_leaving_one_out(problem: Problem, whole: Decomposition, penalties: list[float]) -> Search:
    errors = whole.errors(penalties)
    search = _choose(penalties, errors)
    search.scores = _raw_scores(whole.predictions(search.chosen["alpha"]), problem.classes)
    return search


def _by_folds(problem: Problem, folds: NDArray[np.int64], penalties: list[float]) -> Search:
    values = _targets(problem.y, problem.classes)
    total = np.zeros(len(penalties))
    for held, some, said in _held_out(problem, folds, penalties):
        off = np.square(said - values[held, None, :]).mean(axis=2)
        total[some] += problem.weights[held] @ off
    search = _choose(penalties, total / problem.weights.sum())
    # The folds once more: kept for all penalties, their scores may be larger than the features.
    search.scores = _fold_scores(problem, folds, search.chosen["alpha"])
    return search


def _fold_scores(problem: Problem, folds: NDArray[np.int64], penalty: float) -> Array:
    """Predict each fold by the model without it."""
    values = np.empty_like(_targets(problem.y, problem.classes))
    for held, _, said in _held_out(problem, folds, [penalty]):
        values[held] = said[:, 0]
    return _raw_scores(values, problem.classes)


def _held_out(
    problem: Problem, folds: NDArray[np.int64], penalties: list[float]
) -> Iterator[tuple[NDArray[np.int64], slice, Array]]:
    """Which images (m) and which penalties (p), and what a model without their fold says of them, (m, p, T)."""
    for fold in range(int(folds.max()) + 1):
        fitted, standard = _decomposed(problem.take(np.flatnonzero(folds != fold)))
        held = np.flatnonzero(folds == fold)
        rows = problem.rows.take(problem.feature_rows(held))
        together = max(_HELD_FLOATS // (max(rows.shape) * len(fitted.target_mean)), 1)
        for first in range(0, len(penalties), together):
            some = slice(first, first + together)
            weight, bias = fitted.coefficients(penalties[some])
            flat = weight.reshape(-1, rows.shape[1])
            said = np.concatenate([standard.apply(block) @ flat.T for _, block in rows.blocks()])
            yield held, some, problem.per_image(said.reshape(-1, *bias.shape) + bias)


def _decomposed(problem: Problem) -> tuple[Decomposition, Standard]:
    """Decompose the rows of `problem`; also return how they are standardised."""
    standard = problem.standard()
    target = Target(_targets(problem.row_y, problem.classes), problem.row_weights)
    return Decomposition(problem.rows, standard, target), standard


def _choose(penalties: list[float], errors: Array) -> Search:
    table = [{"alpha": a, "squared_error": float(e)} for a, e in zip(penalties, errors, strict=True)]
    return Search(table=table, chosen={"alpha": penalties[int(np.argmin(errors))]})
