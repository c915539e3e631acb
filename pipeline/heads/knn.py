"""Nearest neighbours: how many, in which distance and with which vote is found by cross-validation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.contract import Problem, Search
from pipeline.heads.criterion import measure
from pipeline.heads.estimators import EstimatorHead, known_elsewhere

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
    estimators = ("KNeighborsClassifier", "KNeighborsRegressor")

    def train(self, problem: Problem, folds: NDArray[np.int64] | None) -> Search:
        """Look up the neighbours of each fold once a metric; every setting is a vote among them."""
        from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(problem.rows.array())
        features = scaler.transform(problem.rows.array()).astype(np.float32)
        self.classes = problem.classes
        search = Search(chosen=DEFAULT) if folds is None else self._search(problem, folds, features)
        if problem.weights.std() > 0:
            search.notices.append("knn has no use for class or sample weights: every neighbour has one vote")
        kind = KNeighborsRegressor if problem.classes is None else KNeighborsClassifier
        machine = kind(algorithm="brute", **search.chosen).fit(features, problem.row_y)
        self.pipeline = make_pipeline(scaler, machine)
        return search

    def decision(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logarithms of votes (n, C), or means (n,)."""
        standard = self.pipeline[0].transform(np.asarray(features, dtype=np.float32))
        machine = self.pipeline[1]
        distances, neighbours = machine.kneighbors(standard.astype(np.float32))
        known = machine._y if self.classes is None else machine.classes_[machine._y]
        return _vote(known[neighbours], distances, machine.weights, self.classes)

    def _search(self, problem: Problem, folds: NDArray[np.int64], features: NDArray[np.float32]) -> Search:
        row_folds = np.repeat(folds, problem.views)
        known = known_elsewhere(problem, folds)
        search = Search()
        for metric in METRICS:
            distances, targets = _neighbours(features, problem.row_y, row_folds, metric)
            for votes in VOTES:
                for count in NEIGHBOURS:
                    if count > distances.shape[1]:
                        continue
                    said = _vote(targets[:, :count], distances[:, :count], votes, problem.classes)
                    of_image = problem.per_image(said)
                    found = measure(problem, of_image, known)
                    setting = {"n_neighbors": count, "metric": metric, "weights": votes}
                    if not search.table or found["loss"] < min(entry["loss"] for entry in search.table):
                        search.chosen = setting
                        mask = known if of_image.ndim == 1 else known[:, None]
                        search.scores = np.where(mask, of_image, np.nan)
                    search.table.append({**setting, **found})
        return search


def _neighbours(
    features: NDArray[np.float32], y: NDArray[Any], folds: NDArray[np.int64], metric: str
) -> tuple[Found, NDArray[Any]]:
    """Distances and targets (n, k) of the nearest rows outside each row's fold, nearest first."""
    from sklearn.neighbors import NearestNeighbors

    fewest = int(min((folds != fold).sum() for fold in np.unique(folds)))
    count = min(max(NEIGHBOURS), fewest)
    distances = np.empty((len(y), count))
    targets = np.empty((len(y), count), dtype=y.dtype)
    for fold in np.unique(folds):
        held, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        index = NearestNeighbors(n_neighbors=count, metric=metric, algorithm="brute").fit(features[rest])
        distances[held], nearest = index.kneighbors(features[held])
        targets[held] = y[rest[nearest]]
    return distances, targets


def _vote(targets: NDArray[Any], distances: Found, votes: str, classes: int | None) -> Found:
    """Log shares (n, C) of the votes, or means (n,), of neighbours' `targets` (n, k)."""
    voices = np.ones_like(distances) if votes == "uniform" else 1 / np.maximum(distances, 1e-9)
    voices = voices / voices.sum(axis=1, keepdims=True)
    if classes is None:
        return np.asarray((voices * targets).sum(axis=1))
    shares = np.zeros((len(targets), classes))
    rows = np.arange(len(targets))[:, None]
    np.add.at(shares, (rows, targets), voices)
    return np.asarray(np.log((1 - DOUBT) * shares + DOUBT / classes))
