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

from pipeline.errors import ModelError
from pipeline.heads.affine import FILE
from pipeline.heads.basis import Basis, make_basis
from pipeline.heads.calibration import fit_sharpness, softmax
from pipeline.heads.contract import TOO_FEW, Head, Problem, Search, Task
from pipeline.heads.criterion import Best
from pipeline.heads.linear import LinearHead, fit_all, search_logistic, solver_device
from pipeline.heads.logistic import Fits

#: Ranges that are tried, each with about as many rows as any other.
BINS = (2, 3, 5, 8)
#: Rows a range and fold below which means of ranges are too uncertain.
FEWEST = 2

Array = NDArray[np.float64]
Codes = NDArray[np.int64]


class BinnedHead(Head):
    """Logistic regression of ranges; `values` (B,) are the mean of the training numbers in each."""

    name = "binned"
    tasks: ClassVar[tuple[Task, ...]] = ("numbers",)
    learns: ClassVar[tuple[Task, ...]] = ("numbers",)
    streams = True

    classifier: LinearHead
    values: Array

    def train(self, problem: Problem, folds: Codes | None) -> Search:
        """Search the number of ranges, and for each the penalty."""
        standard = problem.standard()
        basis = make_basis(problem.rows, standard, solver_device(self.settings.device))
        tried = [] if folds is None else [Trial.of(problem, basis, codes, folds) for codes in _cuts(problem, folds)]
        if tried and folds is not None:
            best = Best(problem, folds, np.all([np.isfinite(trial.said) for trial in tried], axis=0))
            table = [{**trial.setting, **best.offer(trial.setting, trial.said)} for trial in tried]
            trial = next(trial for trial in tried if trial.setting == best.setting)
            search = Search(table, best.setting, best.scores)
        else:
            trial = Trial.of(problem, basis, bins(problem.y, BINS[0]), None)
            search = Search(chosen=trial.setting, notices=[TOO_FEW])
        weight, bias = standard.fold(*fit_all(trial.ranges, basis, trial.setting["C"], trial.start))
        self.classifier = LinearHead.from_weights(weight, bias, task="classes")
        self.classifier.sharpness = trial.sharpness
        self.values = _means(trial.ranges.y, problem, np.ones(len(problem.y), dtype=bool))
        return search

    def decision(self, features: NDArray[np.floating]) -> Array:
        """Values (n,)."""
        return np.asarray(self.classifier.scores(features) @ self.values)

    def save(self, folder: Path) -> dict[str, Any]:
        """The classifier in head.safetensors."""
        return self.config() | {"classifier": self.classifier.save(folder), "values": self.values.tolist()}

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """What `save` wrote."""
        head = cls.restore(config)
        head.classifier = LinearHead.load(folder, config["classifier"])
        head.values = np.array(config["values"], dtype=np.float64)
        if head.values.shape != head.classifier.bias.shape:
            raise ModelError(f"{folder / FILE} has {len(head.classifier.bias)} ranges, not {len(head.values)}")
        return head


def bins(y: Array, count: int) -> Codes:
    """The range of each number, (n,): `count` of about as many numbers each, fewer where many are equal."""
    below = y[y < y.max()]
    edges = np.minimum(np.quantile(y, np.arange(1, count) / count), below.max(initial=-np.inf))
    return np.unique(np.searchsorted(edges, y, side="left"), return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class Trial:
    """One number of ranges: what is out-of-fold said (n,) of the numbers, and what to train on all rows with."""

    ranges: Problem
    setting: dict[str, Any]
    sharpness: float
    said: Array
    start: Fits | None

    @classmethod
    def of(cls, problem: Problem, basis: Basis, codes: Codes, folds: Codes | None) -> Trial:
        """Search the penalty, for ranges `codes` (n,); a fold's numbers are told by the means of the others."""
        ranges = replace(problem, y=codes, classes=int(codes.max()) + 1)
        search, start = search_logistic(ranges, basis, folds)
        setting = {"bins": ranges.classes, **search.chosen}
        said = np.full(len(codes), np.nan)
        if folds is None or search.scores is None:
            return cls(ranges, setting, 1.0, said, start)
        seen = np.isfinite(search.scores).all(axis=1)
        sharpness = fit_sharpness(search.scores[seen], codes[seen], problem.weights[seen])
        for fold in np.unique(folds):
            held = (folds == fold) & seen
            said[held] = softmax(search.scores[held], sharpness) @ _means(codes, problem, folds != fold)
        return cls(ranges, setting, sharpness, said, start)


def _cuts(problem: Problem, folds: Codes) -> list[Codes]:
    """The ranges to try, (n,) each: those with enough rows."""
    enough = FEWEST * (int(folds.max()) + 1)
    cuts = [bins(problem.y, count) for count in BINS]
    return [codes for codes in cuts if codes.max() > 0 and np.bincount(codes).min() >= enough]


def _means(codes: Codes, problem: Problem, which: NDArray[np.bool_]) -> Array:
    """The mean number (B,) of the rows `which` in each range."""
    weights = problem.weights[which]
    weight = np.bincount(codes[which], weights=weights, minlength=int(codes.max()) + 1)
    total = np.bincount(codes[which], weights=weights * problem.y[which], minlength=len(weight))
    return np.asarray(total / np.maximum(weight, 1e-300))
