"""Scored rows: a model's answers beside the truth, with metrics, lines of a table and plots.

A part of a data set is scored alike whoever answers: a head after its training, a fine-tuned network, a saved model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import metrics, plots
from pipeline.plots import Drawing, Tile
from pipeline.sources import Target
from pipeline.text import plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Up to so many classes each has its probability in a table; of more the best ones are listed.
LISTED_CLASSES, BEST_CLASSES = 20, 5


def ranked_classes(names: Sequence[str], scores: NDArray[np.float64], count: int) -> list[list[Any]]:
    """Return the `count` likeliest classes as [name, probability], best first, from the `scores` (C,) of one row."""
    best = np.argsort(-scores, kind="stable")[:count].tolist()
    return [[names[code], float(scores[code])] for code in best]


def listed_classes(names: Sequence[str]) -> int:
    """Return how many of the likeliest classes `probabilities` needs to know."""
    return len(names) if len(names) <= LISTED_CLASSES else BEST_CLASSES


#: The image of an id, None where it cannot be had.
Images: TypeAlias = Callable[[str], Image.Image | None]
#: Images that a picture shows: each is read and decoded for it.
SHOWN = 16


def probabilities(names: Sequence[str], ranked: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return the columns of a table with the probabilities of one row, from its `ranked_classes`; None without any.

    ``p:NAME`` for each class, or for more than 20 of them label2, p2, ... label5, p5 beside the best one.

    >>> probabilities(("ant", "bee"), [["bee", 0.75], ["ant", 0.25]])
    {'p:ant': 0.25, 'p:bee': 0.75}
    """
    if len(names) <= LISTED_CLASSES:
        known: dict[str, Any] = {name: score for name, score in ranked}  # noqa: C416 - of lists
        return {f"p:{name}": known.get(name) for name in names}
    others = [*ranked[1:BEST_CLASSES], *[[None, None]] * BEST_CLASSES][: BEST_CLASSES - 1]
    labels = {f"label{place}": label for place, (label, _) in enumerate(others, start=2)}
    return labels | {f"p{place}": score for place, (_, score) in enumerate(others, start=2)}


def label_quality(
    truth: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the quality (n,) of labels by out-of-fold probabilities (n, C), and the code of a better one, -1 for none.

    The quality is the probability of the label. A row counts as of another class where that has at least the mean
    probability that it has in the rows labelled so, and more than any such class (Northcutt et al., 2021, confident
    learning).
    """
    given = scores[np.arange(len(truth)), truth]
    count = np.bincount(truth, minlength=scores.shape[1])
    usual = np.bincount(truth, weights=given, minlength=scores.shape[1]) / np.maximum(count, 1)
    sure = np.where((scores >= usual) & (count > 0), scores, -np.inf)
    best = sure.argmax(axis=1)
    better = np.isfinite(sure.max(axis=1)) & (best != truth)
    return given, np.where(better, best, -1)


@dataclass(frozen=True, eq=False)
class Scored:
    """The rows of one part, with their truth and the scores that a model gives them.

    `target` holds the truth as its values (n,), all known, under the codes of the model. `scores` are probabilities
    (n, C) of classes, or values (n,) of numbers; value ± `half_width`, one or (n,), unless None, is a prediction
    interval that holds the share `coverage` of new rows. `part` is a key of `metrics.PARTS`, or any other name for all
    rows. Rows of one of the `groups` (n,) are one observation, such as an image and its copies; without, each is one.
    `decided` (n,) are the codes that are answered, where that is not the likeliest.
    """

    ids: Sequence[str]
    target: Target
    scores: NDArray[np.float64]
    part: str
    half_width: NDArray[np.float64] | float | None = None
    coverage: float = 0.9
    groups: NDArray[np.int64] | None = None
    decided: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def truth(self) -> NDArray[Any]:
        """Class codes, or numbers, (n,)."""
        return self.target.values

    @property
    def title(self) -> str:
        """Name of the part for a person."""
        return metrics.PARTS.get(self.part, "all rows")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Measures of classes or of numbers, as the module `metrics` describes them."""
        names = self.target.names
        if names is None:
            return metrics.regression(self.truth, self.scores, groups=self.groups) | self._covered()
        return metrics.classification(self.truth, self.scores, names, groups=self.groups, predicted=self.decided)

    @property
    def median_half_width(self) -> float | None:
        """Half the width of the interval in the middle of all."""
        return None if self.half_width is None else float(np.median(self.half_width))

    def _covered(self) -> dict[str, Any]:
        """Return half the width of the median prediction interval, and what share of the rows the intervals hold."""
        if self.half_width is None:
            return {}
        covered = float((np.abs(self.truth - self.scores) <= self.half_width).mean())
        return {"interval": {"half_width": self.median_half_width, "coverage": self.coverage, "covered": covered}}

    def cautions(self) -> list[str]:
        """Return notices for a reader of the metrics."""
        return metrics.cautions(self.metrics, self.title)

    def rows(self, *, split: bool = False) -> Iterator[dict[str, Any]]:
        """Yield lines of predictions.csv: id, with `split` the part, truth, label and score, or value, low and high."""
        of_all = {"split": self.part} if split else {}
        for id, answer in zip(self.ids, self._answers(), strict=True):
            yield {"id": id, **of_all, **answer}

    def _answers(self) -> Iterator[dict[str, Any]]:
        names, half = self.target.names, self.half_width
        if names is None:
            halves = [None] * len(self) if half is None else np.broadcast_to(half, len(self)).tolist()
            for true, value, half in zip(self.truth.tolist(), self.scores.tolist(), halves, strict=True):
                low, high = (None, None) if half is None else (value - half, value + half)
                yield {"true": true, "value": value, "low": low, "high": high}
            return
        count = listed_classes(names)
        codes = self.scores.argmax(axis=1) if self.decided is None else self.decided
        best, score = codes.tolist(), self.scores[np.arange(len(self)), codes].tolist()
        for true, code, sure, row in zip(self.truth.tolist(), best, score, self.scores, strict=True):
            yield {
                "true": names[true],
                "label": names[code],
                "score": sure,
                **probabilities(names, ranked_classes(names, row, count)),
            }

    def rows_by_quality(self) -> list[dict[str, Any]]:
        """Return lines of out_of_fold.csv: as `rows`, of classes with the quality of each label, the worst first.

        The scores have to be of models that did not train on the row. `suggested` is another class, where confident
        learning takes the label for wrong.
        """
        names, rows = self.target.names, list(self.rows())
        if names is None:
            return rows
        quality, better = label_quality(self.truth, self.scores)
        found = []
        for place in np.argsort(quality, kind="stable").tolist():
            id, true, *_ = (row := rows[place]).values()
            suggested = "" if better[place] < 0 else names[better[place]]
            found.append({"id": id, "true": true, "quality": quality[place], "suggested": suggested, **row})
        return found

    def plots(self, images: Images | None = None) -> dict[str, Drawing]:
        """Return a confusion matrix, or values against the truth; with `images` also some of them with their answer."""
        target = self.target
        answers = Answers(list(self.rows()), self.part, target.name, target.names, self.coverage)
        drawings = answers.drawings()
        if images is not None:
            drawings["predictions"] = lambda: answers.gallery(images)
        return drawings


@dataclass(frozen=True)
class Answers:
    """Answers beside the truth, from which plots are drawn: lines as `Scored.rows` yields them, of one part.

    `classes` are those of the target, None for numbers; intervals hold the share `coverage` of new rows.
    """

    rows: Sequence[Mapping[str, Any]]
    part: str
    target: str
    classes: tuple[str, ...] | None
    coverage: float = 0.9

    def drawings(self) -> dict[str, Drawing]:
        """Return a confusion matrix, or values against the truth."""
        return {"predicted": self._predicted} if self.classes is None else {"confusion": self._confusion}

    def _title(self, found: str) -> str:
        return f"{metrics.PARTS.get(self.part, 'all rows')}: {found}"

    def _column(self, name: str) -> NDArray[np.float64]:
        return np.array([row[name] for row in self.rows], dtype=np.float64)

    def _confusion(self) -> Figure:
        codes = {name: code for code, name in enumerate(self.classes or ())}
        truth, said = (np.array([codes[row[name]] for row in self.rows]) for name in ("true", "label"))
        title = self._title(f"{(truth == said).mean():.1%} of {plural(len(truth), 'row')} right")
        if len(codes) > plots.MOST_CELLS:
            return plots.most_confused(truth, said, tuple(codes), title=title)
        return plots.confusion(metrics.confusion(truth, said, len(codes)), tuple(codes), title=title)

    def _predicted(self) -> Figure:
        truth, said = self._column("true"), self._column("value")
        spread = np.square(truth - truth.mean()).sum()
        r2 = f"{1 - np.square(said - truth).sum() / spread:.3f}" if spread else "-"
        return plots.predicted_against_true(
            truth,
            said,
            name=self.target,
            half_width=None if self.rows[0]["low"] is None else (self._column("high") - self._column("low")) / 2,
            coverage=self.coverage,
            title=self._title(f"R2 {r2} ({plural(len(truth), 'row')})"),
        )

    def gallery(self, images: Images, *, mistakes: bool = False) -> Figure:
        """Draw images with their answers: mistakes first, those that it is surest of; all of them, if `mistakes`.

        Of numbers, those that are off the most come first. Raises `NoImages` where none can be read.
        """
        wrong, others = self._by_interest()
        half = SHOWN if mistakes else max(SHOWN // 2, SHOWN - len(others))
        shown = wrong[:half]
        if not mistakes and others:
            rest = np.linspace(0, len(others) - 1, min(SHOWN - len(shown), len(others))).astype(int)
            shown = [*shown, *(others[place] for place in rest.tolist())]
        read = ((row, images(str(row["id"]))) for row in shown)
        tiles = [self._tile(row, image) for row, image in read if image is not None]
        rows = plural(len(self.rows), "row")
        if self.classes is None:
            return plots.grid(tiles, title=self._title(f"{rows}, the largest errors first"))
        found = f"{len(wrong):,} of {rows} wrong, the surest mistakes first" if wrong else f"{rows}, all right"
        return plots.grid(tiles, title=self._title(found))

    def _by_interest(self) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
        """Return mistakes, the worst first, and the other rows; of numbers any error is one, up to half of the rows."""
        if self.classes is None:
            rows = sorted(self.rows, key=lambda row: -abs(row["value"] - row["true"]))
            return rows[: -(-len(rows) // 2)], sorted(rows[-(-len(rows) // 2) :], key=lambda row: float(row["true"]))
        wrong = [row for row in self.rows if row["true"] != row["label"]]
        return sorted(wrong, key=lambda row: -row["score"]), [row for row in self.rows if row["true"] == row["label"]]

    def _tile(self, row: Mapping[str, Any], image: Image.Image) -> Tile:
        if self.classes is not None:
            right = row["true"] == row["label"]
            return Tile(image, row["label"], f"{row['score']:.2f}", "" if right else row["true"], right)
        inside = None if row["low"] is None else bool(row["low"] <= row["true"] <= row["high"])
        return Tile(image, f"{row['value']:.4g}", "", f"{row['true']:.4g}", inside)


def values_by_class(target: Target, targets: Mapping[str, Target]) -> dict[str, NDArray[np.float64]]:
    """Return the known numbers of `target` by the classes of the first of `targets` that has some, else under ""."""
    classes = next((one for one in targets.values() if one.names is not None), None)
    if classes is None:
        return {"": target.values[target.known]}
    found = {
        name: target.values[target.known & (classes.values == code)] for code, name in enumerate(classes.names or ())
    }
    unknown = target.values[target.known & ~classes.known]
    return found | ({"of no known class": unknown} if len(unknown) else {})
