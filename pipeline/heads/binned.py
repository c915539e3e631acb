"""Numbers by way of classes: which of a few ranges a number is in, by logistic regression, and the mean of that range.

Where numbers lie in heaps (cats are short, tigers are long) a line through all of them is a poor fit, and noise within
a heap pulls at it. Classes do not care how far apart heaps are, nor how noisy each one is, and the mean over ranges,
weighed by their probabilities, bends where the heaps are (Weiss and Indurkhya, 1995; Stewart et al., 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.calibration import fit_inverse_temperature, softmax
from pipeline.heads.contract import TOO_FEW, Head, Problem, Search, Task
from pipeline.heads.criterion import Best
from pipeline.heads.linear import LinearHead
from pipeline.heads.solvers.arrays import solver_device
from pipeline.heads.solvers.basis import Basis, make_basis
from pipeline.heads.solvers.descent import Fits
from pipeline.heads.solvers.logistic import search_logistic
from pipeline.heads.solvers.losses import LogLoss
from pipeline.heads.solvers.path import fit_all
from pipeline.heads.tensors import FILE, Tensors

#: Ranges that are tried, each with about as many rows as any other.
BINS = (2, 3, 5, 8)

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
Mask = NDArray[np.bool_] | slice
ALL = slice(None)


class BinnedHead(Head):
    """Logistic regression of ranges; `values` (B,) are the mean of the training numbers in each."""

    name = "binned"
    cost = 3.0
    tasks: ClassVar[tuple[Task, ...]] = ("numbers",)
    learns: ClassVar[tuple[Task, ...]] = ("numbers",)
    streams = False  # it can, but reads the file some hundred times: not for those who have not asked for it

    classifier: LinearHead
    values: Array

    def train(self, problem: Problem, folds: Codes | None) -> Search:
        """Search the number of ranges, and for each the penalty."""
        cuts = _cuts(problem.y, folds)
        if not cuts:
            return self._learn_the_mean(problem, folds)
        standard = problem.standard()
        basis = make_basis(problem.rows, standard, solver_device(self.settings.device))
        trials = [Trial.of(problem, basis, codes, folds) for codes in cuts]
        if folds is None:
            trial = trials[0]
            search = Search(chosen=trial.setting, notices=[TOO_FEW])
        else:
            best = Best(problem, folds, np.ones(len(problem.y), dtype=bool))
            found = [best.offer(trial.setting, trial.told(problem, folds)) for trial in trials]
            trial = trials[int(np.argmin([one["loss"] for one in found]))]
            table = [{**trial.setting, **one} for trial, one in zip(trials, found, strict=True)]
            search = Search(table, best.setting, best.scores)
        weight, bias = standard.fold(*fit_all(trial.coded, basis, trial.setting["C"], trial.start, loss=LogLoss()))
        self.classifier = LinearHead.from_weights(weight, bias, task="classes")
        self.classifier.inverse_temperature = trial.inverse_temperature()
        self._keep(_means(problem, trial.coded.y))
        return search

    def _learn_the_mean(self, problem: Problem, folds: Codes | None) -> Search:
        """One range: what is left where numbers are too much alike to be cut."""
        one = np.zeros(len(problem.y), dtype=np.int64)
        nothing = np.zeros((1, problem.rows.shape[1]), dtype=np.float32)
        self.classifier = LinearHead.from_weights(nothing, nothing[:, 0], task="classes")
        self._keep(_means(problem, one))
        if folds is None:
            return Search(chosen={"bins": 1}, notices=[TOO_FEW])
        of_others = np.concatenate([_means(problem, one, folds != fold) for fold in range(int(folds.max()) + 1)])
        return Search(chosen={"bins": 1}, scores=of_others[folds])

    def _keep(self, values: Array) -> None:
        self.values = Tensors.trained({"ranges": values}).take("ranges", (self.classifier.outputs,), np.float64)

    def _decide(self, features: NDArray[np.floating]) -> Array:
        """Values (n,) of features (n, D) or (n, V, D)."""
        return np.asarray(self.classifier.predict_proba(features) @ self.values)

    _decide_views = _decide  # the mean over views is that of the classifier's logits, as in its search

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the classifier into head.safetensors."""
        return self.config() | {"classifier": self.classifier.save(folder), "values": self.values.tolist()}

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """Open what `save` wrote."""
        head = cls.restore(config)
        head.classifier = LinearHead.load(folder, config["classifier"])
        values = {"ranges": np.asarray(config["values"], dtype=np.float64)}
        head.values = Tensors(values, str(folder / FILE)).take("ranges", (head.classifier.outputs,), np.float64)
        return head

    @property
    def dimensions(self) -> int:
        """Features of a row."""
        return self.classifier.dimensions

    @property
    def outputs(self) -> int:
        """One number."""
        return 1


def bins(y: Array, count: int) -> Codes:
    """Find the range of each number, (n,): `count` of about as many numbers each, fewer where many are equal."""
    below = y[y < y.max()]
    edges = np.minimum(np.quantile(y, np.arange(1, count) / count), below.max(initial=-np.inf))
    return np.unique(np.searchsorted(edges, y, side="left"), return_inverse=True)[1].astype(np.int64)


def _cuts(y: Array, folds: Codes | None) -> list[Codes]:
    """Return the ranges to try, (n,) each: no fold holds all rows of one, so that its model knows them too."""
    found = {}
    for count in BINS if folds is not None else BINS[:1]:
        codes = bins(y, count)
        kept = [codes] if folds is None else [codes[folds != fold] for fold in np.unique(folds)]
        if codes.max() > 0 and all(len(np.unique(some)) > codes.max() for some in kept):
            found[codes.tobytes()] = codes
    return list(found.values())


@dataclass(frozen=True)
class Trial:
    """One way to cut: `coded` has for each number the code of its range, `scores` (n, B) are out-of-fold logits."""

    coded: Problem
    setting: dict[str, Any]
    scores: Array | None
    start: Fits | None

    @classmethod
    def of(cls, problem: Problem, basis: Basis, codes: Codes, folds: Codes | None) -> Trial:
        """Search the penalty for the ranges `codes` (n,)."""
        coded = replace(problem, y=codes, classes=int(codes.max()) + 1)
        search, start = search_logistic(coded, basis, folds)
        return cls(coded, {"bins": coded.classes, **search.chosen}, search.scores, start)

    def inverse_temperature(self, which: Mask = ALL) -> float:
        """Fit it to the rows `which`; 1 where there are no scores to tell it by."""
        if self.scores is None:
            return 1.0
        return fit_inverse_temperature(self.scores[which], self.coded.y[which], self.coded.weights[which])

    def told(self, problem: Problem, folds: Codes) -> Array:
        """Out-of-fold values (n,): temperature and means are of the other folds, ranges and penalty of all."""
        said = np.empty(len(folds))
        for fold in np.unique(folds):
            held = folds == fold
            chances = softmax(np.asarray(self.scores)[held], self.inverse_temperature(~held))
            said[held] = chances @ _means(problem, self.coded.y, ~held)
        return said


def _means(problem: Problem, codes: Codes, which: Mask = ALL) -> Array:
    """Return the mean number (B,) of the rows `which` in each range."""
    weights = problem.weights[which]
    total = np.bincount(codes[which], weights=weights * problem.y[which])
    return np.asarray(total / np.bincount(codes[which], weights=weights))
