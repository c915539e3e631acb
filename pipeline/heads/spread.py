"""Prediction intervals of numbers: how far off a head is on rows that it did not see, and where it is further off.

Half the width of an interval is a quantile of errors out of fold, each divided by how large errors are for such
features as a ridge regression of their logarithm tells (normalised residuals: Papadopoulos et al., 2008; Lei et al.,
2018). Where that tells nothing, all intervals are equally wide.

Each fold is held out whole: the exact leave-one-out of ridge is right on average and far off where there are about as
many rows as features, since it also chooses the penalty. The errors are those of models of fewer rows, and the settings
were chosen by them, so no theorem promises the coverage; `tests/benchmarks/intervals.py` measures it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.calibration import interval_half_width
from pipeline.heads.contract import Head, Problem, spread_factors
from pipeline.heads.ridge import RidgeHead
from pipeline.progress import unwatched

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

#: Errors count as this share of the median one at least: the logarithm of none at all would decide everything.
SMALLEST = 0.1
#: By how much intervals of n rows are wider than the quantile of their errors, times n squared: the penalty was chosen
#: by these errors, which makes those of a dozen rows too small. Measured.
FEW = 30
#: Standard errors by which telling the spread has to be better than not to.
CLEAR = 2.0


def fit_interval(head: Head, problem: Problem) -> None:
    """Give a `head` of numbers, trained on `problem`, intervals that cover its share of new rows, or none and a notice.

    Nothing is changed where the head has no scores out of fold.
    """
    folds = problem.folds(head.settings.cv, head.settings.seed)
    scores = None if folds is None else head.fold_scores(problem, folds)
    if folds is None or scores is None:
        return
    known = np.isfinite(scores)
    errors = np.abs(scores - problem.y)
    head.spread, logarithms = _spread(problem, np.where(known, errors, np.nan), folds)
    half = interval_half_width(errors[known] / spread_factors(logarithms[known]), head.coverage)
    head.interval_half_width = None if half is None else half * (1 + FEW / int(known.sum()) ** 2)
    head.search.scores = scores


def _spread(problem: Problem, errors: Array, folds: Codes) -> tuple[RidgeHead | None, Array]:
    """Fit the logarithm of `errors` (n,) about its mean; return it with what it says out of fold, or None and zeros."""
    nothing = np.zeros(len(errors))
    median = float(np.nanmedian(errors))
    if not median > 0 or np.isnan(errors).any():
        return None, nothing
    logarithms = np.log(np.maximum(errors, SMALLEST * median))
    logarithms -= logarithms.mean()
    if np.ptp(logarithms) == 0:
        return None, nothing
    model = RidgeHead("numbers")
    asked = replace(problem, y=logarithms, weights=np.ones(len(errors)), watch=unwatched)
    model.search = model.train(asked, folds)
    told = np.asarray(model.fold_scores(asked, folds))
    gain = np.square(logarithms) - np.square(logarithms - told)
    if gain.mean() <= CLEAR * gain.std(ddof=1) / len(gain) ** 0.5:
        return None, nothing
    return model, told
