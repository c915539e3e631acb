"""Logistic regression: a linear layer on standardised features, its penalty found by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.devices import pick_device
from pipeline.errors import HeadError
from pipeline.heads.affine import AffineHead
from pipeline.heads.contract import Problem, Search
from pipeline.heads.criterion import Best
from pipeline.heads.solvers.basis import CPU, Basis, make_basis
from pipeline.heads.solvers.logistic import Fits, LogisticBatch, fold_weights
from pipeline.heads.solvers.minibatch import Lesson, Plan, search_epochs, train_on_all
from pipeline.heads.standard import Standard
from pipeline.heads.tensors import Tensors

#: Penalties a row, 1 / (C n), from strong to weak; what is best is rarely outside.
PENALTIES = tuple(float(value) for value in np.logspace(1, -5, 10))
#: Where nothing can be cross-validated.
DEFAULT_PENALTY = 0.1
#: The search needs an order of settings, the final fit the optimum, most of the way in single precision.
SEARCH_TOLERANCE, ROUGH_TOLERANCE, FINAL_TOLERANCE = 1e-3, 1e-6, 1e-7
SEARCH_STEPS, FINAL_STEPS = 200, 1000
#: Penalties in a row, each weaker than the last, that may be no better before the rest is not tried.
PATIENCE = 3
#: Of --solver sgd, as in the PyTorch tutorial.
SGD_EPOCHS, SGD_BATCH = 25, 4


class LinearHead(AffineHead):
    """Multinomial logistic regression; `--solver sgd` takes the tutorials' epochs instead of the optimum."""

    name = "linear"
    learns = ("classes",)
    streams = True

    def train(self, problem: Problem, folds: NDArray[np.int64] | None) -> Search:
        """Solve all folds for each penalty, from strong to weak; then all rows with the best."""
        if problem.classes is None:
            raise HeadError("head 'linear' learns classes; take --head regressor or ridge for numbers")
        standard = problem.standard()
        if self.settings.solver == "sgd":
            weight, bias, search = self._by_steps(problem, standard, folds)
        else:
            device = solver_device(self.settings.device)
            weight, bias, search = fit_logistic(problem, standard, folds, device=device)
        weight, bias = standard.fold(weight, bias)
        self.place(Tensors.trained({"weight": weight, "bias": bias}))
        return search

    def _by_steps(
        self, problem: Problem, standard: Standard, folds: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], Search]:
        """The recipe of the PyTorch tutorial, but the epoch is chosen by folds of the training rows."""
        settings = self.settings
        plan = Plan(
            hidden=None,
            optimizer=settings.optimizer or "sgd",
            lr=settings.lr,
            momentum=settings.momentum,
            drop_every=settings.step,
            epochs=settings.epochs or SGD_EPOCHS,
            batch_size=settings.batch_size or SGD_BATCH,
            decays=(0.0,),
            seed=settings.seed,
        )
        lesson = Lesson.of(problem, standard.apply(problem.rows.array()), problem.row_y)
        search = Search(chosen={"epochs": plan.epochs, "decay": 0.0})
        if folds is not None:
            search = search_epochs(plan, problem, lesson, folds)
        weight, bias = train_on_all(plan, lesson, search.chosen)
        return weight.T, bias, search


def solver_device(name: str) -> torch.device:
    """The device called `name`; the CPU in place of MPS, which has no double precision."""
    device = pick_device(name)
    return CPU if device.type == "mps" else device


def fit_logistic(
    problem: Problem, standard: Standard, folds: NDArray[np.int64] | None, *, device: torch.device = CPU
) -> tuple[NDArray[np.float64], NDArray[np.float64], Search]:
    """Weight (C, D) and bias (C,) on standardised features, and the search that led there."""
    basis = make_basis(problem.rows, standard, device)
    search, start = search_logistic(problem, basis, folds)
    weight, bias = fit_all(problem, basis, search.chosen["C"], start)
    return weight, bias, search


def search_logistic(problem: Problem, basis: Basis, folds: NDArray[np.int64] | None) -> tuple[Search, Fits | None]:
    """`search_penalty` over all penalties; the default one and nothing to start from where there are no folds."""
    total = float(problem.weights.sum())
    if folds is None:
        return Search(chosen={"C": 1 / (DEFAULT_PENALTY * total)}), None
    return search_penalty(problem, basis, folds, [1 / (value * total) for value in PENALTIES])


def fit_all(
    problem: Problem, basis: Basis, strength: float, start: Fits | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight (C, D) and bias (C,) on standardised features: the optimum for all rows at C = `strength`."""
    all_rows = problem.row_y, problem.row_weights[:, None], problem.classes or 0
    rough = LogisticBatch(basis, *all_rows)
    fits = rough.solve(strength, start or rough.start(), tolerance=ROUGH_TOLERANCE, most=FINAL_STEPS)
    basis = basis.double()
    exact = LogisticBatch(basis, *all_rows)
    fits = exact.solve(strength, fits.double(), tolerance=FINAL_TOLERANCE, most=FINAL_STEPS)
    weights = fits.weights[0].T
    return basis.standard_weights(weights[:-1]).T.cpu().numpy(), weights[-1].cpu().numpy()


def search_penalty(
    problem: Problem,
    basis: Basis,
    folds: NDArray[np.int64],
    strengths: Sequence[float],
    *,
    patience: int | None = PATIENCE,
) -> tuple[Search, Fits]:
    """The C of least out-of-fold loss, and the mean of its fits, to start from.

    `strengths` go from strong to weak penalties; the search ends after `patience` of them that were no better than
    the best, or never for None. What is compared is the log loss at the best temperature of each, since temperature is
    fitted afterwards anyway: a strong penalty makes probabilities timid, but not its ranking of classes worse.
    """
    row_folds = np.repeat(folds, problem.views)
    weights = fold_weights(problem.row_weights, row_folds)
    batch = LogisticBatch(basis, problem.row_y, weights, problem.classes or 0, folds=row_folds)
    known = problem.known(folds)
    search = Search()
    if not known.all():
        search.notices.append(
            f"{int((~known).sum())} training rows have no part in the search: "
            "without their fold, no row of their class or of another one is left"
        )
    best = Best(problem, folds, known)
    fits = of_best = batch.start()
    number_of_best = 0
    for number, strength in enumerate(strengths, start=1):
        fits = batch.solve(strength, fits, tolerance=SEARCH_TOLERANCE, most=SEARCH_STEPS)
        found = best.offer({"C": strength}, problem.per_image(batch.held_out(fits.weights)))
        search.table.append({"C": strength, **found, "iterations": fits.iterations})
        problem.watch(number / len(strengths), f"penalty {number} of {len(strengths)} at most")
        if best.setting == {"C": strength}:
            of_best, number_of_best = fits, number
        if number - number_of_best == patience:
            break
    search.chosen, search.scores = best.setting, best.scores
    return search, of_best.mean()
