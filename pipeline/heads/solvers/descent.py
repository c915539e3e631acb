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
from math import log, prod
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.calibration import ABSENT
from pipeline.heads.solvers.arrays import Array, cast, device_of, double, library, places, put, take_home, zeros
from pipeline.heads.solvers.basis import Basis
from pipeline.heads.solvers.losses import Loss

#: Pairs that L-BFGS remembers, and the floats all of them may take.
MEMORY, MEMORY_FLOATS = 12, 100_000_000
SUFFICIENT_DECREASE = 1e-4
HALVINGS = 12
_SAFE = 1e-30

#: A step (K, classes, r + 1) and the change of the data's gradient along it; the penalty's is known anyway.
Pair = tuple[Array, Array]
#: Rows, by slice or by number, the fold that they all are in (-1: none), and their features.
Part = tuple[int, slice | Array, Array]


@dataclass(frozen=True)
class Fits:
    """K models, weights (K, classes, r + 1) with the bias last, and what the descent to the next penalty takes along.

    `losses` (K,) are objectives, `seen` the last point and its gradient, `earlier` the models at `earlier_strength`.
    """

    weights: Array
    strength: float | None = None
    losses: Array = field(default_factory=lambda: np.zeros(0))
    iterations: int = 0
    pairs: tuple[Pair, ...] = ()
    seen: Pair | None = None
    earlier: Array | None = None
    earlier_strength: float | None = None

    def ahead(self, strength: float) -> Array:
        """Where the line through the last two models, drawn over log C, is at C = `strength`."""
        if self.earlier is None or self.strength is None or self.earlier_strength in (None, self.strength):
            return self.weights
        share = log(strength / self.strength) / log(self.strength / self.earlier_strength)
        return self.weights + share * (self.weights - self.earlier)

    def mean(self) -> Fits:
        """Average all models, for a fit on all rows, whose curvature is much the same."""
        pairs = tuple(
            (step.mean(axis=0, keepdims=True), change.mean(axis=0, keepdims=True)) for step, change in self.pairs
        )
        return Fits(self.weights.mean(axis=0, keepdims=True), pairs=pairs)

    def double(self) -> Fits:
        """Return the models in double precision, to go on from."""
        return Fits(double(self.weights), pairs=tuple((double(step), double(change)) for step, change in self.pairs))


class Batch:
    """K fits of `loss` on the same rows: `weights` (n, K) is how much a row counts in each, `y` (n,) are class codes.

    With `folds` (n,), fit k holds out the rows of fold k, and these are left out of its matrix products too. All
    arrays are where those of `basis` are.
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
        device = device_of(basis.variance)
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
        self._folds = None if folds is None else put(folds, device)
        self.basis = basis
        self.classes = classes
        self.y = put(y, device)
        self.total = put(weights.sum(axis=0), device)
        self.weights = cast(put(np.ascontiguousarray((weights / weights.sum(axis=0)).T), device), basis.variance)
        mask = cast(put(np.where(self.present, 0.0, ABSENT), device), basis.variance)
        self._mask = None if self.present.all() else mask[:, :, None]

    def start(self) -> Fits:
        """All weights zero: all classes are as likely."""
        return Fits(zeros((len(self.total), self.classes, len(self.basis.variance)), self.basis.variance))

    def penalties(self, strength: float) -> Array:
        """1 / (C sum of weights) of every fit, (K,)."""
        return cast(self.loss.pull(self.classes) / (strength * self.total), self.basis.variance)

    def evaluate(self, weights: Array, fits: Array) -> tuple[Array, Array]:
        """Losses (k,) in float64 and gradients (k, classes, r + 1) of the fits with numbers `fits` (k,)."""
        columns = self._enter(weights)
        gradient = library(columns).zeros_like(columns)
        loss = zeros((len(fits),), self.total)
        for fold, parts in groupby(self._parts(prod(columns.shape[:2])), key=itemgetter(0)):
            counted = places(fits != fold)  # the fit that holds these rows out has nothing to learn from them
            if not len(counted):
                continue
            some = columns[counted]
            sums = library(some).zeros_like(some).reshape(-1, some.shape[-1])
            for _, which, rows in parts:
                loss[counted] += self._add_rows(which, rows, some, fits[counted], sums)
            gradient[counted] += sums.reshape(some.shape)
        return loss, self.basis.leave(gradient.reshape(-1, gradient.shape[-1]).T).T.reshape(weights.shape)

    def _enter(self, weights: Array) -> Array:
        """Weights (k, classes, D + 1) of the rows as the basis has them."""
        if self.basis.rotation is None:
            return weights
        entered = self.basis.enter(weights.reshape(-1, weights.shape[-1]).T).T
        return entered.reshape(*weights.shape[:2], -1)

    def _parts(self, columns: int) -> Iterator[Part]:
        """All rows, those of a part in one fold."""
        for fold, start, stop in self._spans:
            for which, rows in self.basis.blocks(columns, start, stop):
                if fold >= 0 or self._folds is None:
                    yield fold, which, rows
                    continue
                of_rows = self._folds[which]
                for one in range(len(self.total)):
                    mine = places(of_rows == one)
                    if len(mine):
                        yield one, mine + which.start, rows[mine]

    def _add_rows(self, which: slice | Array, rows: Array, columns: Array, fits: Array, sums: Array) -> Array:
        """Losses (k,) of `rows` (n, r + 1); their gradient is added to `sums` (k classes, r + 1)."""
        share = self.weights[:, which][fits]
        losses, slopes = self.loss.evaluate(self._logits(rows, columns, fits), self.y[which])
        slopes *= share[:, None]
        sums += slopes.reshape(-1, len(rows)) @ rows
        return (share * losses).sum(axis=1, dtype=self.total.dtype)

    def _logits(self, rows: Array, columns: Array, fits: Array) -> Array:
        """(k, classes, n) of rows (n, r + 1)."""
        logits = (columns.reshape(-1, columns.shape[-1]) @ rows.T).reshape(len(fits), self.classes, len(rows))
        return logits if self._mask is None else logits + self._mask[fits]

    def held_out(self, weights: Array) -> NDArray[np.float32]:
        """Logits (n, classes) of each row by the fit that holds it out; for a batch with `folds`."""
        columns = self._enter(weights)
        out = zeros((len(self.y), self.classes), weights)
        for fold, which, rows in self._parts(self.classes):
            fits = put(np.array([fold]), device_of(weights))
            out[which] = self._logits(rows, columns[fits], fits)[0].T
        found = take_home(out).astype(np.float32)
        if self._order is None:
            return found
        as_given = np.empty_like(found)
        as_given[self._order] = found
        return as_given

    def solve(self, strength: float, start: Fits, *, tolerance: float = 1e-6, most: int = 500) -> Fits:
        """Minimise all fits at C = `strength` from `start`, to a relative gap of about `tolerance`."""
        with np.errstate(over="ignore", invalid="ignore"):  # a step that is too long is seen by its loss
            return _Descent(self, strength, start).run(tolerance, most)


class _Descent:
    """L-BFGS over a batch whose members keep their own steps and are left alone as they converge."""

    def __init__(self, batch: Batch, strength: float, start: Fits) -> None:
        self.batch = batch
        self.strength = strength
        self.start = start
        variance = batch.basis.variance
        xp = self.library = library(variance)
        self.pull = batch.penalties(strength)[:, None, None] * xp.ones_like(variance)
        self.pull[..., -1] = 0  # nothing pulls the bias
        self.curvature = variance * batch.loss.curvature(batch.classes) + self.pull
        self.memory = max(3, min(MEMORY, MEMORY_FLOATS // (3 * prod(start.weights.shape))))
        self.pairs: list[_Secant] = []
        for step, change in start.pairs:
            self._remember(step, change)
        self.point = start.ahead(strength)
        self.losses, self.slopes = self._evaluate(self.point, put(np.arange(len(self.point)), device_of(variance)))
        if start.seen is not None:
            self._remember(self.point - start.seen[0], self.slopes - start.seen[1])

    def run(self, tolerance: float, most: int) -> Fits:
        """Iterate until every fit has converged or `most` steps are taken.

        The step that is predicted to gain less than the tolerance is taken without looking.
        """
        last = self.library.zeros_like(self.point)
        running = self.library.ones_like(self.losses) > 0
        taken = 0
        while taken < most:
            gradient = self.slopes + self.pull * self.point
            direction = self._direction(gradient)
            gain = -double((gradient * direction).sum(axis=(1, 2)))
            settled = running & (gain >= 0) & (gain / 2 <= tolerance * self.losses) & (taken > 0)
            last[settled] = direction[settled]
            running &= ~settled
            if not running.any():
                break
            direction, gain = self._downhill(gradient, direction, gain)
            running &= self._step(direction, gain, places(running))
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

    def _evaluate(self, point: Array, fits: Array) -> tuple[Array, Array]:
        """Objectives (k,), and gradients of the data's part."""
        loss, slopes = self.batch.evaluate(point, fits)
        penalties = (self.pull[fits] * self.library.square(point)).sum(axis=(1, 2), dtype=loss.dtype)
        return loss + penalties / 2, slopes

    def _downhill(self, gradient: Array, direction: Array, gain: Array) -> tuple[Array, Array]:
        """Where rounding spoiled the memory of a fit, the steepest direction."""
        uphill = (gain <= 0)[:, None, None]
        direction = self.library.where(uphill, -gradient / self.curvature, direction)
        return direction, -double((gradient * direction).sum(axis=(1, 2)))

    def _step(self, direction: Array, gain: Array, trying: Array) -> Array:
        """Backtrack, each fit on its own; False for those that no step improves: the floor of the arithmetic."""
        xp, before, point, slopes = self.library, self.losses, self.point, self.slopes
        losses, self.point, self.slopes = (xp.zeros_like(one) + one for one in (before, point, slopes))
        floor = 4 * xp.finfo(point.dtype).eps * xp.abs(before)
        length = xp.ones_like(losses)
        for _ in range(HALVINGS):
            here = point[trying] + cast(length, point)[trying, None, None] * direction[trying]
            found, found_slopes = self._evaluate(here, trying)
            rise = found - before[trying]
            good = rise <= floor[trying] - SUFFICIENT_DECREASE * length[trying] * gain[trying]
            better = trying[good]
            losses[better], self.point[better], self.slopes[better] = found[good], here[good], found_slopes[good]
            trying, rise = trying[~good], rise[~good]
            if not len(trying):
                break
            length[trying] = _shorter(length[trying], gain[trying], rise)
        self.losses = losses
        self._remember(self.point - point, self.slopes - slopes)
        return before - losses > floor / 4

    def _remember(self, step: Array, change: Array) -> None:
        self.pairs.append(_Secant.of(step, change, self.pull, self.curvature))
        del self.pairs[: -self.memory]

    def _direction(self, gradient: Array) -> Array:
        """Run the two loops of Nocedal (1980) for every fit at once; a pair with inverse 0 is skipped."""
        direction, passed, size = -gradient, [], self.library.ones_like(gradient[:, :1, :1])
        for pair in reversed(self.pairs):
            part = pair.inverse * _dot(pair.step, direction)
            passed.append(part)
            direction -= part * pair.curved
        for pair in self.pairs:  # the last one that a fit has
            size = self.library.where(pair.inverse > 0, pair.size, size)
        direction *= size / self.curvature
        for pair, part in zip(self.pairs, reversed(passed), strict=True):
            direction += (part - pair.inverse * _dot(pair.curved, direction)) * pair.step
        return direction


@dataclass(frozen=True)
class _Secant:
    """A pair at one penalty: `curved` is the change of the whole gradient, `inverse` 1 / (step . curved), or 0.

    `size` (K, 1, 1) is how much longer a step is than the one that the curvature of the basis suggests.
    """

    step: Array
    change: Array
    curved: Array
    inverse: Array
    size: Array

    @classmethod
    def of(cls, step: Array, change: Array, pull: Array, curvature: Array) -> _Secant:
        xp = library(step)
        curved = change + pull * step
        along = _dot(step, curved)
        rounding = xp.finfo(step.dtype).eps * xp.sqrt(_dot(step, step)) * xp.sqrt(_dot(curved, curved))
        size = along / xp.clip(_dot(curved, curved / curvature), _SAFE, None)
        told = along > rounding
        return cls(step, change, curved, xp.where(told, 1 / xp.where(told, along, 1.0), 0.0), size)


def _mean(fits: Array) -> Array:
    """Of all fits, (1, ...)."""
    return fits.mean(axis=0, keepdims=True)


def _dot(one: Array, other: Array) -> Array:
    """Of every fit, (K, 1, 1)."""
    return one.reshape(len(one), 1, -1) @ other.reshape(len(other), -1, 1)


def _shorter(length: Array, gain: Array, rise: Array) -> Array:
    """Where the parabola through both losses and the slope is least, kept within a tenth and a half of the step."""
    xp = library(length)
    parabola = gain * length**2 / xp.clip(2 * (rise + gain * length), _SAFE, None)
    best = xp.where(xp.isfinite(rise), parabola, 0.0)
    return xp.minimum(xp.maximum(best, 0.1 * length), 0.5 * length)


def fold_weights(weights: NDArray[np.float64], folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Row weights (n, K): those of `weights` (n,), zero in the fit that holds the row out."""
    held = folds[:, None] == np.arange(folds.max() + 1)
    return np.where(held, 0.0, weights[:, None])
