"""Logistic regression: a linear layer on standardised features, its penalty found by cross-validation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import HeadError
from pipeline.heads.affine import AffineHead
from pipeline.heads.contract import Problem, Search
from pipeline.heads.solvers.arrays import solver_device
from pipeline.heads.solvers.logistic import fit_logistic
from pipeline.heads.standard import Standard
from pipeline.heads.tensors import Tensors

#: Of --solver sgd, as in the PyTorch tutorial.
SGD_EPOCHS, SGD_BATCH = 25, 4


class LinearHead(AffineHead):
    """Multinomial logistic regression; `--solver sgd` takes the tutorials' epochs instead of the optimum."""

    name = "linear"
    learns = ("classes",)
    streams = True
    nests = 400

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
        """Train by the recipe of the PyTorch tutorial, but choose the epoch by folds of the training rows."""
        # Torch, which the optimum and answers do without.
        from pipeline.heads.solvers.minibatch import Lesson, Plan, search_epochs, train_on_all

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
