"""Numbers by way of classes: which of a few ranges a number is in, by logistic regression, and the mean of that range.

Where numbers lie in heaps (cats are short, tigers are long) a line through all of them is a poor fit, and noise within
a heap pulls at it. Classes do not care how far apart heaps are, nor how noisy each one is, and the mean over ranges,
weighed by their probabilities, bends where the heaps are (Weiss and Indurkhya, 1995; Stewart et al., 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.heads.affine import FILE
from pipeline.heads.contract import TOO_FEW, Head, Problem, Search, Task
from pipeline.heads.criterion import Best
from pipeline.heads.linear import LinearHead

#: Ranges that are tried, each with about as many rows as any other.
BINS = (2, 3, 5, 8)
#: Rows a range and fold below which means of ranges are too uncertain.
FEWEST = 2

Array = NDArray[np.float64]


class BinnedHead(Head):
    """Logistic regression of ranges; `values` (B,) are the mean of the training numbers in each."""

    name = "binned"
    tasks: ClassVar[tuple[Task, ...]] = ("numbers",)
    learns: ClassVar[tuple[Task, ...]] = ("numbers",)
    streams = True

    classifier: LinearHead
    values: Array

    def train(self, problem: Problem, folds: NDArray[np.int64] | None) -> Search:
        """Search the number of ranges, and for each the penalty."""
        enough = 1 if folds is None else FEWEST * (int(folds.max()) + 1)
        cuts = [codes for count in BINS if len(codes := bins(problem.y, count)) and np.bincount(codes).min() >= enough]
        if folds is None or not cuts:
            self._fit(problem, bins(problem.y, BINS[0]), None)
            return Search(chosen={"bins": len(self.values)}, notices=[TOO_FEW])
        tried = []
        for codes in cuts:
            self._fit(problem, codes, folds)
            chances = self.classifier.probabilities(np.asarray(self.classifier.search.scores))
            tried.append((self.classifier, self.values, _expected(chances, problem, codes, folds)))
        best = Best(problem, folds, np.all([np.isfinite(said) for _, _, said in tried], axis=0))
        table = []
        for classifier, values, said in tried:
            setting = {"bins": len(values), **classifier.search.chosen}
            table.append({**setting, **best.offer(setting, said)})
            if best.setting == setting:
                self.classifier, self.values = classifier, values
        return Search(table, best.setting, best.scores)

    def _fit(self, problem: Problem, codes: NDArray[np.int64], folds: NDArray[np.int64] | None) -> None:
        ranges = replace(problem, y=codes, classes=int(codes.max()) + 1)
        self.classifier = LinearHead("classes", self.settings).fit(ranges, folds)
        self.values = _means(problem, codes, np.ones(len(codes), dtype=bool))

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


def bins(y: Array, count: int) -> NDArray[np.int64]:
    """The range of each number, (n,): `count` of about as many numbers each, fewer where numbers are equal."""
    edges = np.quantile(y, np.arange(1, count) / count)
    return np.unique(np.searchsorted(edges, y, side="left"), return_inverse=True)[1].astype(np.int64)


def _expected(chances: Array, problem: Problem, codes: NDArray[np.int64], folds: NDArray[np.int64]) -> Array:
    """Means over ranges (n,), of which each fold's are those of the other folds."""
    said = np.full(len(codes), np.nan)
    for fold in np.unique(folds):
        said[folds == fold] = chances[folds == fold] @ _means(problem, codes, folds != fold)
    return said


def _means(problem: Problem, codes: NDArray[np.int64], which: NDArray[np.bool_]) -> Array:
    count = int(codes.max()) + 1
    weight = np.bincount(codes[which], weights=problem.weights[which], minlength=count)
    total = np.bincount(codes[which], weights=problem.weights[which] * problem.y[which], minlength=count)
    return np.asarray(total / np.maximum(weight, 1e-300))
