"""The learning curve: the score on the held-out rows against the number of training rows.

A ridge head, whose penalty is chosen by leaving out one row at a time, stands for all heads: it costs next to nothing.
Part of the training rows are drawn by class, groups whole, `REPEATS` times; all curves are scored on the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FitSettings
from pipeline.errors import HeadError
from pipeline.heads.contract import FeatureSource, Problem
from pipeline.heads.ridge import RidgeHead
from pipeline.metrics import accuracy_interval, ratio_interval
from pipeline.progress import unwatched
from pipeline.splits import hold_out

SHARES, REPEATS = (0.1, 0.2, 0.4, 0.7, 1.0), 5
#: Rows from which on a curve tells what twice as many would give; of fewer, "no change" is the better guess.
ENOUGH = 300

Codes = NDArray[np.int64]
Point = dict[str, Any]


def learning_curve(
    problem: Problem, source: FeatureSource, held_out: Codes, y: NDArray[Any], groups: Codes, settings: FitSettings
) -> list[Point]:
    """Score heads that are trained on more and more rows of `problem` on the images `held_out` of `source`.

    `y` and `groups` (m,) are those of the held-out images. A point has rows, accuracy or mae, and low and high, the
    95 % interval over the held-out images; parts that hold too little to learn from are left out.
    """
    problem = replace(problem, watch=unwatched)
    settings = settings.model_copy(update={"power": "none"})
    points = []
    for share in SHARES:
        drawn = [
            np.arange(len(problem.y))
            if share == 1
            else np.flatnonzero(hold_out(problem.y, problem.groups, share=share, seed=settings.seed + repeat))
            for repeat in range(1 if share == 1 else REPEATS)
        ]
        try:
            scores = [_scores(problem.take(rows), source, held_out, settings) for rows in drawn]
        except HeadError:  # one class alone, or no row
            continue
        points.append(_point(round(float(np.mean([len(rows) for rows in drawn]))), problem.task, scores, y, groups))
    return points


def gain_of_twice(points: Sequence[Point]) -> float | None:
    """Return what twice the rows would add to the accuracy, or take from the MAE; None where that cannot be told.

    Errors fall as a power of the number of rows (Hestness et al., 2017).
    """
    if len(points) < 3 or points[-1]["rows"] < ENOUGH:
        return None
    errors = np.array([1 - point["accuracy"] if "accuracy" in point else point["mae"] for point in points])
    if not (errors > 0).all():
        return None
    slope = np.polyfit(np.log([point["rows"] for point in points]), np.log(errors), 1)[0]
    return float(errors[-1] * (1 - 2 ** min(slope, 0.0)))


def _scores(part: Problem, source: FeatureSource, held_out: Codes, settings: FitSettings) -> NDArray[np.float64]:
    """Return scores (m, C) or (m,) of the held-out images by a head that is trained on `part`."""
    head = RidgeHead(part.task, settings).fit(part)
    return head.decision_function_of(source, held_out, score_views=part.score_views)


def _point(
    rows: int, task: str, scores: Sequence[NDArray[np.float64]], y: NDArray[Any], groups: Codes
) -> dict[str, Any]:
    """Return the mean score of several heads, each image's being the mean of theirs."""
    if task == "classes":
        right = np.mean([said.argmax(axis=1) == y for said in scores], axis=0)
        low, high = accuracy_interval(right, groups)
        return {"rows": rows, "accuracy": float(right.mean()), "low": low, "high": high}
    errors = np.mean([np.abs(said - y) for said in scores], axis=0)
    interval = ratio_interval(errors, np.ones(len(errors)), groups)
    bounds = (None, None) if interval is None else interval
    return {"rows": rows, "mae": float(errors.mean()), "low": bounds[0], "high": bounds[1]}
