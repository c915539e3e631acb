"""Linear models with an L2 penalty, many at once: all folds of a penalty in one batch, each penalty from the last.

    minimise   sum_i w_i loss(i) / sum_i w_i  +  |W|^2 / (2 C sum_i w_i)          (C as in scikit-learn)

The loss is one of `losses.py`: log loss for logistic regression, squared hinge for support vector machines. The way is
L-BFGS in coordinates where features are uncorrelated. The K fits of a batch share every matrix product: scores of a
block of rows are (K classes, r + 1) x (r + 1, rows), a layout in which products with few classes are fast too. A row
counts in a fit by its weight there, which is zero in the fold that holds it out. Fits that have converged cost nothing.

Along a path of penalties, each descent begins where the line through the last two optima leads: weights change almost
evenly with log C. It keeps what the earlier ones learned of the curvature, of which only the penalty's part changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from math import log
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.heads.calibration import ABSENT
from pipeline.heads.solvers.basis import Basis
from pipeline.heads.solvers.losses import Loss

#: Pairs that L-BFGS remembers, and the floats all of them may take.
MEMORY, MEMORY_FLOATS = 12, 100_000_000
SUFFICIENT_DECREASE = 1e-4
HALVINGS = 12
_SAFE = 1e-30

#: A step (K, classes, r + 1) and the change of the data's gradient along it; the penalty's is known anyway.
Pair = tuple[Tensor, Tensor]
#: Rows, by slice or by number, the fold that they all are in (-1: none), and their features.
Part = tuple[int, slice | Tensor, Tensor]


@dataclass(frozen=True)
class Fits:
    """K models, weights (K, classes, r + 1) with the bias last, and what the descent to the next penalty takes along.

    `losses` (K,) are objectives, `seen` the last point and its gradient, `earlier` the models at `earlier_strength`.
    """

    weights: Tensor
    strength: float | None = None
    losses: Tensor = field(default_factory=lambda: torch.zeros(0))
    iterations: int = 0
    pairs: tuple[Pair, ...] = ()
    seen: Pair | None = None
    earlier: Tensor | None = None
    earlier_strength: float | None = None

    def ahead(self, strength: float) -> Tensor:
        """Where the line through the last two models, drawn over log C, is at C = `strength`."""
        if self.earlier is None or self.strength is None or self.earlier_strength in (None, self.strength):
            return self.weights
        share = log(strength / self.strength) / log(self.strength / self.earlier_strength)
        return self.weights + share * (self.weights - self.earlier)

    def mean(self) -> Fits:
        """Average all models, for a fit on all rows, whose curvature is much the same."""
        pairs = tuple((step.mean(dim=0, keepdim=True), change.mean(dim=0, keepdim=True)) for step, change in self.pairs)
        return Fits(self.weights.mean(dim=0, keepdim=True), pairs=pairs)

    def double(self) -> Fits:
        """Return the models in double precision, to go on from."""
        return Fits(self.weights.double(), pairs=tuple((step.double(), change.double()) for step, change in self.pairs))


class Batch:
    """K fits of `loss` on the same rows: `weights` (n, K) is how much a row counts in each, `y` (n,) are class codes.

    With `folds` (n,), fit k holds out the rows of fold k, and these are left out of its matrix products too. All
    tensors are on the device of `basis`.
    """

    def __init__(
        self,
        basis: Basis,
        y: NDArray[np.int64],
        weights: NDArray[np.float64],
        classes: int,
        *,
        loss: Loss,
        folds: NDArray[np.int64] | None = None,
    ) -> None:
        self.loss = loss
        device = basis.variance.device
        counts = np.stack([np.bincount(y, weights=column, minlength=classes) for column in weights.T])
        self.present = counts > 0  # (K, classes)
        self._order: NDArray[np.int64] | None = None
        self._spans: list[tuple[int, int, int | None]] = [(-1, 0, None)]
        by_fold = None if folds is None else basis.sorted_by(folds)
        if folds is not None and by_fold is not None:
            basis, self._order = by_fold, np.argsort(folds, kind="stable")
            y, weights, folds = y[self._order], weights[self._order], folds[self._order]
            ends = np.cumsum(np.bincount(folds)).tolist()
            self._spans = [(fold, *span) for fold, span in enumerate(pairwise([0, *ends]))]
        self._folds = None if folds is None else torch.from_numpy(folds).to(device)
        self.basis = basis
        self.classes = classes
        self.y = torch.from_numpy(y).to(device)
        self.total = torch.from_numpy(weights.sum(axis=0)).to(device)
        self.weights = torch.from_numpy(weights / weights.sum(axis=0)).T.to(basis.variance).contiguous()
        mask = torch.from_numpy(np.where(self.present, 0.0, ABSENT)).to(basis.variance)
        self._mask = None if self.present.all() else mask[:, :, None]

    def start(self) -> Fits:
        """All weights zero: all classes are as likely."""
        return Fits(self.basis.variance.new_zeros(len(self.total), self.classes, len(self.basis.variance)))

    def penalties(self, strength: float) -> Tensor:
        """1 / (C sum of weights) of every fit, (K,)."""
        return (self.loss.pull(self.classes) / (strength * self.total)).to(self.basis.variance)

    def evaluate(self, weights: Tensor, fits: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (k,) in float64 and gradients (k, classes, r + 1) of the fits with numbers `fits` (k,)."""
        columns = self._enter(weights)
        gradient = torch.zeros_like(columns)
        loss = torch.zeros(len(fits), dtype=torch.float64, device=fits.device)
        for fold, parts in groupby(self._parts(columns[..., 0].numel()), key=itemgetter(0)):
            counted = (fits != fold).nonzero()[:, 0]  # the fit that holds these rows out has nothing to learn from them
            if not len(counted):
                continue
            some, sums = columns[counted], torch.zeros_like(columns[counted])
            for _, which, rows in parts:
                loss[counted] += self._add_rows(which, rows, some, fits[counted], sums.flatten(0, 1))
            gradient[counted] += sums
        return loss, self.basis.leave(gradient.flatten(0, 1).T).T.reshape(weights.shape)

    def _enter(self, weights: Tensor) -> Tensor:
        """Weights (k, classes, D + 1) of the rows as the basis has them."""
        entered = self.basis.enter(weights.flatten(0, 1).T).T.contiguous()
        return entered.view(*weights.shape[:2], -1)

    def _parts(self, columns: int) -> Iterator[Part]:
        """All rows, those of a part in one fold."""
        for fold, start, stop in self._spans:
            for which, rows in self.basis.blocks(columns, start, stop):
                if fold >= 0 or self._folds is None:
                    yield fold, which, rows
                    continue
                of_rows = self._folds[which]
                for one in range(len(self.total)):
                    mine = (of_rows == one).nonzero()[:, 0]
                    if len(mine):
                        yield one, mine + which.start, rows[mine]

    def _add_rows(self, which: slice | Tensor, rows: Tensor, columns: Tensor, fits: Tensor, sums: Tensor) -> Tensor:
        """Losses (k,) of `rows` (n, r + 1); their gradient is added to `sums` (k classes, r + 1)."""
        share = self.weights[:, which][fits]
        logits = self._logits(rows, columns, fits)
        target = self.y[which].expand(len(fits), 1, -1)
        losses, slopes = self.loss.evaluate(logits, target)
        loss = (share * losses).sum(dim=1, dtype=torch.float64)
        slopes.mul_(share[:, None])
        sums.addmm_(slopes.flatten(0, 1), rows)
        return loss

    def _logits(self, rows: Tensor, columns: Tensor, fits: Tensor) -> Tensor:
        """(k, classes, n) of rows (n, r + 1)."""
        logits = (columns.flatten(0, 1) @ rows.T).view(len(fits), self.classes, len(rows))
        return logits if self._mask is None else logits.add_(self._mask[fits])

    def held_out(self, weights: Tensor) -> NDArray[np.float32]:
        """Logits (n, classes) of each row by the fit that holds it out; for a batch with `folds`."""
        columns = self._enter(weights)
        out = torch.empty(len(self.y), self.classes, device=weights.device)
        for fold, which, rows in self._parts(self.classes):
            fits = torch.tensor([fold], device=weights.device)
            out[which] = self._logits(rows, columns[fits], fits)[0].T.float()
        found = out.cpu().numpy()
        if self._order is None:
            return found
        as_given = np.empty_like(found)
        as_given[self._order] = found
        return as_given

    def solve(self, strength: float, start: Fits, *, tolerance: float = 1e-6, most: int = 500) -> Fits:
        """Minimise all fits at C = `strength` from `start`, to a relative gap of about `tolerance`."""
        return _Descent(self, strength, start).run(tolerance, most)


class _Descent:
    """L-BFGS over a batch whose members keep their own steps and are left alone as they converge."""

    def __init__(self, batch: Batch, strength: float, start: Fits) -> None:
        self.batch = batch
        self.strength = strength
        self.start = start
        variance = batch.basis.variance
        self.pull = batch.penalties(strength)[:, None, None].repeat(1, 1, len(variance))
        self.pull[..., -1] = 0  # nothing pulls the bias
        self.curvature = variance * batch.loss.curvature(batch.classes) + self.pull
        self.memory = max(3, min(MEMORY, MEMORY_FLOATS // (3 * start.weights.numel())))
        self.pairs: list[_Secant] = []
        for step, change in start.pairs:
            self._remember(step, change)
        self.point = start.ahead(strength)
        self.losses, self.slopes = self._evaluate(self.point, torch.arange(len(self.point), device=variance.device))
        if start.seen is not None:
            self._remember(self.point - start.seen[0], self.slopes - start.seen[1])

    def run(self, tolerance: float, most: int) -> Fits:
        """Iterate until every fit has converged or `most` steps are taken.

        The step that is predicted to gain less than the tolerance is taken without looking.
        """
        last = torch.zeros_like(self.point)
        running = torch.ones(len(self.point), dtype=torch.bool, device=self.point.device)
        taken = 0
        while taken < most:
            gradient = self.slopes + self.pull * self.point
            direction = self._direction(gradient)
            gain = -(gradient * direction).sum(dim=(1, 2)).double()
            settled = running & (gain >= 0) & (gain / 2 <= tolerance * self.losses) & (taken > 0)
            last[settled] = direction[settled]
            running &= ~settled
            if not running.any():
                break
            direction, gain = self._downhill(gradient, direction, gain)
            running &= self._step(direction, gain, running.nonzero()[:, 0])
            taken += 1
        return Fits(
            weights=self.point + last,
            strength=self.strength,
            losses=self.losses,
            iterations=taken,
            pairs=tuple((pair.step, pair.change) for pair in self.pairs),
            seen=(self.point, self.slopes),
            earlier=None if self.start.strength is None else self.start.weights,
            earlier_strength=self.start.strength,
        )

    def _evaluate(self, point: Tensor, fits: Tensor) -> tuple[Tensor, Tensor]:
        """Objectives (k,), and gradients of the data's part."""
        loss, slopes = self.batch.evaluate(point, fits)
        return loss + (self.pull[fits] * point.square()).sum(dim=(1, 2), dtype=torch.float64) / 2, slopes

    def _downhill(self, gradient: Tensor, direction: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        """Where rounding spoiled the memory of a fit, the steepest direction."""
        uphill = (gain <= 0)[:, None, None]
        direction = torch.where(uphill, -gradient / self.curvature, direction)
        return direction, -(gradient * direction).sum(dim=(1, 2)).double()

    def _step(self, direction: Tensor, gain: Tensor, trying: Tensor) -> Tensor:
        """Backtrack, each fit on its own; False for those that no step improves: the floor of the arithmetic."""
        before, point, slopes, losses = self.losses, self.point, self.slopes, self.losses.clone()
        self.point, self.slopes = point.clone(), slopes.clone()
        eps = torch.finfo(point.dtype).eps
        length = torch.ones_like(losses)
        for _ in range(HALVINGS):
            here = point[trying] + length[trying, None, None].to(point) * direction[trying]
            found, found_slopes = self._evaluate(here, trying)
            rise = found - before[trying]
            good = rise <= 4 * eps * before[trying].abs() - SUFFICIENT_DECREASE * length[trying] * gain[trying]
            better = trying[good]
            losses[better], self.point[better], self.slopes[better] = found[good], here[good], found_slopes[good]
            trying, rise = trying[~good], rise[~good]
            if not len(trying):
                break
            length[trying] = _shorter(length[trying], gain[trying], rise)
        self.losses = losses
        self._remember(self.point - point, self.slopes - slopes)
        return before - losses > eps * before.abs()

    def _remember(self, step: Tensor, change: Tensor) -> None:
        self.pairs.append(_Secant.of(step, change, self.pull, self.curvature))
        del self.pairs[: -self.memory]

    def _direction(self, gradient: Tensor) -> Tensor:
        """Run the two loops of Nocedal (1980) for every fit at once; a pair with inverse 0 is skipped."""
        direction, passed, size = -gradient, [], torch.ones_like(gradient[:, :1, :1])
        for pair in reversed(self.pairs):
            part = pair.inverse * _dot(pair.step, direction)
            passed.append(part)
            direction.addcmul_(part, pair.curved, value=-1)
        for pair in self.pairs:  # the last one that a fit has
            size = torch.where(pair.inverse > 0, pair.size, size)
        direction *= size / self.curvature
        for pair, part in zip(self.pairs, reversed(passed), strict=True):
            direction.addcmul_(part - pair.inverse * _dot(pair.curved, direction), pair.step)
        return direction


@dataclass(frozen=True)
class _Secant:
    """A pair at one penalty: `curved` is the change of the whole gradient, `inverse` 1 / (step . curved), or 0.

    `size` (K, 1, 1) is how much longer a step is than the one that the curvature of the basis suggests.
    """

    step: Tensor
    change: Tensor
    curved: Tensor
    inverse: Tensor
    size: Tensor

    @classmethod
    def of(cls, step: Tensor, change: Tensor, pull: Tensor, curvature: Tensor) -> _Secant:
        curved = change + pull * step
        along = _dot(step, curved)
        rounding = torch.finfo(step.dtype).eps * _dot(step, step).sqrt() * _dot(curved, curved).sqrt()
        size = along / _dot(curved, curved / curvature).clamp(min=_SAFE)
        return cls(step, change, curved, torch.where(along > rounding, 1 / along, 0.0), size)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Of every fit, (K, 1, 1)."""
    return one.flatten(1)[:, None] @ other.flatten(1)[:, :, None]


def _shorter(length: Tensor, gain: Tensor, rise: Tensor) -> Tensor:
    """Where the parabola through both losses and the slope is least, kept within a tenth and a half of the step."""
    parabola = gain * length**2 / (2 * (rise + gain * length)).clamp(min=_SAFE)
    best = torch.where(torch.isfinite(rise), parabola, 0.0)
    return torch.minimum(torch.maximum(best, 0.1 * length), 0.5 * length)


def fold_weights(weights: NDArray[np.float64], folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Row weights (n, K): those of `weights` (n,), zero in the fit that holds the row out."""
    held = folds[:, None] == np.arange(folds.max() + 1)
    return np.where(held, 0.0, weights[:, None])
