"""A class that is answered from a probability on, and what precision and recall that gave out of fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError, SettingsError
from pipeline.metrics import share_interval
from pipeline.models.seen import Seen
from pipeline.registry import refuse_unknown
from pipeline.text import shown


@dataclass(frozen=True)
class Threshold:
    """The class `label`, of this `code`, is answered where its probability is `at` or more, else the best other one.

    `found` has n (training rows out of fold), precision and recall with their 95 % intervals; empty where unknown.
    """

    label: str
    code: int
    at: float
    found: Mapping[str, Any]
    chosen: bool = False

    @classmethod
    def of(cls, text: str, classes: Sequence[str] | None, seen: Seen | None, *, where: str | Path) -> Self:
        """Read ``CLASS=P``, or ``CLASS`` for the probability with the best F1 of training rows out of fold.

        `classes` are those of the model `where`, and `seen` what it keeps of its training rows. Raises `SettingsError`
        where the text does not fit them, `ModelError` where there are no such rows to choose by.
        """
        if classes is None:
            raise SettingsError(f"--threshold is for classes; {where} predicts numbers")
        label, at = (text, None) if text in classes else _parsed(text)
        refuse_unknown("class", label, classes, where=where)
        code = list(classes).index(label)
        if seen is None or seen.scores is None or seen.codes is None:
            if at is None:
                raise ModelError(
                    f"{where} has no rows out of fold to choose a threshold by; give --threshold {label}=P, or "
                    "train it again with fit-head"
                )
            return cls(label, code, at, {})
        scores, is_it = seen.scores[:, code], seen.codes == code
        chosen = best_f1(is_it, scores) if at is None else at
        return cls(label, code, chosen, precision_recall(is_it, scores, chosen), chosen=at is None)

    def decide(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the codes (n,) that probabilities (n, C) are answered with."""
        others = scores.copy()
        others[:, self.code] = -np.inf
        return np.where(scores[:, self.code] >= self.at, self.code, others.argmax(axis=1))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"class": self.label, "at": self.at, "chosen": self.chosen, **self.found}

    def notice(self) -> str:
        """Say what it gives."""
        start = f"{shown(self.label)} from a probability of {self.at:.3g} on"
        if not self.found:
            return f"{start}: the model has no rows out of fold that tell what that gives"
        measured = (
            f"{name} {self.found[name]:.3f} ({self.found[f'{name}_interval'][0]:.2f} to "
            f"{self.found[f'{name}_interval'][1]:.2f})"
            for name in ("precision", "recall")
        )
        by_these = ", which it was chosen by for the best F1" * self.chosen
        return f"{start}: {', '.join(measured)} in {self.found['n']} training rows out of fold{by_these}"


def precision_recall(is_it: NDArray[np.bool_], scores: NDArray[np.floating], at: float) -> dict[str, Any]:
    """Measure the answer `scores` (n,) >= `at` to which rows are it: n, precision and recall with 95 % intervals.

    >>> found = precision_recall(np.array([True, True, False, False]), np.array([0.9, 0.4, 0.6, 0.1]), 0.5)
    >>> found["precision"], found["recall"]
    (0.5, 0.5)
    """
    said = scores >= at
    hits, claimed, present = (int(mask.sum()) for mask in (said & is_it, said, is_it))
    return {
        "n": len(is_it),
        "precision": hits / max(claimed, 1),
        "precision_interval": list(share_interval(hits, claimed)),
        "recall": hits / max(present, 1),
        "recall_interval": list(share_interval(hits, present)),
    }


def best_f1(is_it: NDArray[np.bool_], scores: NDArray[np.floating]) -> float:
    """Return the one of `scores` (n,) from which on rows have to be said to be it for the best F1."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of each run of equal scores
    hits = np.cumsum(is_it[order])[last]
    return float(scores[order][last][np.argmax(2 * hits / (last + 1 + is_it.sum()))])


def _parsed(text: str) -> tuple[str, float | None]:
    """Split CLASS=P; a text without a probability is a class."""
    label, equals, number = text.rpartition("=")
    if not equals:
        return text, None
    try:
        at = float(number)
    except ValueError:
        at = -1.0
    if not 0 <= at <= 1:
        raise SettingsError(f"--threshold {text}: {number!r} is no probability; give CLASS=P with P from 0 to 1")
    return label, at
