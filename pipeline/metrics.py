"""Metrics of predictions, with their intervals: of classes and of numbers, per class and as a whole.

>>> import numpy as np
>>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
>>> found = classification(np.array([0, 1, 1]), scores, ("ant", "bee"))
>>> round(found["accuracy"], 3), found["confusion"]
(0.667, [[1, 0], [1, 1]])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.text import plural, shown

#: A confusion matrix of more classes than this is a table nobody reads; the worst confusions are listed instead.
MATRIX_CLASSES = 100
LISTED_CONFUSIONS = 10
CALIBRATION_BINS = 15
#: Fewer rows than this say little: the interval of an accuracy is wider than what most choices are about.
FEW_ROWS = 30
#: What the parts of a data set are called.
PARTS = {"val": "held-out rows", "test": "test rows", "cv": "out of fold", "train": "training rows"}
#: Share of rows, and the share of all squares about the median that they have where they are outliers.
OUTLYING, DROWNING = 0.02, 0.9
_LEAST = 1e-15


def classification(truth: NDArray[Any], scores: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
    """Measure class probabilities `scores` (n, C) against codes `truth` (n,) of the classes `names`.

    Keys: n, accuracy, accuracy_interval (95 %), majority (the share of the most frequent class: what always saying it
    would score), macro_f1 (over classes that occur), absent (those that do not), log_loss, ece, per_class, confusion
    (rows are the truth; up to 100 classes) and confused (the most frequent mistakes as [truth, predicted, count]).
    """
    truth = np.asarray(truth, dtype=np.int64)
    scores = np.asarray(scores, dtype=np.float64)
    predicted = scores.argmax(axis=1)
    per_class = _per_class(truth, predicted, names)
    found: dict[str, Any] = {
        "n": len(truth),
        "accuracy": float((predicted == truth).mean()),
        "accuracy_interval": list(share_interval(int((predicted == truth).sum()), len(truth))),
        "majority": float(np.bincount(truth).max() / len(truth)),
        "macro_f1": float(np.mean([one["f1"] for one in per_class.values() if one["support"]])),
        "absent": [name for name, one in per_class.items() if not one["support"]],
        "log_loss": log_loss(truth, scores),
        "ece": calibration_error(truth, scores),
        "per_class": per_class,
        "confused": _worst(truth, predicted, names),
    }
    if len(names) <= MATRIX_CLASSES:
        found["confusion"] = confusion(truth, predicted, len(names)).tolist()
    return found


def share_interval(hits: int, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share, of `hits` in `count` independent rows (Clopper and Pearson, 1934).

    >>> [round(share, 3) for share in share_interval(33, 40)]
    [0.672, 0.927]
    """
    from scipy.special import betaincinv  # a third of a second less than the import of scipy.stats, the same numbers

    tail = (1 - confidence) / 2
    low = float(betaincinv(hits, count - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, count - hits, 1 - tail)) if hits < count else 1.0
    return low, high


def regression(truth: NDArray[Any], predicted: NDArray[Any]) -> dict[str, Any]:
    """Measure n predictions: MAE and RMSE in the target's unit, and R² (None where the truth does not vary)."""
    truth = np.asarray(truth, dtype=np.float64)
    errors = np.asarray(predicted, dtype=np.float64).reshape(truth.shape) - truth
    total = float(np.square(truth - truth.mean()).sum())
    return {
        "n": len(truth),
        "mae": float(np.abs(errors).mean()),
        "rmse": math.sqrt(float(np.square(errors).mean())),
        "r2": 1 - float(np.square(errors).sum()) / total if total > 0 else None,
    }


def confusion(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count pairs (C, C): row is the true class, column the predicted one."""
    counts = np.bincount(truth * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes)


def log_loss(truth: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """Return the mean negative logarithm of the probability given to the true class."""
    return float(log_losses(scores[np.arange(len(truth)), truth] / scores.sum(axis=1)).mean())


def log_losses(given: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return negative logarithms (n,) of the probabilities `given` (n,) to the true class of each row."""
    return np.asarray(-np.log(np.maximum(given, _LEAST)))


def calibration_error(truth: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """Return the expected calibration error of the top class in 15 equal bins (Guo et al., 2017, arXiv:1706.04599)."""
    confidence = scores.max(axis=1) / scores.sum(axis=1)
    right = scores.argmax(axis=1) == truth
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(truth))


def table(found: Mapping[str, Any]) -> str:
    """Format the measures of `classification` or `regression` as lines for a person."""
    if "accuracy" not in found:
        r2 = "-" if found["r2"] is None else f"{found['r2']:.3f}"
        return f"MAE {found['mae']:.4g}   RMSE {found['rmse']:.4g}   R2 {r2}   ({plural(found['n'], 'row')})"
    per_class = found["per_class"]
    occurring = sum(one["support"] > 0 for one in per_class.values())
    of = "" if occurring == len(per_class) else f" over {occurring} of {len(per_class)} classes"
    lines = [f"{accuracy_text(found)}   macro F1 {found['macro_f1']:.4f}{of}   ({plural(found['n'], 'row')})"]
    if len(per_class) > 20:
        return lines[0]
    written = {name: shown(name) for name in per_class}
    width = max(map(len, written.values()))
    lines.append(f"  {'':<{width}}  precision  recall      f1  support")
    for name, one in per_class.items():
        measured = f"{one['precision']:9.3f}  {one['recall']:6.3f}  {one['f1']:6.3f}  {one['support']:7d}"
        lines.append(f"  {written[name]:<{width}}  {measured}")
    return "\n".join(lines)


def accuracy_text(found: Mapping[str, Any]) -> str:
    """Format an accuracy with its interval, and with the score of always saying the most frequent class."""
    low, high = found["accuracy_interval"]
    return f"accuracy {found['accuracy']:.4f} (95 %: {low:.2f} to {high:.2f}; majority {found['majority']:.2f})"


def cautions(found: Mapping[str, Any], part: str) -> list[str]:
    """Return cautions on these measures of the `part` ("held-out rows"): few rows, classes without any."""
    said = []
    if found["n"] < FEW_ROWS:
        judged = "they say" if found["n"] > 1 else "it says"
        said.append(f"{part}: only {plural(found['n'], 'row')}; {judged} little of what other images would score")
    absent = found.get("absent", [])
    if absent:
        listed = ", ".join(shown(name) for name in absent[:5]) + (", ..." if len(absent) > 5 else "")
        said.append(f"{part}: no row of {listed}; these measures do not show how well it is recognized")
    return said


def outliers(numbers: NDArray[Any], name: str) -> list[str]:
    """Return a notice where a few of the `numbers` are so far away that an R2, and most heads, see nothing but them."""
    middle = np.median(numbers)
    far = np.argsort(-np.abs(numbers - middle), kind="stable")[: max(1, int(len(numbers) * OUTLYING))]
    squares = np.square((numbers - middle) / max(float(np.abs(numbers - middle).max()), _LEAST))
    low, high = np.quantile(numbers, (0.25, 0.75))
    if low == high or squares[far].sum() <= DROWNING * squares.sum():
        return []
    while len(far) > 1 and squares[far[-1]] < squares[far[0]] / 100:  # the others of the far ones are ordinary
        far = far[:-1]
    return [
        f"{plural(len(far), 'row')} of {len(numbers)} lie far from all others in {shown(name)!r} "
        f"(half are from {low:.4g} to {high:.4g}, these up to {numbers[far[0]]:.4g}) and drown them in every "
        "measure; correct or remove them"
    ]


def _per_class(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    right = truth[truth == predicted]
    hits, support, claimed = (np.bincount(codes, minlength=len(names)) for codes in (right, truth, predicted))
    precision = hits / np.maximum(claimed, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + claimed, 1)
    return {
        name: {
            "precision": float(precision[code]),
            "recall": float(recall[code]),
            "f1": float(f1[code]),
            "support": int(support[code]),
        }
        for code, name in enumerate(names)
    }


def _worst(truth: NDArray[np.int64], predicted: NDArray[np.int64], names: Sequence[str]) -> list[list[Any]]:
    wrong = truth != predicted
    pairs, counts = np.unique(np.stack([truth[wrong], predicted[wrong]]), axis=1, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:LISTED_CONFUSIONS]
    return [[names[i], names[j], int(counts[place])] for place, (i, j) in zip(most, pairs.T[most], strict=True)]
