"""Support vector machines: C and the width of the kernel found by cross-validation on one shared Gram matrix."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.contract import Problem, Search
from pipeline.heads.criterion import Best
from pipeline.heads.estimators import EstimatorHead, known_elsewhere, scaler_of, widened
from pipeline.progress import Steps

#: Rows and classes up to which kernels are tried; beyond, the linear solver needs no Gram matrix.
KERNEL_ROWS, KERNEL_CLASSES = 5000, 100
#: C of the linear kernel, times the dimensions; C of the RBF kernel; its gamma, times the dimensions.
LINEAR_C = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
RBF_C = (0.3, 1.0, 3.0, 10.0, 30.0)
RBF_GAMMA = (0.1, 0.3, 1.0)
#: Of numbers, in standard deviations of the target.
EPSILON = 0.1

Folds = NDArray[np.int64]


@dataclass(frozen=True)
class Setting:
    """One machine. `gamma` is of the RBF kernel."""

    kernel: str
    C: float
    gamma: float | None = None

    def to_json(self) -> dict[str, Any]:
        """What is shown of it."""
        shown = {"kernel": self.kernel, "C": self.C}
        return shown if self.gamma is None else {**shown, "gamma": self.gamma}


class SvmHead(EstimatorHead):
    """SVC and SVR with a linear or RBF kernel; LinearSVC and LinearSVR where rows are too many for a kernel."""

    name = "svm"
    cost = 20.0
    estimators = ("SVC", "LinearSVC", "SVR", "LinearSVR")

    #: Numbers are learned in standard deviations from the mean.
    offset, unit = 0.0, 1.0

    def train(self, problem: Problem, folds: Folds | None) -> Search:
        """Cross-validate every setting, then train the best on all rows."""
        from sklearn.pipeline import make_pipeline

        scaler = scaler_of(problem.standard())
        features = scaler.transform(problem.rows.array()).astype(np.float64)
        self.classes = problem.classes
        if problem.classes is None:
            self.offset, self.unit = float(problem.y.mean()), float(problem.y.std()) or 1.0
        best = Setting("linear", 1 / features.shape[1])
        search = Search(chosen=best.to_json())
        if folds is not None:
            search, best = self._search(problem, folds, features)
        machine = self._machine(best, kernels=self._affords_kernels(problem))
        machine.fit(features, self._targets(problem), sample_weight=problem.row_weights)
        self.pipeline = make_pipeline(scaler, machine)
        return search

    def decision(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Signed distances (n, C), or values (n,)."""
        standard = self.pipeline[0].transform(np.asarray(features, dtype=np.float32)).astype(np.float64)
        return self._said_by(self.pipeline[1], standard)

    def save(self, folder: Path) -> dict[str, Any]:
        """The pipeline, and the unit of numbers."""
        return super().save(folder) | {"offset": self.offset, "unit": self.unit}

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """What `save` wrote."""
        head = super().load(folder, config)
        head.offset, head.unit = config["offset"], config["unit"]
        return head

    def _search(self, problem: Problem, folds: Folds, features: NDArray[np.float64]) -> tuple[Search, Setting]:
        from joblib import Parallel, delayed

        row_folds = np.repeat(folds, problem.views)
        gram = features @ features.T if self._affords_kernels(problem) else None
        families = self._families(problem, features.shape[1])
        tasks = [(family, fold) for family in families for fold in range(int(folds.max()) + 1)]
        parallel = Parallel(n_jobs=_jobs(self.settings.jobs), prefer="threads")  # libsvm lets go of the lock
        steps = Steps(problem.watch, sum(len(family) for family, _ in tasks), "fit")
        said = parallel(
            delayed(self._fold_scores)(problem, row_folds == fold, family, features, gram, steps)
            for family, fold in tasks
        )
        best = Best(problem, folds, known_elsewhere(problem, folds))
        table = []
        for family in families:
            for place, setting in enumerate(family):
                scores = _gathered(
                    {fold: said[tasks.index((family, fold))][place] for fold in range(int(folds.max()) + 1)},
                    row_folds,
                )
                table.append({**setting.to_json(), **best.offer(setting.to_json(), problem.per_image(scores))})
        return Search(table, best.setting, best.scores), Setting(**best.setting)

    def _fold_scores(
        self,
        problem: Problem,
        held: NDArray[np.bool_],
        family: tuple[Setting, ...],
        features: NDArray[np.float64],
        gram: NDArray[np.float64] | None,
        steps: Steps,
    ) -> list[NDArray[np.float64]]:
        """Scores of the rows `held` for every C of a `family`, whose kernel matrix is made once."""
        train, y, weights = ~held, self._targets(problem), problem.row_weights
        if gram is None:
            left, right = features[train], features[held]
        else:
            left, right = (_kernel(gram, rows, train, gamma=family[0].gamma) for rows in (train, held))
        found = []
        for setting in family:
            machine = self._machine(setting, kernels=gram is not None, precomputed=gram is not None)
            machine.fit(left, y[train], sample_weight=weights[train])
            found.append(self._said_by(machine, right))
            steps.step()
        return found

    def _families(self, problem: Problem, dimensions: int) -> list[tuple[Setting, ...]]:
        """Settings that share a kernel matrix."""
        linear = tuple(Setting("linear", C / dimensions) for C in LINEAR_C)
        if not self._affords_kernels(problem):
            return [linear]
        curved = [tuple(Setting("rbf", C, g / dimensions) for C in RBF_C) for g in RBF_GAMMA]
        return {"linear": [linear], "rbf": curved, "auto": [linear, *curved]}[self.settings.kernel]

    def _affords_kernels(self, problem: Problem) -> bool:
        return problem.rows.shape[0] <= KERNEL_ROWS and (problem.classes or 0) <= KERNEL_CLASSES

    def _machine(self, setting: Setting, *, kernels: bool, precomputed: bool = False) -> Any:
        from sklearn import svm

        numbers = self.task == "numbers"
        if not kernels:
            if numbers:
                return svm.LinearSVR(C=setting.C, epsilon=EPSILON, random_state=self.settings.seed, max_iter=20000)
            return svm.LinearSVC(C=setting.C, random_state=self.settings.seed, max_iter=20000)
        kernel = "precomputed" if precomputed else setting.kernel
        options: dict[str, Any] = {"C": setting.C, "kernel": kernel, "gamma": setting.gamma or "scale"}
        return svm.SVR(epsilon=EPSILON, **options) if numbers else svm.SVC(**options)

    def _targets(self, problem: Problem) -> NDArray[Any]:
        return (problem.row_y - self.offset) / self.unit if problem.classes is None else problem.row_y

    def _said_by(self, machine: Any, features: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.classes is None:
            return np.asarray(machine.predict(features) * self.unit + self.offset)
        return widened(machine.decision_function(features), machine.classes_, self.classes)


def _kernel(
    gram: NDArray[np.float64],
    rows: NDArray[np.bool_],
    columns: NDArray[np.bool_],
    *,
    gamma: float | None,
) -> NDArray[np.float64]:
    """The kernel matrix of some rows and columns, from the inner products of all."""
    part = gram[np.ix_(rows, columns)]
    if gamma is None:
        return part
    squares = gram.diagonal()
    distances = squares[rows][:, None] + squares[columns] - 2 * part
    return np.asarray(np.exp(-gamma * np.maximum(distances, 0)))


def _gathered(parts: dict[int, NDArray[np.float64]], folds: Folds) -> NDArray[np.float64]:
    out = np.empty((len(folds), *parts[0].shape[1:]))
    for fold, scores in parts.items():
        out[folds == fold] = scores
    return out


def _jobs(asked: str | int) -> int:
    return int(asked) if asked != "auto" else len(os.sched_getaffinity(0))
