"""Nearest neighbours: how many, in which distance and with which vote is found by cross-validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.contract import Head, Problem, Search
from pipeline.heads.criterion import Best
from pipeline.heads.estimators import FILE, Estimator
from pipeline.heads.standard import Standard
from pipeline.heads.tensors import Tensors, write_tensors

NEIGHBOURS = (1, 3, 5, 9, 15, 25, 45)
METRICS = ("cosine", "euclidean")
VOTES = ("uniform", "distance")
DEFAULT: dict[str, Any] = {"n_neighbors": 1, "metric": "cosine", "weights": "uniform"}
#: Share of every vote that goes to all classes alike: nobody is certain after a few neighbours.
DOUBT = 0.02

Found = NDArray[np.float64]


class KnnHead(Head):
    """The vote, or the mean, of the nearest training rows among standardised features."""

    name = "knn"
    cost = 2.0
    nests = 1000

    #: Number of classes, None for numbers.
    classes: int | None = None

    standard: Standard
    #: Standardised training rows (n, D), their class codes or numbers (n,), and how much each counts (n,).
    rows: NDArray[np.float32]
    targets: NDArray[Any]
    row_weights: NDArray[np.float64]
    #: Keys as those of `DEFAULT`.
    setting: dict[str, Any]

    def train(self, problem: Problem, folds: NDArray[np.int64] | None) -> Search:
        """Look up the neighbours of each fold once a metric; every setting is a vote among them."""
        standard = problem.standard()
        features = standard.divide(problem.rows.array())
        self.classes = problem.classes
        search = Search(chosen=DEFAULT) if folds is None else self._search(problem, folds, features)
        kept: dict[str, Any] = {"mean": standard.mean, "scale": standard.scale, "rows": features}
        kept |= {"targets": problem.row_y, "row_weights": problem.row_weights}
        self.place(Tensors.trained(kept), search.chosen)
        return search

    def place(self, tensors: Tensors, setting: Mapping[str, Any]) -> None:
        """Take scaler, rows and targets, trained or loaded, and the `setting` of the vote."""
        mean = tensors.take("mean", (None,), np.float64)
        self.standard = Standard(mean, tensors.divisors("scale", mean.shape))
        self.rows = tensors.take("rows", (None, len(mean)), np.float32)
        count = len(self.rows)
        self.targets = tensors.take("targets", (count,), np.float64 if self.classes is None else np.int64)
        self.row_weights = tensors.take("row_weights", (count,), np.float64)
        tensors.require((self.row_weights > 0).all(), "row_weights holds what is not positive")
        self.setting = {"n_neighbors": int(setting["n_neighbors"])} | {
            key: setting[key] for key in ("metric", "weights")
        }
        fits = self.setting["metric"] in METRICS and self.setting["weights"] in VOTES
        tensors.require(fits, f"{self.setting} is no setting of this head")
        tensors.require(
            1 <= self.setting["n_neighbors"] <= count, f"{count} rows have no {setting['n_neighbors']} nearest"
        )
        if self.classes is not None:
            within = self.targets.min() >= 0 and self.targets.max() < self.classes
            tensors.require(within, f"targets holds what is none of {self.classes} classes")

    @property
    def dimensions(self) -> int:
        """Features of a row."""
        return len(self.standard.mean)

    @property
    def outputs(self) -> int:
        """Classes, or 1."""
        return self.classes or 1

    def _decide(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logarithms of votes (n, C), or means (n,)."""
        asked = self.standard.divide(features)
        distances, neighbours = _nearest(self.rows, asked, self.setting["metric"], self.setting["n_neighbors"])
        voices = _voices(distances, self.setting["weights"], self.row_weights[neighbours])
        return _vote(self.targets[neighbours], voices, self.classes)

    def save(self, folder: Path) -> dict[str, Any]:
        """Scaler and rows in head.safetensors."""
        arrays: dict[str, Any] = {"mean": self.standard.mean, "scale": self.standard.scale, "rows": self.rows}
        write_tensors(folder, arrays | {"targets": self.targets, "row_weights": self.row_weights})
        return self.config() | {"classes": self.classes, "setting": self.setting}

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """Open what `save` wrote, or what version 0.1.0 wrote into head.skops."""
        head = cls.restore(config)
        head.classes = None if head.task == "numbers" else int(config["classes"])
        if "setting" in config:
            head.place(Tensors.read(folder), config["setting"])
            return head
        old = Estimator.read(
            folder / FILE, ("KNeighborsRegressor" if head.classes is None else "KNeighborsClassifier",)
        )
        kept = {"mean": old.scaler.get("mean_"), "scale": old.scaler.get("scale_"), "rows": old.learned["_fit_X"]}
        kept |= {"targets": _old_targets(old), "row_weights": old.learned.get("row_weights_")}
        head.place(Tensors(kept, str(old.path)), old.learned)
        return head

    def _search(self, problem: Problem, folds: NDArray[np.int64], features: NDArray[np.float32]) -> Search:
        row_folds = np.repeat(folds, problem.views)
        best = Best(problem, folds, problem.known(folds))
        table = []
        for metric in METRICS:
            distances, nearest = _neighbours(features, row_folds, metric)
            targets, weights = problem.row_y[nearest], problem.row_weights[nearest]
            for votes in VOTES:
                for count in NEIGHBOURS:
                    if count > distances.shape[1]:
                        continue
                    voices = _voices(distances[:, :count], votes, weights[:, :count])
                    said = _vote(targets[:, :count], voices, problem.classes)
                    setting = {"n_neighbors": count, "metric": metric, "weights": votes}
                    table.append({**setting, **best.offer(setting, problem.per_image(said))})
        return Search(table, best.setting, best.scores)


def _neighbours(
    features: NDArray[np.float32], folds: NDArray[np.int64], metric: str
) -> tuple[Found, NDArray[np.int64]]:
    """Distances and positions (n, k) of the nearest rows outside each row's fold, nearest first."""
    fewest = int(min((folds != fold).sum() for fold in np.unique(folds)))
    count = min(max(NEIGHBOURS), fewest)
    distances = np.empty((len(folds), count))
    positions = np.empty((len(folds), count), dtype=np.int64)
    for fold in np.unique(folds):
        held, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        distances[held], nearest = _nearest(features[rest], features[held], metric, count)
        positions[held] = rest[nearest]
    return distances, positions


def _nearest(
    rows: NDArray[np.float32], asked: NDArray[np.float32], metric: str, count: int
) -> tuple[Found, NDArray[np.int64]]:
    """Distances and positions (m, count) of the `rows` nearest to each of those `asked` (m, D), nearest first."""
    from sklearn.neighbors import NearestNeighbors  # by comparing all, in blocks of bounded memory

    return NearestNeighbors(n_neighbors=count, metric=metric, algorithm="brute").fit(rows).kneighbors(asked)  # type: ignore[no-any-return]


def _old_targets(old: Estimator) -> NDArray[Any]:
    """Class codes or numbers (n,) of the rows of a scikit-learn estimator, which may be forged."""
    targets = np.asarray(old.learned["_y"])
    if "classes_" not in old.learned:
        return targets
    classes = np.asarray(old.learned["classes_"])
    if targets.dtype.kind != "i" or targets.min(initial=0) < 0:
        raise ValueError("its targets are no classes")
    return np.asarray(classes[targets])


def _voices(distances: Found, votes: str, weights: Found) -> Found:
    """Each neighbour's share (n, k) of the vote: its weight, over its distance where that counts."""
    voices = weights if votes == "uniform" else weights / np.maximum(distances, 1e-9)
    return np.asarray(voices / voices.sum(axis=1, keepdims=True))


def _vote(targets: NDArray[Any], voices: Found, classes: int | None) -> Found:
    """Log shares (n, C) of the votes, or means (n,), of neighbours' `targets` (n, k)."""
    if classes is None:
        return np.asarray((voices * targets).sum(axis=1))
    shares = np.zeros((len(targets), classes))
    rows = np.arange(len(targets))[:, None]
    np.add.at(shares, (rows, targets), voices)
    return np.asarray(np.log((1 - DOUBT) * shares + DOUBT / classes))
