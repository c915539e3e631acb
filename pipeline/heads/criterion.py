"""One measure by which every search chooses: log loss at the best temperature, or mean squared error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.calibration import fit_sharpness, softmax
from pipeline.heads.contract import Problem

#: Rows that decide a temperature while settings are compared; the final one is fitted on all.
_ENOUGH = 2000


def measure(problem: Problem, scores: NDArray[np.floating], known: NDArray[np.bool_]) -> dict[str, float]:
    """What out-of-fold `scores` (n, C) or (n,) are worth on the images that are `known`; `loss` decides."""
    y, weights = problem.y[known], problem.weights[known]
    if problem.classes is None:
        error = float(np.average(np.square(scores[known] - y), weights=weights))
        return {"loss": error, "rmse": error**0.5}
    said = np.asarray(scores[known], dtype=np.float64)
    some = slice(None, None, max(len(y) // _ENOUGH, 1))
    chances = softmax(said, fit_sharpness(said[some], y[some], weights[some]))
    losses = -np.log(np.maximum(chances[np.arange(len(y)), y], 1e-15))
    right = said.argmax(axis=1) == y
    return {
        "loss": float(np.average(losses, weights=weights)),
        "accuracy": float(np.average(right, weights=weights)),
    }
