"""Multinomial logistic regression, many at once: all folds of a penalty in one batch, each penalty from the last.

    minimise   sum_i w_i log_loss(i) / sum_i w_i  +  |W|^2 / (2 C sum_i w_i)          (C as in scikit-learn)

L-BFGS in coordinates where features are uncorrelated and scaled by their curvature. The K fits of a batch share every
matrix product: logits of a block of rows are (rows, r) x (r, K classes). A row counts in a fit by its weight there,
which is zero in the fold that holds it out. A fit that has converged leaves the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.heads.basis import Basis

#: Pairs that L-BFGS remembers, and the floats all of them may take.
MEMORY, MEMORY_FLOATS = 12, 100_000_000
SUFFICIENT_DECREASE = 1e-4
HALVINGS = 12
#: Logit of a class without an example: its probability is zero, and nothing needs to be learned for it.
ABSENT = -1e30
_SAFE = 1e-30
_MINUS_ONE = torch.tensor(-1.0)


@dataclass
class Start:
    """Where a descent begins: weights (r + 1, K, classes), the bias last, and what is known there already.

    `curvature` (K, classes) is the mean p (1 - p). `data_loss` (K,) and `data_gradient`, like the weights, are without
    penalty, so that they hold for the next one too.
    """

    weights: Tensor
    curvature: Tensor | None = None
    data_loss: Tensor | None = None
    data_gradient: Tensor | None = None

    def mean(self) -> Start:
        """The average of all fits, (r + 1, 1, classes), for a fit on all rows."""
        return Start(self.weights.mean(dim=1, keepdim=True))

    def double(self) -> Start:
        """In double precision."""
        return Start(self.weights.double())


@dataclass
class Fits(Start):
    """K models where the descent ended, with their objectives (K,)."""

    losses: Tensor = field(default_factory=lambda: torch.zeros(0))
    iterations: int = 0


@dataclass(frozen=True)
class Span:
    """Rows that one fit holds out; `fold` is -1 where they are of several folds, or of none."""

    fold: int
    start: int = 0
    stop: int | None = None


class LogisticBatch:
    """K fits on the same rows. `weights` (n, K) says how much a row counts in each fit; `y` (n,) are class codes.

    With `folds` (n,), fit k holds out the rows of fold k, and these are left out of its matrix products too.
    """

    def __init__(
        self,
        basis: Basis,
        y: NDArray[np.int64],
        weights: NDArray[np.float64],
        classes: int,
        *,
        folds: NDArray[np.int64] | None = None,
    ) -> None:
        self._order: NDArray[np.int64] | None = None
        self._spans = [Span(-1)]
        by_fold = None if folds is None else basis.sorted_by(folds)
        if folds is not None and by_fold is not None:
            basis, self._order = by_fold, np.argsort(folds, kind="stable")
            y, weights = y[self._order], weights[self._order]
            ends = np.cumsum(np.bincount(folds)).tolist()
            self._spans = [Span(fold, *ends_of) for fold, ends_of in enumerate(pairwise([0, *ends]))]
        self.basis = basis
        self.dtype = basis.variance.dtype
        self.classes = classes
        self.y = torch.from_numpy(y)
        self.total = torch.from_numpy(weights.sum(axis=0))
        self.weights = (torch.from_numpy(weights) / self.total).to(self.dtype)
        counts = np.stack([np.bincount(y, weights=column, minlength=classes) for column in weights.T])
        self.present = torch.from_numpy(counts > 0)  # (K, classes)
        self._mask = None if self.present.all() else torch.where(self.present, 0.0, ABSENT).to(self.dtype)

    def start(self) -> Start:
        """All weights zero: all classes are as likely."""
        shape = len(self.basis.variance), len(self.total), self.classes
        evenly = (1 - 1 / self.classes) / self.classes
        return Start(torch.zeros(shape, dtype=self.dtype), curvature=torch.full(shape[1:], evenly, dtype=self.dtype))

    def penalties(self, strength: float) -> Tensor:
        """1 / (C sum of weights) of every fit, (K,).

        scikit-learn has one vector of weights for two classes, w; here they have w/2 and -w/2, half its square.
        """
        twice = 2.0 if self.classes == 2 else 1.0
        return (twice / (strength * self.total)).to(self.dtype)

    def evaluate(self, weights: Tensor, fits: Tensor, penalties: Tensor) -> tuple[Tensor, Tensor]:
        """Objectives (k,) float64 and gradients (r + 1, k, classes) of the fits with numbers `fits` (k,)."""
        entered = self.basis.enter(weights.flatten(1)).view(-1, *weights.shape[1:])
        gradient = torch.zeros_like(entered)
        loss = torch.zeros(len(fits), dtype=torch.float64)
        for span in self._spans:
            counted = torch.from_numpy(np.flatnonzero(fits.numpy() != span.fold))
            if len(counted) == len(fits):
                loss += self._add_span(span, entered, fits, gradient)
            elif len(counted):  # the fit that holds these rows out has nothing to learn from them
                part = torch.zeros(len(entered), len(counted), self.classes, dtype=self.dtype)
                loss[counted] += self._add_span(span, entered[:, counted], fits[counted], part)
                gradient[:, counted] += part
        slopes = self.basis.leave(gradient.flatten(1)).view_as(weights)
        slopes[:-1] += penalties[None, :, None] * weights[:-1]
        loss += penalties.double() / 2 * weights[:-1].double().square().sum(dim=(0, 2))
        return loss, slopes

    def _add_span(self, span: Span, entered: Tensor, fits: Tensor, gradient: Tensor) -> Tensor:
        """Losses (k,) of the rows of `span`; their gradient is added to `gradient`."""
        columns = entered.flatten(1)
        sums = gradient.view(len(gradient), -1)
        loss = torch.zeros(len(fits), dtype=torch.float64)
        for which, rows in self.basis.blocks(columns.shape[1], span.start, span.stop):
            share = self.weights[which][:, fits]
            logits = self._logits(rows, columns, fits)
            target = self.y[which][:, None, None].expand(-1, len(fits), 1)
            chance = logits.softmax(dim=2)
            loss += (share * _surprise(logits, chance, target)).sum(dim=0, dtype=torch.float64)
            chance.scatter_add_(2, target, _MINUS_ONE.to(chance).expand(target.shape))
            chance.mul_(share[:, :, None])
            sums.addmm_(rows.T, chance.flatten(1))
        return loss

    def survey(self, weights: Tensor, fit_of_row: NDArray[np.int64] | None) -> tuple[Tensor, NDArray[np.float32]]:
        """Mean p (1 - p) of every fit and class, (K, classes), and logits (n, classes) of each row by its own fit."""
        fits = torch.arange(weights.shape[1])
        entered = self.basis.enter(weights.flatten(1))
        chosen = torch.zeros(len(self.y), dtype=torch.int64)
        if fit_of_row is not None:
            chosen = torch.from_numpy(fit_of_row if self._order is None else fit_of_row[self._order])
        out = torch.empty(len(self.y), self.classes, dtype=torch.float32)
        curvature = torch.zeros(weights.shape[1:], dtype=self.dtype)
        for which, rows in self.basis.blocks(entered.shape[1]):
            logits = self._logits(rows, entered, fits)
            out[which] = logits[torch.arange(len(rows)), chosen[which]].float()
            chance = logits.softmax(dim=2)
            curvature += torch.einsum("nk,nkc->kc", self.weights[which], chance.sub_(chance.square()))
        if self._order is None:
            return curvature, out.numpy()
        as_given = np.empty_like(out.numpy())
        as_given[self._order] = out.numpy()
        return curvature, as_given

    def _logits(self, rows: Tensor, entered: Tensor, fits: Tensor) -> Tensor:
        """(n, k, classes)."""
        logits = (rows @ entered).view(len(rows), len(fits), self.classes)
        return logits if self._mask is None else logits.add_(self._mask[fits])

    def solve(self, strength: float, start: Start, *, tolerance: float = 1e-6, most: int = 500) -> Fits:
        """Minimise all fits at C = `strength` from `start`, to a relative gap of about `tolerance`."""
        return _Descent(self, self.penalties(strength), start, tolerance=tolerance).run(most)


def _surprise(logits: Tensor, chance: Tensor, target: Tensor) -> Tensor:
    """Log loss (n, k) of the classes `target` (n, k, 1)."""
    given = chance.gather(2, target)[:, :, 0]
    if given.min() > _SAFE:
        return -given.log()
    return logits.logsumexp(dim=2) - logits.gather(2, target)[:, :, 0]  # where the probability itself underflows


class _Descent:
    """L-BFGS over a batch whose members keep their own steps and leave as they converge."""

    def __init__(self, batch: LogisticBatch, penalties: Tensor, start: Start, *, tolerance: float) -> None:
        self.batch = batch
        self.tolerance = tolerance
        self.start = start
        self.ended = start.weights.clone()
        self.slopes = torch.zeros_like(start.weights)
        self.losses = torch.zeros(start.weights.shape[1], dtype=torch.float64)
        self.fits = torch.arange(start.weights.shape[1])
        self.all_penalties = self.penalties = penalties
        self.scale = self._scale()
        self.point = start.weights / self.scale
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.memory = max(3, min(MEMORY, MEMORY_FLOATS // max(2 * start.weights.numel(), 1)))

    def _scale(self) -> Tensor:
        """One over the root of the curvature along every coordinate, (r + 1, K, classes)."""
        curvature = self.start.curvature
        if curvature is None:
            curvature, _ = self.batch.survey(self.start.weights, None)
        evenly = (1 - 1 / self.batch.classes) / self.batch.classes
        slopes = self.batch.basis.variance[:, None, None] * curvature.clamp(min=1e-3 * evenly)
        slopes[:-1] += self.penalties[None, :, None]
        return slopes.rsqrt()

    def _begin(self) -> tuple[Tensor, Tensor]:
        """Loss and scaled gradient at the start, from what is known of it."""
        loss, gradient = self.start.data_loss, self.start.data_gradient
        if loss is None or gradient is None:
            return self._evaluate(self.point, slice(None))
        size, pull = self._penalty(self.start.weights)
        return loss + size, (gradient + pull) * self.scale

    def _penalty(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The penalty's part of all objectives (K,) and gradients."""
        pull = self.all_penalties[None, :, None] * weights
        pull[-1] = 0
        return (pull.double() * weights).sum(dim=(0, 2)) / 2, pull

    def run(self, most: int) -> Fits:
        """Iterate until every fit has converged or `most` steps are taken."""
        loss, gradient = self._begin()
        taken = 0
        while len(self.fits) and taken < most:
            direction = self._direction(gradient)
            slope = (gradient * direction).sum(dim=(0, 2)).double()
            uphill = slope >= 0
            if uphill.any():  # rounding spoiled the memory of these fits: steepest descent
                direction[:, uphill] = -gradient[:, uphill]
                slope = (gradient * direction).sum(dim=(0, 2)).double()
            settled = -slope / 2 <= self.tolerance * loss
            if settled.any():
                loss, gradient, direction, slope = self._retire(settled, loss, gradient, direction, slope)
                if not len(self.fits):
                    break
            loss, gradient, stuck = self._step(loss, gradient, direction, slope)
            if stuck.any():
                loss, gradient, _, _ = self._retire(stuck, loss, gradient, direction, slope)
            taken += 1
        self._retire(torch.ones(len(self.fits), dtype=torch.bool), loss, gradient, gradient, loss)
        size, pull = self._penalty(self.ended)
        return Fits(
            weights=self.ended,
            data_loss=self.losses - size,
            data_gradient=self.slopes - pull,
            losses=self.losses,
            iterations=taken,
        )

    def _evaluate(self, point: Tensor, which: Tensor | slice) -> tuple[Tensor, Tensor]:
        scale = self.scale[:, which]
        loss, gradient = self.batch.evaluate(point * scale, self.fits[which], self.penalties[which])
        return loss, gradient * scale

    def _step(self, loss: Tensor, gradient: Tensor, direction: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Backtrack, each fit on its own; fits that no step improves are at the floor of the arithmetic."""
        length = torch.ones(len(self.fits), dtype=self.batch.dtype)
        rounding = 4 * torch.finfo(self.batch.dtype).eps * loss.abs()
        new_loss, new_gradient = loss.clone(), gradient.clone()
        trying = torch.arange(len(self.fits))
        for _ in range(HALVINGS):
            point = self.point[:, trying] + length[trying][None, :, None] * direction[:, trying]
            found, found_gradient = self._evaluate(point, trying)
            wanted = loss[trying] + SUFFICIENT_DECREASE * length[trying] * slope[trying] + rounding[trying]
            good = found <= wanted
            new_loss[trying[good]] = found[good]
            new_gradient[:, trying[good]] = found_gradient[:, good]
            trying, found = trying[~good], found[~good]
            if not len(trying):
                break
            length[trying] = _shorter(length[trying], slope[trying], found - loss[trying])
        stuck = loss - new_loss <= torch.finfo(self.batch.dtype).eps * loss.abs()
        length[trying] = 0
        step = length[None, :, None] * direction
        self._remember(step, new_gradient - gradient)
        self.point = self.point + step
        return new_loss, new_gradient, stuck

    def _remember(self, step: Tensor, change: Tensor) -> None:
        along = (step * change).sum(dim=(0, 2))
        inverse = torch.where(along > 1e-12, 1 / along.clamp(min=1e-12), 0.0)
        self.pairs.append((step, change, inverse))
        del self.pairs[: -self.memory]

    def _direction(self, gradient: Tensor) -> Tensor:
        """The two loops of Nocedal (1980), for every fit at once; a pair with inverse 0 is skipped."""
        direction = -gradient
        passed = []
        for step, change, inverse in reversed(self.pairs):
            part = inverse * (step * direction).sum(dim=(0, 2))
            passed.append(part)
            direction = direction - part[None, :, None] * change
        if self.pairs:
            _, change, inverse = self.pairs[-1]
            size = (inverse * change.square().sum(dim=(0, 2))).clamp(min=0)
            direction = direction * torch.where(size > 0, 1 / size, 1.0)[None, :, None]
        for (step, change, inverse), part in zip(self.pairs, reversed(passed), strict=True):
            back = inverse * (change * direction).sum(dim=(0, 2))
            direction = direction + (part - back)[None, :, None] * step
        return direction

    def _retire(self, out: Tensor, loss: Tensor, *state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keep the result of the fits marked `out` and drop them from the batch; gives back the rest of `state`."""
        gradient, direction, slope = state
        self.ended[:, self.fits[out]] = self.point[:, out] * self.scale[:, out]
        self.slopes[:, self.fits[out]] = gradient[:, out] / self.scale[:, out]
        self.losses[self.fits[out]] = loss[out]
        rest = ~out
        self.fits, self.penalties = self.fits[rest], self.penalties[rest]
        self.point, self.scale = self.point[:, rest], self.scale[:, rest]
        self.pairs = [(step[:, rest], change[:, rest], inverse[rest]) for step, change, inverse in self.pairs]
        return loss[rest], gradient[:, rest], direction[:, rest], slope[rest]


def _shorter(length: Tensor, slope: Tensor, rise: Tensor) -> Tensor:
    """Where the parabola through both losses and the slope is least, kept within a tenth and a half of the step."""
    parabola = -slope * length.double() ** 2 / (2 * (rise - slope * length)).clamp(min=1e-30)
    best = torch.where(torch.isfinite(rise), parabola, 0.0).to(length.dtype)
    return torch.minimum(torch.maximum(best, 0.1 * length), 0.5 * length)


def fold_weights(weights: NDArray[np.float64], folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Row weights (n, K): those of `weights` (n,), zero in the fit that holds the row out."""
    held = folds[:, None] == np.arange(folds.max() + 1)
    return np.where(held, 0.0, weights[:, None])
