"""The contract of every head: trained on a `Problem`, asked with arrays, saved without pickle.

A head searches its settings by cross-validation inside the rows it is given and never sees others. Features are
standardised by the mean and spread of those rows. What a search leaves behind is kept in `Search`, among it the
scores of every row by a model that did not train on it: calibration and prediction intervals are made of these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FitSettings
from pipeline.errors import HeadError, ModelError
from pipeline.heads.calibration import fit_inverse_temperature, interval_half_width, least_in_set, softmax
from pipeline.heads.power import Power
from pipeline.heads.rows import Rows, block_length
from pipeline.heads.standard import Standard
from pipeline.progress import Watch, unwatched
from pipeline.sources.manifest import Task as Task
from pipeline.splits import make_folds

#: Numbers beyond this, or that vary by less than its reciprocal, are none that weights in single precision can give.
LARGEST_NUMBER = 1e30

#: How many times as wide or as narrow as usual an interval may be: features unlike all others ask for any width.
WIDEST = 10.0

TOO_FEW = "too few examples for cross-validation: default settings, no calibration"


@dataclass(frozen=True)
class Problem:
    """Training images: V consecutive feature rows each (V = 1 without views), and for each of the n images the rest.

    `y` is class codes (n,) int64 or numbers (n,) float64, `weights` (n,) positive with mean 1, `groups` (n,) equal
    where one image is no evidence for another (identical content, one patient), `classes` the number of classes or None
    for numbers. `widths` are the dimensions of each layer, where rows are several of them side by side. `watch` hears
    how far the search of a head is.
    """

    rows: Rows
    y: NDArray[Any]
    weights: NDArray[np.float64]
    groups: NDArray[np.int64]
    classes: int | None
    views: int = 1
    score_views: str = "plain"
    widths: tuple[int, ...] = ()
    watch: Watch = unwatched

    @property
    def task(self) -> Task:
        """Whether classes or numbers are asked for."""
        return "numbers" if self.classes is None else "classes"

    @property
    def row_y(self) -> NDArray[Any]:
        """The target of every feature row, (n V,)."""
        return np.repeat(self.y, self.views)

    @property
    def row_weights(self) -> NDArray[np.float64]:
        """The weight of every feature row, (n V,): the views of an image share its weight."""
        return np.repeat(self.weights / self.views, self.views)

    def per_image(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Scores of any images (m, ...) from those of their feature rows (m V, ...): the plain view's, or the mean."""
        if self.views == 1:
            return scores
        stacked = scores.reshape(-1, self.views, *scores.shape[1:])
        return np.asarray(stacked.mean(axis=1) if self.score_views == "mean" else stacked[:, 0])

    def feature_rows(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of the feature rows of `images`."""
        return (images[:, None] * self.views + np.arange(self.views)).ravel()

    def take(self, images: NDArray[np.int64]) -> Problem:
        """Return the problem of some of the images."""
        weights = self.weights[images]
        return replace(
            self,
            rows=self.rows.take(self.feature_rows(images)),
            y=self.y[images],
            weights=weights / weights.mean(),
            groups=self.groups[images],
        )

    @property
    def dimensions(self) -> int:
        """D, the features of a row."""
        return self.rows.shape[1]

    def seen_through(self, power: Power | None) -> Problem:
        """Return the same problem with its features transformed, or as it is."""
        return self if power is None else replace(self, rows=power.rows(self.rows))

    def images(self, which: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features (m, V, D) of the images `which`."""
        blocks = self.rows.take(self.feature_rows(which)).blocks()
        return np.concatenate([block for _, block in blocks]).reshape(len(which), self.views, -1)

    def standard(self) -> Standard:
        """How the features are standardised: by all rows, each layer for itself."""
        return Standard.of(self.rows, self.widths)

    def folds(self, count: int, seed: int) -> NDArray[np.int64] | None:
        """Return the fold of each image, (n,), or None where no class has two distinct images to learn and check on."""
        distinct = len(np.unique(self.groups))
        if self.classes is not None:
            in_groups = np.unique(np.stack([self.groups, self.y]), axis=1)[1]
            if np.bincount(in_groups).max() < 2:
                return None
        if distinct < 3:
            return None
        folds = make_folds(self.y, self.groups, folds=min(count, distinct), seed=seed)
        return folds if self.known(folds).any() else None

    def known(self, folds: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Mask (n,) of the images that a model without their fold can be judged by.

        It has to know their class, and another one to tell it from.
        """
        if self.classes is None:
            return np.ones(len(folds), dtype=bool)
        count = np.zeros((int(folds.max()) + 1, self.classes), dtype=np.int64)
        np.add.at(count, (folds, self.y), 1)
        outside = count.sum(axis=0) - count  # (folds, classes)
        several = (outside > 0).sum(axis=1) > 1
        return np.asarray((outside[folds, self.y] > 0) & several[folds])

    def refuse_unlearnable(self) -> None:
        """Raise `HeadError` where there are no two classes, or numbers too large or too alike for a head."""
        if len(self.y) == 0:
            raise HeadError("there is no row to train on")
        if self.classes is not None and (self.y == self.y[0]).all():
            raise HeadError("all rows are of one class; a head needs two classes to tell apart")
        if self.classes is None:
            refuse_extremes(self.y)


@dataclass
class Search:
    """The result of a search: every setting with its loss, the chosen one, and out-of-fold scores with it.

    `scores` (n, C) or (n,) are raw, NaN where no fold could score an image; None where nothing could be searched.
    `nested` (n, C) are probabilities of each fold by a search, calibration included, that saw nothing of it; None where
    that would take long.
    """

    table: list[dict[str, Any]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)
    scores: NDArray[Any] | None = None
    nested: NDArray[np.float64] | None = None
    notices: list[str] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None


class FeatureSource(Protocol):
    """Images with the features of `views` rows each, of `dimensions` numbers: a `Problem` or a `FeatureTable`."""

    @property
    def views(self) -> int:
        """V, the feature rows of an image."""

    @property
    def dimensions(self) -> int:
        """D, the features of a row."""

    def images(self, images: NDArray[np.int64], /) -> NDArray[np.float32]:
        """Features (n, V, D) of `images`."""


class Head(ABC):
    """A small model on features. `search` says how its settings were found, while it is fresh from training."""

    name: ClassVar[str]
    tasks: ClassVar[tuple[Task, ...]] = ("classes", "numbers")
    #: What `train` learns; fewer than `tasks` where a head of the other kind can only be made from weights.
    learns: ClassVar[tuple[Task, ...]] = ("classes", "numbers")
    #: Whether it can be trained on more rows than fit into memory.
    streams: ClassVar[bool] = False
    #: Feature rows up to which searching once more for each fold is done in no time.
    nests: ClassVar[int] = 0
    #: How long its search takes beside those of the others, roughly: only what is said of the time left hangs on it.
    cost: ClassVar[float] = 1.0

    def __init__(self, task: Task, settings: FitSettings | None = None) -> None:
        if task not in self.tasks:
            other = "regressor" if task == "numbers" else "linear"
            raise HeadError(f"head {self.name!r} cannot predict {task}; take --head {other}")
        self.task: Task = task
        self.settings = settings or FitSettings.of({})
        self.search = Search()
        self.inverse_temperature = 1.0
        self.coverage = self.settings.coverage
        self.interval_half_width: float | None = None
        self.least_in_set: float | None = None
        self.power: Power | None = None
        self.spread: Head | None = None  # the logarithm of an error beside others, where that is told by the features

    def fit(self, problem: Problem, folds: NDArray[np.int64] | None = None) -> Self:
        """Search, train on all of `problem`, calibrate. `folds` (n,) are those of `problem.folds` unless given.

        Features are taken as they are unless the settings say power=sqrt; auto is for `selection`, which knows a
        measure for all heads.
        """
        problem.refuse_unlearnable()
        if folds is None:
            folds = problem.folds(self.settings.cv, self.settings.seed)
        self.power = self._own_power(problem)
        self.search = self.train(problem.seen_through(self.power), folds)
        if self.power is not None:
            self.search.chosen = {**self.search.chosen, "power": "sqrt"}
        if folds is None and TOO_FEW not in self.search.notices:
            self.search.notices.append(TOO_FEW)
        self._calibrate(problem)
        return self

    def _own_power(self, problem: Problem) -> Power | None:
        """Return the transformation that the settings name."""
        return Power(problem.widths or (problem.dimensions,)) if self.settings.power == "sqrt" else None

    @abstractmethod
    def train(self, problem: Problem, folds: NDArray[np.int64] | None) -> Search:
        """Choose settings by `folds` (defaults where None) and train on all rows with them."""

    @property
    @abstractmethod
    def dimensions(self) -> int:
        """D, the features of a row."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """C, the number of classes, or 1 for numbers."""

    @abstractmethod
    def _decide(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Raw scores (n, C), larger is likelier, or values (n,), of features (n, D)."""

    @abstractmethod
    def save(self, folder: Path) -> dict[str, Any]:
        """Write what was learned into `folder`; what is returned is JSON and goes to `load`."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """Open what `save` wrote. Raises `ModelError`."""

    def fold_scores(self, problem: Problem, folds: NDArray[np.int64]) -> NDArray[Any] | None:
        """Out-of-fold scores of the `problem` that it was trained on, whole `folds` held out at a time."""
        return self._fold_scores(problem.seen_through(self.power), folds)

    def _fold_scores(self, problem: Problem, folds: NDArray[np.int64]) -> NDArray[Any] | None:
        """Return the same for a problem whose features are transformed."""
        return self.search.scores

    def decision_function(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Raw scores (n, C), larger is likelier, or values (n,), of features (n, D) or (n, V, D): the mean over views.

        Raises `ModelError` for another D than that of the training rows.
        """
        if features.shape[-1] != self.dimensions:
            raise ModelError(f"head {self.name!r} takes {self.dimensions} features a row, not {features.shape[-1]}")
        if self.power is not None:
            features = self.power.apply(features)
        return self._decide(features) if features.ndim == 2 else self._decide_views(features)

    def _decide_views(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Average `_decide` over the views of features (n, V, D)."""
        rows, views, dimensions = features.shape
        scores = self._decide(features.reshape(rows * views, dimensions))
        return np.asarray(scores.reshape(rows, views, *scores.shape[1:]).mean(axis=1))

    def decision_function_of(
        self, source: FeatureSource, images: NDArray[np.int64], *, score_views: str
    ) -> NDArray[np.float64]:
        """`decision_function` of some `images` of the `source`, read in blocks: of their plain view or of all views."""
        shown = slice(None) if score_views == "mean" else slice(1)
        length = max(block_length(source.dimensions) // source.views, 1)
        parts = (images[start : start + length] for start in range(0, len(images), length))
        return np.concatenate([self.decision_function(source.images(part)[:, shown]) for part in parts])

    def predict_proba(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Class probabilities (n, C), or values (n,), of features as `decision_function` takes them.

        Raises `ModelError` where they are no numbers, as those of weights that are far too large.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # which shows in what comes of it
            found = self.calibrated(self.decision_function(features))
        if not np.isfinite(found).all():
            raise ModelError(f"head {self.name!r} answers with NaN or infinity; train it again")
        return found

    def half_widths(self, features: NDArray[np.floating]) -> NDArray[np.float64] | None:
        """Return half the width (n,) of the prediction interval of each row, None for a head that has none."""
        if self.interval_half_width is None:
            return None
        if self.spread is None:
            return np.full(len(features), self.interval_half_width)
        return self.interval_half_width * spread_factors(self.spread.decision_function(features))

    def half_widths_of(
        self, source: FeatureSource, images: NDArray[np.int64], *, score_views: str
    ) -> NDArray[np.float64] | float | None:
        """Return `half_widths` of some `images` of the `source`; one number where they are all the same."""
        if self.interval_half_width is None or self.spread is None:
            return self.interval_half_width
        logarithms = self.spread.decision_function_of(source, images, score_views=score_views)
        return self.interval_half_width * spread_factors(logarithms)

    def calibrated(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Class probabilities (n, C) from raw `scores` (n, C); values (n,) as they are."""
        if self.task == "numbers":
            return np.asarray(scores, dtype=np.float64)
        return softmax(scores, self.inverse_temperature)

    def predict(self, features: NDArray[np.floating]) -> NDArray[Any]:
        """Class codes (n,) or values (n,)."""
        scores = self.predict_proba(features)
        return scores if self.task == "numbers" else scores.argmax(axis=1)

    def prediction_sets(self, probabilities: NDArray[np.float64]) -> NDArray[np.bool_] | None:
        """Which classes (n, C) to expect where `coverage` of the truths should be among them; None where it is unknown.

        The likeliest class is always among them, also where none alone is likely enough.
        """
        if self.least_in_set is None:
            return None
        chosen = probabilities >= self.least_in_set
        chosen[np.arange(len(chosen)), probabilities.argmax(axis=1)] = True
        return chosen

    def config(self) -> dict[str, Any]:
        """Return what all heads keep beside their weights, for JSON."""
        shared: dict[str, Any] = {"task": self.task}
        if self.power is not None:
            shared["power"] = self.power.config()
        if self.task == "classes":
            shared |= {"sharpness": self.inverse_temperature}  # the key of version 0.1.0
            return shared | {"set_least": self.least_in_set, "set_coverage": self.coverage}
        return shared | {
            "interval_half_width": self.interval_half_width,
            "interval_coverage": self.coverage,
        }

    @classmethod
    def restore(cls, config: Mapping[str, Any]) -> Self:
        """Make an untrained head with what `config` kept."""
        head = cls(config["task"])
        head.coverage = float(config.get("interval_coverage", config.get("set_coverage", head.coverage)))
        head.inverse_temperature = float(config.get("sharpness", 1.0))
        head.power = Power.of(config["power"]) if "power" in config else None
        half = config.get("interval_half_width")
        head.interval_half_width = None if half is None else float(half)
        least = config.get("set_least")
        head.least_in_set = None if least is None else float(least)
        if not (
            0 < head.inverse_temperature < np.inf
            and 0 <= (head.least_in_set or 0) <= 1
            and 0 <= (head.interval_half_width or 0) < np.inf
            and 0 < head.coverage < 1
        ):
            raise ValueError(
                f"sharpness is {head.inverse_temperature}, interval_half_width is {head.interval_half_width}, "
                f"set_least is {head.least_in_set}, coverage is {head.coverage}"
            )
        return head

    def _calibrate(self, problem: Problem) -> None:
        """Fit temperature and sets, or interval, on out-of-fold scores: of rows that the scoring model did not see."""
        scores = self.search.scores
        if scores is None:
            return
        seen = np.isfinite(scores if scores.ndim == 1 else scores.sum(axis=1))
        if problem.task == "classes":
            self.inverse_temperature = fit_inverse_temperature(scores[seen], problem.y[seen], problem.weights[seen])
            distinct = np.flatnonzero(seen)[np.unique(problem.groups[seen], return_index=True)[1]]
            self.least_in_set = least_in_set(self.calibrated(scores[distinct]), problem.y[distinct], self.coverage)
            return
        self.interval_half_width = interval_half_width(scores[seen] - problem.y[seen], self.coverage)
        if self.interval_half_width is None:
            self.search.notices.append(
                f"{int(seen.sum())} rows are too few for a prediction interval of {self.coverage:.0%}"
            )


def spread_factors(logarithms: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return what an interval is widened by, (n,), from the `logarithms` (n,) of errors beside the usual one."""
    most = np.log(WIDEST)
    return np.exp(np.clip(np.asarray(logarithms, dtype=np.float64), -most, most))


def refuse_extremes(y: NDArray[np.floating]) -> None:
    """Raise `HeadError` where numbers (n,) are too large for a head, or vary too little."""
    largest = float(np.abs(y).max())
    if not largest <= LARGEST_NUMBER:
        raise HeadError(
            f"a number to learn is {largest:.3g}, and heads learn up to {LARGEST_NUMBER:g}; take another unit"
        )
    spread = float(np.ptp(y))
    if 0 < spread < 1 / LARGEST_NUMBER:
        raise HeadError(
            f"the numbers to learn differ by {spread:.3g}, and heads tell {1 / LARGEST_NUMBER:g} apart; "
            "take another unit"
        )
