"""One measure by which every search chooses: log loss at the best temperature, or mean squared error.

A setting that was chosen by its out-of-fold scores looks better on them than it is. Of numbers, `Best` therefore keeps
for each fold the scores of the setting that is best on the other folds: what the search, choice included, says of rows
that had no say in it. Prediction intervals are made of those. Of classes it keeps the scores of the best setting, since
those of others have another scale, and the temperature that is fitted on them is one of scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.calibration import fit_inverse_temperature, softmax
from pipeline.heads.contract import Problem
from pipeline.metrics import log_losses

#: Rows that decide a temperature while settings are compared; the final one is fitted on all.
_ENOUGH = 2000


class Best:
    """The best of the settings that are offered, and out-of-fold `scores` (n, C) or (n,), NaN where none are known.

    A setting is better only if its loss is less by the share `progress`, and by so many standard `errors` of the
    differences from row to row.
    """

    def __init__(
        self,
        problem: Problem,
        folds: NDArray[np.int64],
        known: NDArray[np.bool_],
        *,
        progress: float = 0.0,
        errors: float = 0.0,
    ) -> None:
        self._problem = problem
        self._folds = folds
        self.known = known
        self._keep = 1 - progress
        self._errors = errors
        self._kept: NDArray[np.float64] | None = None
        self._least = np.full(int(folds.max()) + 1, np.inf)
        self.loss = np.inf
        self.setting: dict[str, Any] = {}
        outputs = () if problem.classes is None else (problem.classes,)
        self.scores: NDArray[np.float64] = np.full((len(folds), *outputs), np.nan)

    def offer(self, setting: dict[str, Any], scores: NDArray[np.floating]) -> dict[str, float]:
        """Measure what `setting` with its out-of-fold `scores` is worth, and keep it if it is better."""
        losses = row_losses(self._problem, scores, self.known)
        found = self._measures(losses, scores)
        best = found["loss"] < self.loss * self._keep and self._clearly_less(losses)
        if best:
            self.loss, self.setting, self._kept = found["loss"], setting, losses
        folds = np.full(len(self._least), best) if self._problem.classes else self._best_elsewhere(losses)
        rows = folds[self._folds] & self.known
        self.scores[rows] = scores[rows]
        return found

    def _clearly_less(self, losses: NDArray[np.float64]) -> bool:
        """Whether `losses` (k,) are below those of the setting that is kept by so many standard errors."""
        if self._kept is None or not self._errors:
            return True
        gain = self._problem.weights[self.known] * (self._kept - losses)
        return bool(gain.mean() > self._errors * gain.std() / len(gain) ** 0.5)

    def _measures(self, losses: NDArray[np.float64], scores: NDArray[np.floating]) -> dict[str, float]:
        """Measure the scores of the images that are known; `loss` decides."""
        problem, known = self._problem, self.known
        loss = float(np.average(losses, weights=problem.weights[known]))
        if problem.classes is None:
            return {"loss": loss, "rmse": loss**0.5}
        right = scores[known].argmax(axis=1) == problem.y[known]
        return {"loss": loss, "accuracy": float(np.average(right, weights=problem.weights[known]))}

    def _best_elsewhere(self, losses: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return the folds (F,) outside which no setting was better yet."""
        weights, folds = self._problem.weights[self.known], self._folds[self.known]
        total = np.bincount(folds, weights=weights * losses, minlength=len(self._least))
        weight = np.bincount(folds, weights=weights, minlength=len(self._least))
        elsewhere = (total.sum() - total) / (weight.sum() - weight)
        better = elsewhere < self._least * self._keep
        self._least[better] = elsewhere[better]
        return np.asarray(better)


def row_losses(problem: Problem, scores: NDArray[np.floating], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Loss (k,) of each image that is known, from scores (n, C) at their best temperature, or values (n,)."""
    y, weights = problem.y[known], problem.weights[known]
    said = np.asarray(scores[known], dtype=np.float64)
    if problem.classes is None:
        return losses_of(y, said)
    some = slice(None, None, max(len(y) // _ENOUGH, 1))
    chances = softmax(said, fit_inverse_temperature(said[some], y[some], weights[some]))
    return losses_of(y, chances)


def losses_of(y: NDArray[Any], answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Loss (n,) of answers: log loss of probabilities (n, C), squared error of values (n,)."""
    if answers.ndim == 1:
        return np.asarray(np.square(answers - y))
    return log_losses(answers[np.arange(len(y)), y])
