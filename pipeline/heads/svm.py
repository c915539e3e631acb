"""Support vector machines: C and the width of the kernel found by cross-validation.

Classes are learned one against the rest with squared hinge, all folds of a penalty at once, in coordinates in which a
kernel machine is a linear model: the margins of one class after the other are scores that a temperature makes
probabilities of, which the votes of a machine for each pair are not. Numbers are learned by libsvm on one shared Gram
matrix, and by a linear solver where rows are too many for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.calibration import ABSENT
from pipeline.heads.contract import Head, Problem, Search
from pipeline.heads.criterion import Best
from pipeline.heads.estimators import FILE, Estimator
from pipeline.heads.machines import Machine, machine_of
from pipeline.heads.parallel import in_threads
from pipeline.heads.solvers.arrays import solver_device
from pipeline.heads.solvers.basis import Basis, make_basis
from pipeline.heads.solvers.gram import gram
from pipeline.heads.solvers.kernel import kernel_basis, rbf_of
from pipeline.heads.solvers.losses import SquaredHinge
from pipeline.heads.solvers.path import Path, fit_all, search_paths
from pipeline.heads.standard import Standard
from pipeline.heads.tensors import Tensors, write_tensors
from pipeline.progress import Steps

#: Rows below which kernels are tried, and classes up to which; beyond, all pairs of rows are too many.
KERNEL_ROWS, KERNEL_CLASSES = 5000, 100
#: Rows that span the space of a kernel of classes.
LANDMARKS = 2000
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
        """Return what is shown of it."""
        shown = {"kernel": self.kernel, "C": self.C}
        return shown if self.gamma is None else {**shown, "gamma": self.gamma}


class SvmHead(Head):
    """Machines with a linear or RBF kernel, linear alone where rows are too many; kept in head.safetensors."""

    name = "svm"
    cost = 5.0
    nests = 400

    #: Numbers are learned in standard deviations from the mean.
    offset, unit = 0.0, 1.0
    #: Number of classes of the problem; more than the machine knows where some have no example.
    classes: int | None = None

    standard: Standard
    #: Classes that the machine has examples of, in rising order; none for numbers.
    known: NDArray[np.int64]
    machine: Machine

    def train(self, problem: Problem, folds: Folds | None) -> Search:
        """Cross-validate every setting, then train the best on all rows."""
        self.classes = problem.classes
        if problem.classes is None:
            return self._train_numbers(problem, folds)
        standard = problem.standard()
        families = self._families(problem)
        basis = make_basis(problem.rows, standard, solver_device(self.settings.device))
        features = standard.divide(problem.rows.array()) if len(families) > 1 or families[0][0].gamma else None
        paths = (_path(family, basis, features) for family in families)
        if folds is None:
            path = Path(basis, [1 / problem.dimensions], {"kernel": "linear"})
            search, start = Search(chosen=path.setting(path.strengths[0])), None
        else:
            total = sum(map(len, families))
            found = search_paths(problem, paths, folds, loss=SquaredHinge(), total=total)
            search, path, start = found.search, found.path, found.start
        weight, intercept = fit_all(problem, path.basis, search.chosen["C"], start, loss=SquaredHinge())
        known = np.flatnonzero(np.bincount(problem.y, minlength=problem.classes))
        weight, intercept = _one_output(weight[known], intercept[known])
        kept: dict[str, Any] = {"mean": standard.mean, "scale": standard.scale, "known": known, "intercept": intercept}
        if features is None or search.chosen["kernel"] == "linear":
            self.place(Tensors.trained({**kept, "weight": weight}), {"kind": "linear"})
        else:
            kept |= {"vectors": features[_landmarks(len(features))], "coefficients": weight}
            self.place(Tensors.trained(kept), {"kind": "one against the rest", "gamma": search.chosen["gamma"]})
        return search

    def _train_numbers(self, problem: Problem, folds: Folds | None) -> Search:
        standard = problem.standard()
        features = standard.divide(problem.rows.array()).astype(np.float64)
        self.offset, self.unit = float(problem.y.mean()), float(problem.y.std()) or 1.0
        best = Setting("linear", 1 / features.shape[1])
        search = Search(chosen=best.to_json())
        if folds is not None:
            search, best = self._search(problem, folds, features)
        machine = self._machine(best, kernels=self._affords_kernels(problem))
        machine.fit(features, self._targets(problem), sample_weight=problem.row_weights)
        kept = {"mean": standard.mean, "scale": standard.scale, **_learned(type(machine).__name__, vars(machine))}
        self.place(Tensors.trained(kept), _settings(type(machine).__name__, vars(machine)))
        return search

    def place(self, tensors: Tensors, settings: Mapping[str, Any]) -> None:
        """Take scaler and machine, trained or loaded; `settings` are those of the machine."""
        mean = tensors.take("mean", (None,), np.float64)
        self.standard = Standard(mean, tensors.divisors("scale", mean.shape))
        self.known = np.zeros(0, dtype=np.int64)
        if self.classes is not None:
            self.known = tensors.take("known", (None,), np.int64)
            rising = len(self.known) > 1 and (np.diff(self.known) > 0).all()
            within = rising and self.known[0] >= 0 and self.known[-1] < self.classes
            tensors.require(within, f"the classes it knows are not some of {self.classes} in rising order")
        tensors.require(len(mean) > 0, "mean is empty")
        groups = max(len(self.known), 1)
        self.machine = machine_of(tensors, settings, dimensions=len(mean), groups=groups)

    @property
    def dimensions(self) -> int:
        """Features of a row."""
        return len(self.standard.mean)

    @property
    def outputs(self) -> int:
        """Classes, or 1."""
        return self.classes or 1

    def _decide(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Signed distances (n, C), or values (n,)."""
        said = self.machine.decide(self.standard.divide(features))
        if self.classes is None:
            return said * self.unit + self.offset
        return _widened(said, self.known, self.classes)

    def save(self, folder: FilePath) -> dict[str, Any]:
        """Scaler and machine in head.safetensors."""
        arrays: dict[str, NDArray[Any]] = {"mean": self.standard.mean, "scale": self.standard.scale}
        if self.classes is not None:
            arrays["known"] = self.known
        write_tensors(folder, arrays | self.machine.arrays())
        shared = {"classes": self.classes, "offset": self.offset, "unit": self.unit}
        return self.config() | shared | {"machine": self.machine.settings()}

    @classmethod
    def load(cls, folder: FilePath, config: Mapping[str, Any]) -> Self:
        """Open what `save` wrote, or what version 0.1.0 wrote into head.skops."""
        head = cls.restore(config)
        head.classes = None if head.task == "numbers" else int(config["classes"])
        head.offset, head.unit = float(config["offset"]), float(config["unit"])
        if not (np.isfinite(head.offset) and np.isfinite(head.unit)):
            raise ValueError(f"offset is {head.offset}, unit is {head.unit}")
        if "machine" in config:
            head.place(Tensors.read(folder), config["machine"])
            return head
        old = Estimator.read(folder / FILE, ("SVR", "LinearSVR") if head.classes is None else ("SVC", "LinearSVC"))
        kept = {"mean": old.scaler.get("mean_"), "scale": old.scaler.get("scale_"), **_learned(old.kind, old.learned)}
        head.place(Tensors(kept, str(old.path)), _settings(old.kind, old.learned))
        return head

    def _search(self, problem: Problem, folds: Folds, features: NDArray[np.float64]) -> tuple[Search, Setting]:
        row_folds = np.repeat(folds, problem.views)
        products = gram(features) if self._affords_kernels(problem) else None
        families = self._families(problem)
        count = int(folds.max()) + 1
        asked = [(family, fold) for family in families for fold in range(count)]
        steps = Steps(problem.watch, sum(len(family) for family, _ in asked), "fit")
        calls = [
            partial(self._scores_of_fold, problem, row_folds == fold, family, features, products, steps)
            for family, fold in asked
        ]
        said = iter(in_threads(calls, jobs=self.settings.jobs))  # libsvm lets go of the lock
        best = Best(problem, folds, problem.known(folds))
        table = []
        for family in families:
            of_folds = [next(said) for _ in range(count)]
            for place, setting in enumerate(family):
                scores = _gathered([fold[place] for fold in of_folds], row_folds)
                table.append({**setting.to_json(), **best.offer(setting.to_json(), problem.per_image(scores))})
        return Search(table, best.setting, best.scores), Setting(**best.setting)

    def _scores_of_fold(
        self,
        problem: Problem,
        held: NDArray[np.bool_],
        family: tuple[Setting, ...],
        features: NDArray[np.float64],
        products: NDArray[np.float64] | None,
        steps: Steps,
    ) -> list[NDArray[np.float64]]:
        """Values of the rows `held` for every C of a `family`, whose kernel matrix is made once."""
        train, y, weights = ~held, self._targets(problem), problem.row_weights
        if products is None:
            left, right = features[train], features[held]
        else:
            left, right = (_kernel(products, rows, train, gamma=family[0].gamma) for rows in (train, held))
        found = []
        for setting in family:
            machine = self._machine(setting, kernels=products is not None, precomputed=products is not None)
            machine.fit(left, y[train], sample_weight=weights[train])
            found.append(np.asarray(machine.predict(right) * self.unit + self.offset))
            steps.step()
        return found

    def _families(self, problem: Problem) -> list[tuple[Setting, ...]]:
        """List families of settings that share a kernel matrix."""
        dimensions = problem.dimensions
        linear = tuple(Setting("linear", C / dimensions) for C in LINEAR_C)
        if not self._affords_kernels(problem):
            return [linear]
        curved = [tuple(Setting("rbf", C, g / dimensions) for C in RBF_C) for g in RBF_GAMMA]
        return {"linear": [linear], "rbf": curved, "auto": [linear, *curved]}[self.settings.kernel]

    def _affords_kernels(self, problem: Problem) -> bool:
        return problem.rows.shape[0] < KERNEL_ROWS and (problem.classes or 0) <= KERNEL_CLASSES

    def _machine(self, setting: Setting, *, kernels: bool, precomputed: bool = False) -> Any:
        from sklearn import svm

        if not kernels:
            # By its square, in the primal: some Newton steps, where the dual of the tube itself takes thousands.
            return svm.LinearSVR(C=setting.C, epsilon=EPSILON, loss="squared_epsilon_insensitive", dual=False)
        kernel = "precomputed" if precomputed else setting.kernel
        return svm.SVR(C=setting.C, kernel=kernel, gamma=setting.gamma or "scale", epsilon=EPSILON)

    def _targets(self, problem: Problem) -> NDArray[Any]:
        return np.asarray((problem.row_y - self.offset) / self.unit)


def _path(family: tuple[Setting, ...], linear: Basis, features: NDArray[np.float32] | None) -> Path:
    """Return the penalties of a `family` on the basis of its kernel, which is made only when its turn has come."""
    strengths, gamma = [setting.C for setting in family], family[0].gamma
    if gamma is None or features is None:
        return Path(linear, strengths, {"kernel": "linear"})
    rows = features.astype(np.float64)
    basis = kernel_basis(rows, rows[_landmarks(len(rows))], gamma)
    return Path(basis, strengths, {"kernel": "rbf", "gamma": gamma})


def _landmarks(rows: int) -> NDArray[np.int64]:
    """Return the numbers of the rows that span the space of a kernel: all, or some at even distances."""
    return np.unique(np.linspace(0, rows - 1, min(rows, LANDMARKS)).astype(np.int64))


def _one_output(
    weight: NDArray[np.float64], intercept: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the machines of all classes, (K, r) and (K,): of two, which mirror each other, one."""
    if len(weight) != 2:
        return weight, intercept
    return (weight[1:] - weight[:1]) / 2, (intercept[1:] - intercept[:1]) / 2


def _kernel(
    products: NDArray[np.float64],
    rows: NDArray[np.bool_],
    columns: NDArray[np.bool_],
    *,
    gamma: float | None,
) -> NDArray[np.float64]:
    """Return the kernel matrix of some rows and columns, from the inner products of all."""
    part, squares = products[np.ix_(rows, columns)], products.diagonal()
    return part if gamma is None else rbf_of(part, squares[rows], squares[columns], gamma=gamma)


def _gathered(parts: list[NDArray[np.float64]], folds: Folds) -> NDArray[np.float64]:
    """Scores of all rows from those of the rows of each fold."""
    out = np.empty((len(folds), *parts[0].shape[1:]))
    for fold, scores in enumerate(parts):
        out[folds == fold] = scores
    return out


def _widened(scores: NDArray[np.floating], known: NDArray[np.integer], classes: int) -> NDArray[np.float64]:
    """Scores (n, C) of all classes from those of the `known` ones, in one column for two classes."""
    if scores.ndim == 1:
        scores = np.stack([-scores, scores], axis=1)
    if len(known) == classes:
        return scores.astype(np.float64)
    out = np.full((len(scores), classes), ABSENT)
    out[:, known] = scores
    return out


def _learned(kind: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Take the arrays of a machine from the attributes of a scikit-learn estimator, which may be forged."""
    known = {"known": attributes.get("classes_")} if kind.endswith("SVC") else {}
    if kind.startswith("Linear"):
        return {
            **known,
            "weight": np.atleast_2d(attributes["coef_"]),
            "intercept": np.atleast_1d(attributes["intercept_"]),
        }
    vectors = attributes["support_vectors_"]
    return {
        **known,
        "vectors": vectors,
        "counts": attributes["_n_support"] if known else np.array([len(vectors)]),
        "coefficients": attributes["dual_coef_"],
        "intercept": attributes["intercept_"],
    }


def _settings(kind: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a machine from the attributes of a scikit-learn estimator."""
    if kind.startswith("Linear"):
        return {"kind": "linear"}
    return {"kind": "kernel", "kernel": attributes["kernel"], "gamma": attributes["_gamma"]}
