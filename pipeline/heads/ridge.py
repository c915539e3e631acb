"""Ridge regression, and classification on its values: the whole path of penalties from one decomposition.

Leave-one-out is exact and costs no fit (Golub, Heath and Wahba, 1979): the residual of row i by the model without it is
its residual divided by 1 - h_i, the diagonal of the hat matrix. Where identical content or views come in several rows,
leaving out one of them would leave its twin in, and whole groups are held out in folds instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import HeadError
from pipeline.heads.affine import AffineHead
from pipeline.heads.contract import Problem, Search
from pipeline.heads.rows import Rows
from pipeline.heads.standard import Standard

PENALTIES = 50
DEFAULT_PENALTY = 1.0
LARGEST_DECOMPOSITION = 8192
_FLOATS = 4_000_000  # of the residuals of a block, over targets and penalties


@dataclass(frozen=True)
class Target:
    """What is regressed on: `values` (n, T), weighed by `weights` (n,)."""

    values: NDArray[np.float64]
    weights: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Weighted mean, (T,)."""
        return np.asarray(np.average(self.values, axis=0, weights=self.weights))


class Decomposition:
    """sqrt(w) (X - mean) = Q sqrt(s) V': all that a path of penalties needs of standardised features X (n, D)."""

    def __init__(self, rows: Rows, standard: Standard | None, target: Target) -> None:
        self._rows = rows
        self._standard = standard
        self._root = torch.from_numpy(np.sqrt(target.weights))
        self._values = torch.from_numpy(target.values - target.mean) * self._root[:, None]
        self._total = float(target.weights.sum())
        self.target_mean = target.mean
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

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Standardised rows in double precision; not centred by weight yet."""
        for which, block in self._rows.blocks():
            part = torch.from_numpy(block).double()
            if self._standard is not None:
                part -= torch.from_numpy(self._standard.mean)
                part /= torch.from_numpy(self._standard.scale)
            yield which, part

    def _decompose_covariance(self) -> None:
        dimensions = self._rows.shape[1]
        products = torch.zeros(dimensions, dimensions, dtype=torch.float64)
        against = torch.zeros(dimensions, self._values.shape[1], dtype=torch.float64)
        total = torch.zeros(dimensions, dtype=torch.float64)
        for which, part in self._blocks():
            root = self._root[which]
            total += root.square() @ part
            part *= root[:, None]
            products += part.T @ part
            against += part.T @ self._values[which]
        self.feature_mean = total / self._total
        products -= self._total * torch.outer(self.feature_mean, self.feature_mean)
        self._squares, self._rotation = _eigen(products)
        self._against = self._rotation.T @ against

    def _decompose_gram(self) -> None:
        features = torch.cat([part for _, part in self._blocks()])
        self.feature_mean = self._root.square() @ features / self._total
        self._features = (features - self.feature_mean) * self._root[:, None]
        gram = self._features @ self._features.T
        direction = self._root / self._root.norm()
        # The intercept is not penalised: its direction gets an eigenvalue of its own and then has no part in the path.
        gram += gram.diagonal().mean().clamp(min=1.0) * torch.outer(direction, direction)
        self._squares, self._left = _eigen(gram)
        self._intercept = int((self._left.T @ direction).abs().argmax())
        self._against = self._left.T @ self._values

    def coefficients(self, penalty: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weight (T, D) and bias (T,) on standardised features."""
        if self._dual:
            weight = self._features.T @ (self._left @ (self._shrink([penalty]) * self._against))
        else:
            weight = self._rotation @ (self._against / (self._squares[:, None] + penalty))
        bias = torch.from_numpy(self.target_mean) - self.feature_mean @ weight
        return weight.T.numpy(), bias.numpy()

    def _shrink(self, penalties: list[float]) -> Tensor:
        """1 / (s + penalty), (r, P)."""
        inverse: Tensor = (self._squares[:, None] + torch.tensor(penalties, dtype=torch.float64)).reciprocal()
        if self._dual:
            inverse[self._intercept] = 0
        return inverse

    def left_out(self, penalties: list[float]) -> Iterator[tuple[slice, Tensor]]:
        """Weighted leave-one-out residuals sqrt(w) (y - prediction without the row), (b, T, P), block by block."""
        shrink = self._shrink(penalties)
        path = (self._against[:, :, None] * shrink[:, None, :]).flatten(1)
        targets = self._values.shape[1]
        length = max(_FLOATS // (targets * len(penalties)), 64)
        if self._dual:
            for start in range(0, len(self._left), length):
                which = slice(start, start + length)
                rotated = self._left[which]
                residual = (rotated @ path).view(len(rotated), targets, -1)
                yield which, residual.div_((rotated.square() @ shrink)[:, None, :])
            return
        for block_slice, part in self._blocks():
            part -= self.feature_mean
            part *= self._root[block_slice, None]
            rotated_block = part @ self._rotation
            for start in range(0, len(part), length):
                rotated = rotated_block[start : start + length]
                which = slice(block_slice.start + start, block_slice.start + start + len(rotated))
                share = self._root[which].square() / self._total
                left = 1 - share[:, None] - rotated.square() @ shrink
                residual = (rotated @ path).view(len(rotated), targets, -1)
                yield which, residual.sub_(self._values[which, :, None]).div_(left[:, None, :].neg_())

    def errors(self, penalties: list[float]) -> NDArray[np.float64]:
        """Mean weighted squared leave-one-out residual of every penalty, (P,)."""
        total = torch.zeros(len(penalties), dtype=torch.float64)
        for _, residual in self.left_out(penalties):
            total += torch.linalg.vector_norm(residual.view(-1, len(penalties)), dim=0).square()
        return (total / self._values.numel()).numpy()

    def predictions(self, penalty: float) -> NDArray[np.float64]:
        """What the model without a row says of it, (n, T)."""
        said = torch.empty_like(self._values)  # filled, not gathered: small pieces kept would tear the heap apart
        for which, residual in self.left_out([penalty]):
            said[which] = residual[:, :, 0]
        said.sub_(self._values).div_(-self._root[:, None])
        return said.numpy() + self.target_mean


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Values (r,), none below zero, and vectors (r, r) of a symmetric matrix, which is used up."""
    values, vectors = scipy.linalg.eigh(matrix.numpy().T, overwrite_a=True, check_finite=False, driver="evr")
    return torch.from_numpy(values).clamp_(min=0), torch.from_numpy(vectors)


class RidgeHead(AffineHead):
    """Ridge; for classes on targets of -1 and 1, as scikit-learn's RidgeClassifierCV."""

    name = "ridge"
    streams = True

    def train(self, problem: Problem, folds: NDArray[np.int64] | None) -> Search:
        """Leave-one-out over the whole path; folds where contents repeat."""
        standard = Standard.of(problem.rows)
        target = Target(_targets(problem.row_y, problem.classes), problem.row_weights)
        whole = Decomposition(problem.rows, standard, target)
        penalties = _path(*problem.rows.shape)
        alone = problem.views == 1 and len(np.unique(problem.groups)) == len(problem.groups)
        if folds is None:
            search = Search(chosen={"alpha": DEFAULT_PENALTY * max(problem.rows.shape)})
        elif alone:
            search = _by_leaving_one_out(problem, whole, penalties)
        else:
            search = _by_folds(problem, folds, penalties)
        weight, bias = whole.coefficients(search.chosen["alpha"])
        if problem.classes == 2:  # one regression says both
            weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
        self.weight, self.bias = standard.fold(weight, bias)
        return search


def _path(count: int, dimensions: int) -> list[float]:
    """From hardly any penalty to one that leaves next to nothing, strong first."""
    return [float(value) for value in np.geomspace(100 * max(count, dimensions), 1e-5 * count, PENALTIES)]


def _targets(y: NDArray[np.generic], classes: int | None) -> NDArray[np.float64]:
    if classes is None:
        return y.astype(np.float64)[:, None]
    if classes == 2:
        return np.where(y == 1, 1.0, -1.0)[:, None]
    return np.where(y[:, None] == np.arange(classes), 1.0, -1.0)


def _raw_scores(values: NDArray[np.float64], classes: int | None) -> NDArray[np.float64]:
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
    found = np.empty((*values.shape, len(penalties)))
    for fold in range(int(folds.max()) + 1):
        part = problem.take(np.flatnonzero(folds != fold))
        standard = Standard.of(part.rows)
        target = Target(_targets(part.row_y, part.classes), part.row_weights)
        fitted = Decomposition(part.rows, standard, target)
        models = [fitted.coefficients(penalty) for penalty in penalties]
        weight = np.concatenate([weight for weight, _ in models])
        bias = np.concatenate([bias for _, bias in models])
        held = np.flatnonzero(folds == fold)
        held_rows = problem.rows.take(problem.feature_rows(held))
        said = np.concatenate([standard.apply(block) @ weight.T + bias for _, block in held_rows.blocks()])
        of_image = problem.per_image(said).reshape(len(held), len(penalties), -1)
        found[held] = of_image.transpose(0, 2, 1)
    errors = np.average(np.square(found - values[:, :, None]).mean(axis=1), axis=0, weights=problem.weights)
    search = _choose(penalties, errors)
    best = penalties.index(search.chosen["alpha"])
    search.scores = _raw_scores(found[:, :, best], problem.classes)
    return search


def _choose(penalties: list[float], errors: NDArray[np.float64]) -> Search:
    table = [{"alpha": a, "squared_error": float(e)} for a, e in zip(penalties, errors, strict=True)]
    return Search(table=table, chosen={"alpha": penalties[int(np.argmin(errors))]})
