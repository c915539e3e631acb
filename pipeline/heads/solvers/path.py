"""Search of a penalty along a path from strong to weak, each fit of which begins where the last one ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.contract import Problem, Search
from pipeline.heads.criterion import Best
from pipeline.heads.solvers.arrays import take_home
from pipeline.heads.solvers.basis import Basis
from pipeline.heads.solvers.descent import Batch, Fits, fold_weights
from pipeline.heads.solvers.losses import Loss

#: The search needs an order of settings, the final fit the optimum, most of the way in single precision.
SEARCH_TOLERANCE, ROUGH_TOLERANCE, FINAL_TOLERANCE = 1e-3, 1e-6, 1e-7
SEARCH_STEPS, FINAL_STEPS = 200, 1000
#: Penalties in a row, each weaker than the last, that may be no better before the rest of a path is not tried.
PATIENCE = 3


@dataclass(frozen=True)
class Path:
    """Strengths C from strong to weak penalties on one basis; `shared` is what all its settings have in common."""

    basis: Basis
    strengths: Sequence[float]
    shared: dict[str, Any] = field(default_factory=dict)

    def setting(self, strength: float) -> dict[str, Any]:
        """Return what is shown of one fit."""
        return {**self.shared, "C": strength}


@dataclass(frozen=True)
class Found:
    """The search of one or several paths: the path of the best setting, and the mean of its fits, to start from."""

    search: Search
    path: Path
    start: Fits


def search_paths(
    problem: Problem,
    paths: Iterable[Path],
    folds: NDArray[np.int64],
    *,
    loss: Loss,
    total: int,
    errors: float = 0.0,
    patience: int | None = PATIENCE,
) -> Found:
    """Find the setting of least out-of-fold loss among `total` of some paths.

    A setting takes the place of one before it only if its loss is less by so many standard `errors`. A path ends after
    `patience` penalties that were no better than its best, or never for None. What is compared is the log loss at the
    best temperature of each, since temperature is fitted afterwards anyway: a strong penalty makes probabilities timid,
    but not its ranking of classes worse.
    """
    row_folds = np.repeat(folds, problem.views)
    weights = fold_weights(problem.row_weights, row_folds)
    best = Best(problem, folds, problem.known(folds), errors=errors)
    search = Search(notices=_unjudged(best.known))
    found: Found | None = None
    before = 0
    for path in paths:
        batch = Batch(path.basis, problem.row_y, weights, problem.classes or 0, loss=loss, folds=row_folds)
        fits, least, number_of_least = batch.start(), np.inf, 0
        for number, strength in enumerate(path.strengths, start=1):
            fits = batch.solve(strength, fits, tolerance=SEARCH_TOLERANCE, most=SEARCH_STEPS)
            setting = path.setting(strength)
            measures = best.offer(setting, problem.per_image(batch.held_out(fits.weights)))
            search.table.append({**setting, **measures, "iterations": fits.iterations})
            problem.watch((before + number) / total, f"penalty {before + number} of {total} at most")
            if found is None or best.setting == setting:
                found = Found(search, path, fits.mean())
            if measures["loss"] < least:
                least, number_of_least = measures["loss"], number
            if number - number_of_least == patience:
                break
        before += len(path.strengths)
    if found is None:
        raise ValueError("there is no penalty to try")
    search.chosen, search.scores = best.setting, best.scores
    return found


def _unjudged(known: NDArray[np.bool_]) -> list[str]:
    if known.all():
        return []
    return [
        f"{int((~known).sum())} training rows have no part in the search: "
        "without their fold, no row of their class or of another one is left"
    ]


def fit_all(
    problem: Problem, basis: Basis, strength: float, start: Fits | None = None, *, loss: Loss
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight (C, D) and bias (C,) on what the basis was made of: the optimum for all rows at C = `strength`."""
    all_rows = problem.row_y, problem.row_weights[:, None], problem.classes or 0
    rough = Batch(basis, *all_rows, loss=loss)
    fits = rough.solve(strength, start or rough.start(), tolerance=ROUGH_TOLERANCE, most=FINAL_STEPS)
    basis = basis.double()
    exact = Batch(basis, *all_rows, loss=loss)
    fits = exact.solve(strength, fits.double(), tolerance=FINAL_TOLERANCE, most=FINAL_STEPS)
    weights = fits.weights[0].T
    return take_home(basis.standard_weights(weights[:-1]).T), take_home(weights[-1])
