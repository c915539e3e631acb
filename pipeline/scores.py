"""Scored rows: a model's answers beside the truth, with metrics, lines of a table and plots.

A part of a data set is scored alike whoever answers: a head after its training, a fine-tuned network, a saved model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import metrics, plots
from pipeline.plots import Drawing
from pipeline.sources import Target
from pipeline.text import plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Scored:
    """The rows of one part, with their truth and the scores that a model gives them.

    `target` holds the truth as its values (n,), all known, under the codes of the model. `scores` are probabilities
    (n, C) of classes, or values (n,) of numbers; value ± `half_width`, one or (n,), unless None, is a prediction
    interval that holds the share `coverage` of new rows. `part` is a key of `metrics.PARTS`, or any other name for all
    rows. Rows of one of the `groups` (n,) are one observation, such as an image and its copies; without, each is one.
    """

    ids: Sequence[str]
    target: Target
    scores: NDArray[np.float64]
    part: str
    half_width: NDArray[np.float64] | float | None = None
    coverage: float = 0.9
    groups: NDArray[np.int64] | None = None

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
        return metrics.classification(self.truth, self.scores, names, groups=self.groups)

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
        best, score = self.scores.argmax(axis=1).tolist(), self.scores.max(axis=1).tolist()
        for true, code, sure in zip(self.truth.tolist(), best, score, strict=True):
            yield {"true": names[true], "label": names[code], "score": sure}

    def plots(self) -> dict[str, Drawing]:
        """Return a confusion matrix, or values against the truth; nothing for more classes than a matrix has."""
        found, rows = self.metrics, plural(len(self), "row")
        if self.target.task == "numbers":
            r2 = "-" if found["r2"] is None else f"{found['r2']:.3f}"
            return {"predicted": lambda: self._predicted(f"{self.title}: R2 {r2} ({rows})")}
        if "confusion" not in found:
            return {}
        matrix, names = np.array(found["confusion"]), self.target.names or ()
        title = f"{self.title}: {found['accuracy']:.1%} of {rows} right"
        return {"confusion": lambda: plots.confusion(matrix, names, title=title)}

    def _predicted(self, title: str) -> Figure:
        return plots.predicted_against_true(
            self.truth,
            self.scores,
            name=self.target.name,
            half_width=self.half_width,
            coverage=self.coverage,
            title=title,
        )
