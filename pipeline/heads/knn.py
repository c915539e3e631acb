"""Nearest neighbours: how many, in which distance and with which vote is found by cross-validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.heads.contract import Problem, Search
from pipeline.heads.criterion import Best
from pipeline.heads.estimators import FILE, EstimatorHead, known_elsewhere, scaler_of

NEIGHBOURS = (1, 3, 5, 9, 15, 25, 45)
METRICS = ("cosine", "euclidean")
VOTES = ("uniform", "distance")
DEFAULT: dict[str, Any] = {"n_neighbors": 1, "metric": "cosine", "weights": "uniform"}
#: Share of every vote that goes to all classes alike: nobody is certain after a few neighbours.
DOUBT = 0.02

Found = NDArray[np.float64]


class KnnHead(EstimatorHead):
    """The vote, or the mean, of the nearest training rows among standardised features."""

    name = "knn"
    cost = 2.0
    estimators = ("KNeighborsClassifier", "KNeighborsRegressor")

    def train(self, problem: Problem, folds: NDArray[np.int64] | None) -> Search:
        """Look up the neighbours of each fold once a metric; every setting is a vote among them."""
        from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
        from sklearn.pipeline import make_pipeline

        scaler = scaler_of(problem.standard())
        features = scaler.transform(problem.rows.array()).astype(np.float32)
        self.classes = problem.classes
        search = Search(chosen=DEFAULT) if folds is None else self._search(problem, folds, features)
        kind = KNeighborsRegressor if problem.classes is None else KNeighborsClassifier
        machine = kind(algorithm="brute", **search.chosen).fit(features, problem.row_y)
        machine.row_weights_ = problem.row_weights  # saved with it
        self.pipeline = make_pipeline(scaler, machine)
        return search

    def decision(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logarithms of votes (n, C), or means (n,)."""
        standard = self.pipeline[0].transform(np.asarray(features, dtype=np.float32))
        machine = self.pipeline[1]
        distances, neighbours = machine.kneighbors(standard.astype(np.float32))
        known = machine._y if self.classes is None else machine.classes_[machine._y]
        voices = _voices(distances, machine.weights, machine.row_weights_[neighbours])
        return _vote(known[neighbours], voices, self.classes)

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """What `save` wrote."""
        head = super().load(folder, config)
        if not hasattr(head.pipeline[1], "row_weights_"):
            raise ModelError(f"{folder / FILE} has no weights of its rows; train the head again")
        return head

    def _search(self, problem: Problem, folds: NDArray[np.int64], features: NDArray[np.float32]) -> Search:
        row_folds = np.repeat(folds, problem.views)
        best = Best(problem, folds, known_elsewhere(problem, folds))
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
    from sklearn.neighbors import NearestNeighbors

    fewest = int(min((folds != fold).sum() for fold in np.unique(folds)))
    count = min(max(NEIGHBOURS), fewest)
    distances = np.empty((len(folds), count))
    positions = np.empty((len(folds), count), dtype=np.int64)
    for fold in np.unique(folds):
        held, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        index = NearestNeighbors(n_neighbors=count, metric=metric, algorithm="brute").fit(features[rest])
        distances[held], nearest = index.kneighbors(features[held])
        positions[held] = rest[nearest]
    return distances, positions


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
