"""How unlike the training pictures an image is, by its features alone: what a head answers for strangers is no answer.

Features are brought to length one, layer by layer. Two measures are tried, and the one is kept that is better at
telling classes, left out in turn, from the others:

    Neighbours    the mean cosine distance to the nearest few training rows (Sun et al., 2022)
    Covariance    the squared Mahalanobis distance to the nearest class mean (Lee et al., 2018), with one covariance
                  within classes, shrunk after Ledoit and Wolf (2004)

Both are asked about training rows out of fold; what is more unlike than 95 % of these is called unknown. All that is
kept is a sample of the training rows, of distinct contents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.heads.calibration import conformal_quantile
from pipeline.heads.contract import FeatureSource
from pipeline.heads.rows import block_length
from pipeline.heads.solvers.gram import gram, spanned
from pipeline.heads.tensors import Tensors

FILE = "unlikeness.safetensors"
#: Share of out-of-fold training rows that are not called unknown.
ACCEPTED = 0.95
#: Fewer rows leave the threshold unknown: its rank would be beyond the last one.
FEWEST = 19
#: Rows kept at most, and numbers in them: 4 MB, and well below a millisecond an image.
MOST_ROWS, FLOATS = 2000, 2**21
#: Rows kept at least, where there are so many, whatever their dimensions.
LEAST_ROWS = 256
NEIGHBOURS = 5
FOLDS = 5
#: Directions of the covariance that are kept; it is the same in all others.
DIRECTIONS = 256
#: Classes that are left out in turn, and rows of the others by which a measure is chosen.
LEFT_OUT, CONTEST_ROWS = 5, 500
_TINY = 1e-12

Rows = NDArray[np.float32]
Scores = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The mean cosine distance to the nearest `rows` (n, D), which are of length one."""

    name: ClassVar[str] = "neighbours"
    rows: Rows

    @classmethod
    def fit(cls, rows: Rows, codes: Codes) -> Self:
        """Keep the rows."""
        return cls(rows)

    def scores(self, asked: Rows) -> Scores:
        """Return the distances (m,) of rows (m, D)."""
        return _mean_of_nearest(asked @ self.rows.T)

    @classmethod
    def out_of_fold(cls, rows: Rows, codes: Codes, groups: Codes) -> Scores:
        """Return the distance (n,) of each row from those of other `groups` (n,)."""
        alike = rows @ rows.T
        alike[groups[:, None] == groups] = -np.inf
        return _mean_of_nearest(alike, most=len(rows) - int(np.unique(groups, return_counts=True)[1].max()))


@dataclass(frozen=True, eq=False)
class Covariance:
    """The squared Mahalanobis distance to the nearest of the `means` (C, D).

    The variance is `variances` (r,) along the `directions` (r, D), which are orthonormal, and `rest` in all others.
    """

    name: ClassVar[str] = "covariance"
    means: Rows
    directions: Rows
    variances: NDArray[np.float64]
    rest: float

    @classmethod
    def fit(cls, rows: Rows, codes: Codes) -> Self:
        """Estimate it from rows (n, D) of classes (n,)."""
        known, places = np.unique(codes, return_inverse=True)
        means = np.stack([rows[places == place].mean(axis=0) for place in range(len(known))])
        within = rows - means[places]
        return cls(means, *_shrunk(within))

    def scores(self, asked: Rows) -> Scores:
        """Return the distances (m,) of rows (m, D)."""
        along = (asked @ self.directions.T).astype(np.float64)
        inside = _squared_distances(along, self._means_along)
        beside = np.maximum(_squared_distances(asked, self.means) - inside, 0)
        scale = np.sqrt(self.variances)
        scaled = _squared_distances(along / scale, self._means_along / scale)
        return np.asarray((scaled + beside / self.rest).min(axis=1))

    @cached_property
    def _means_along(self) -> NDArray[np.float64]:
        """The means in the coordinates of the directions, (C, r)."""
        return (self.means @ self.directions.T).astype(np.float64)

    @classmethod
    def out_of_fold(cls, rows: Rows, codes: Codes, groups: Codes) -> Scores:
        """Return the distance (n,) of each row by the estimate from rows of other `groups` (n,)."""
        found, folds = np.empty(len(rows)), np.unique(groups, return_inverse=True)[1] % FOLDS
        for fold in range(FOLDS):
            rest = folds != fold
            found[~rest] = cls.fit(rows[rest], codes[rest]).scores(rows[~rest])
        return found


Measure = Neighbours | Covariance


@dataclass(frozen=True)
class Separation:
    """How well left-out classes are told from the others: area under the ROC curve, and the share called unknown."""

    area: float
    caught: float


@dataclass(frozen=True, eq=False)
class Unlikeness:
    """How unlike the training pictures `ids`, with features `rows` (n, D), an image is; beyond 1 it is unknown.

    `widths` are the dimensions of each layer, `threshold` is the score of the measure that counts as 1. `caught` is the
    share of left-out classes beyond it, None where no class could be left out.
    """

    measure: Measure
    rows: Rows
    ids: Sequence[str]
    widths: tuple[int, ...]
    threshold: float
    caught: float | None = None

    @classmethod
    def of(
        cls, features: Rows, codes: Codes, ids: Sequence[str], widths: Sequence[int], *, groups: Codes | None = None
    ) -> Self | None:
        """Learn from the `features` (n, D) of distinct pictures in random order; None where they are too few.

        `codes` (n,) are their classes, or all the same where there are none. Pictures of one of the `groups` (n,) do
        not show how unlike each other pictures are.
        """
        rows = unit_rows(features, widths).astype(np.float16).astype(np.float32)  # as they are kept
        groups = np.arange(len(rows)) if groups is None else groups
        if len(np.unique(groups)) < FEWEST:
            return None
        kind = _better(rows, codes, groups)
        own = kind.out_of_fold(rows, codes, groups)
        threshold = max(conformal_quantile(own, ACCEPTED) or 0.0, _TINY)
        found = separation(kind, rows, codes, groups, most=len(rows))
        caught = None if found is None else found.caught
        return cls(kind.fit(rows, codes), rows, ids, tuple(widths), threshold, caught)

    def of_images(self, features: NDArray[np.floating]) -> tuple[Scores, list[str]]:
        """Return how unlike images with `features` (m, D) are, (m,), and the id of the picture nearest to each."""
        rows = unit_rows(features, self.widths)
        alike = rows @ self.rows.T
        known = isinstance(self.measure, Neighbours)
        scores = _mean_of_nearest(alike) if known else self.measure.scores(rows)
        return scores / self.threshold, [self.ids[row] for row in alike.argmax(axis=1)]

    def marked(self, source: FeatureSource, images: Codes) -> float:
        """Return the share of some `images` of the `source`, read in blocks, that are called unknown."""
        length = max(block_length(source.dimensions) // source.views, 1)
        parts = (images[start : start + length] for start in range(0, len(images), length))
        return float(np.concatenate([self.of_images(source.images(part)[:, 0])[0] > 1 for part in parts]).mean())

    def describe(self) -> dict[str, Any]:
        """Describe it for model.json: the measure, how many pictures it knows, and the errors to expect."""
        rates = {"accepted": ACCEPTED, "caught": self.caught}
        return {"measure": self.measure.name, "rows": len(self.rows), **rates}

    @property
    def explanation(self) -> str:
        """The meaning of being called unknown, for a person, and how often it is wrong."""
        found = "" if self.caught is None else f", and {self.caught:.0%} of a class that is left out"
        return (
            "unlike the training pictures, and what is said of them may mean nothing; to expect are "
            f"{1 - ACCEPTED:.0%} of pictures like those{found}"
        )

    def write(self, folder: Path) -> None:
        """Write unlikeness.safetensors."""
        from safetensors.numpy import save_file

        text = json.dumps(list(self.ids)).encode()  # ASCII, whatever bytes a file name holds
        kept: dict[str, NDArray[Any]] = {"rows": self.rows.astype(np.float16), "ids": np.frombuffer(text, np.uint8)}
        kept |= {"widths": np.array(self.widths, np.int64), "threshold": np.array([self.threshold])}
        if self.caught is not None:
            kept["caught"] = np.array([self.caught])
        if isinstance(self.measure, Covariance):
            kept |= {"means": self.measure.means, "directions": self.measure.directions}
            kept |= {"variances": self.measure.variances, "rest": np.array([self.measure.rest])}
        save_file({name: np.ascontiguousarray(array) for name, array in kept.items()}, folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what `write` wrote. Raises `ModelError`."""
        tensors = Tensors.read(folder, FILE)
        rows = tensors.take("rows", (None, None), np.float32)
        widths = tensors.take("widths", (None,), np.int64)
        tensors.require(len(rows) > 0 and (widths > 0).all() and widths.sum() == rows.shape[1], "widths do not fit")
        threshold = float(tensors.divisors("threshold", (1,))[0])
        measure: Measure = Neighbours(rows)
        if tensors.has("means"):
            dimensions = rows.shape[1]
            directions = tensors.take("directions", (None, dimensions), np.float32)
            variances = tensors.divisors("variances", (len(directions),))
            means = tensors.take("means", (None, dimensions), np.float32)
            tensors.require(len(means) > 0, "there are no means")
            measure = Covariance(means, directions, variances, float(tensors.divisors("rest", (1,))[0]))
        ids = _ids(tensors.take("ids", (None,), np.uint8), len(rows), folder / FILE)
        caught = float(tensors.take("caught", (1,), np.float64)[0]) if tensors.has("caught") else None
        return cls(measure, rows, ids, tuple(widths.tolist()), threshold, caught)


def kept_rows(contents: Codes, *, dimensions: int, seed: int) -> Codes:
    """Choose the rows to keep, in random order: one of each of the `contents` (n,), and no more than are to be kept."""
    distinct = np.unique(contents, return_index=True)[1]
    most = min(max(FLOATS // dimensions, LEAST_ROWS), MOST_ROWS)
    return np.asarray(np.random.default_rng(seed).permutation(distinct)[:most])


def unit_rows(features: NDArray[np.floating], widths: Iterable[int]) -> Rows:
    """Bring features (n, D) to length one, each of the layers `widths` to the same share of it."""
    layers = np.split(features.astype(np.float64), np.cumsum(list(widths))[:-1], axis=1)
    scaled = [layer / np.maximum(np.linalg.norm(layer, axis=1, keepdims=True), _TINY) for layer in layers]
    return np.asarray(np.concatenate(scaled, axis=1) / len(scaled) ** 0.5, dtype=np.float32)


def separation(kind: type[Measure], rows: Rows, codes: Codes, groups: Codes, *, most: int) -> Separation | None:
    """Leave classes out in turn, and tell their rows from `most` of the others; None where nothing can be left out."""
    areas, caught = [], []
    for code in np.random.default_rng(0).permutation(np.unique(codes))[:LEFT_OUT]:
        rest = np.flatnonzero(codes != code)[:most]
        if len(np.unique(groups[rest])) < FEWEST:
            continue
        own = kind.out_of_fold(rows[rest], codes[rest], groups[rest])
        strange = kind.fit(rows[rest], codes[rest]).scores(rows[codes == code])
        areas.append(area_between(own, strange))
        caught.append(float((strange > (conformal_quantile(own, ACCEPTED) or np.inf)).mean()))
    return Separation(float(np.mean(areas)), float(np.mean(caught))) if areas else None


def area_between(low: Scores, high: Scores) -> float:
    """Return the share of pairs in which `high` (m,) is above `low` (n,), ties for one half: the area under the ROC."""
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, side="left") + np.searchsorted(ordered, high, side="right")
    return float(below.mean() / (2 * len(low)))


def _better(rows: Rows, codes: Codes, groups: Codes) -> type[Measure]:
    """Choose the measure that tells left-out classes better; neighbours where none can be left out."""
    neighbours = separation(Neighbours, rows, codes, groups, most=CONTEST_ROWS)
    covariance = separation(Covariance, rows, codes, groups, most=CONTEST_ROWS)
    if neighbours is None or covariance is None or neighbours.area >= covariance.area:
        return Neighbours
    return Covariance


def _mean_of_nearest(alike: Rows, *, most: int | None = None) -> Scores:
    """Return the mean distance (m,) of the nearest few by cosines (m, n)."""
    count = min(NEIGHBOURS, alike.shape[1] if most is None else most)
    nearest = -np.partition(-alike, count - 1, axis=1)[:, :count]
    return np.asarray(1 - nearest.mean(axis=1, dtype=np.float64))


def _squared_distances(these: NDArray[Any], those: NDArray[Any]) -> Scores:
    """Return the squared Euclidean distances (m, n) between rows."""
    ours, theirs = (np.einsum("ij,ij->i", rows, rows) for rows in (these, those))
    return np.asarray(np.maximum(ours[:, None] + theirs - 2 * (these @ those.T), 0), dtype=np.float64)


def _shrunk(within: Rows) -> tuple[Rows, NDArray[np.float64], float]:
    """Return directions (r, D), variances (r,) and the variance of the rest, from deviations (n, D) from class means.

    All comes from the smaller of the two Gram matrices. The shrinkage b2 / d2 towards the identity times the mean is
    that of Ledoit and Wolf; variances beyond the first `DIRECTIONS` are replaced by their mean, which is the rest's.
    """
    count, dimensions = within.shape
    deviations = within.astype(np.float64)
    wide = dimensions > count
    products = gram(deviations if wide else deviations.T) / count
    total, squares = float(np.trace(products)), float(np.square(products).sum())
    mean = max(total / dimensions, _TINY)
    d2 = max(squares / dimensions - mean**2, _TINY)
    fourth = float(np.square(np.square(deviations).sum(axis=1)).sum()) / count
    b2 = min(max((fourth - squares) / count / dimensions, 0.0), d2)
    values, vectors = (found[..., -DIRECTIONS:] for found in spanned(products))
    directions = (deviations.T @ vectors / np.sqrt(values * count)).T if wide else vectors.T
    share = b2 / d2
    rest = max(total - float(values.sum()), 0.0) / max(dimensions - len(values), 1)
    return (
        np.ascontiguousarray(directions, dtype=np.float32),
        (1 - share) * values + share * mean,
        max((1 - share) * rest + share * mean, _TINY),
    )


def _ids(text: NDArray[np.uint8], count: int, path: Path) -> list[str]:
    try:
        ids = json.loads(text.tobytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}; train the head again") from None
    if not isinstance(ids, list) or len(ids) != count or not all(isinstance(one, str) for one in ids):
        raise ModelError(f"{path} cannot be read: its ids do not fit {count} rows; train the head again")
    return ids
