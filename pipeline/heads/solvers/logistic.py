"""Logistic regression on standardised features, its penalty found by cross-validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.contract import Problem, Search
from pipeline.heads.solvers.basis import Basis, make_basis
from pipeline.heads.solvers.descent import Fits
from pipeline.heads.solvers.losses import LogLoss
from pipeline.heads.solvers.path import Path, fit_all, search_paths
from pipeline.heads.standard import Standard

if TYPE_CHECKING:
    import torch

#: Penalties a row, 1 / (C n), from strong to weak; what is best is rarely outside.
PENALTIES = tuple(float(value) for value in np.logspace(1, -5, 10))
#: Standard errors by which a weaker penalty has to be better: where the loss is flat, the folds would choose by chance.
CLEARLY = 0.5
#: Where nothing can be cross-validated.
DEFAULT_PENALTY = 0.1


def fit_logistic(
    problem: Problem, standard: Standard, folds: NDArray[np.int64] | None, *, device: torch.device | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], Search]:
    """Weight (C, D) and bias (C,) on standardised features, and the search that led there."""
    basis = make_basis(problem.rows, standard, device)
    search, start = search_logistic(problem, basis, folds)
    weight, bias = fit_all(problem, basis, search.chosen["C"], start, loss=LogLoss())
    return weight, bias, search


def search_logistic(problem: Problem, basis: Basis, folds: NDArray[np.int64] | None) -> tuple[Search, Fits | None]:
    """Search all penalties; the default one and nothing to start from where there are no folds."""
    total = float(problem.weights.sum())
    if folds is None:
        return Search(chosen={"C": 1 / (DEFAULT_PENALTY * total)}), None
    path = Path(basis, [1 / (value * total) for value in PENALTIES])
    found = search_paths(problem, [path], folds, loss=LogLoss(), total=len(PENALTIES), errors=CLEARLY)
    return found.search, found.start
