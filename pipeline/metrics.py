"""How good predictions are: classes and numbers, per class and as a whole. numpy only.

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

#: A confusion matrix of more classes than this is a table nobody reads; the worst confusions are listed instead.
MATRIX_CLASSES = 100
LISTED_CONFUSIONS = 10
CALIBRATION_BINS = 15
_LEAST = 1e-15


def classification(truth: NDArray[Any], scores: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
    """Measures of class probabilities `scores` (n, C) against codes `truth` (n,) of the classes `names`.

    Keys: n, accuracy, macro_f1 (over classes that occur), log_loss, ece, per_class, confusion (rows are the truth;
    up to 100 classes) and confused (the most frequent mistakes as [truth, predicted, count]).
    """
    truth = np.asarray(truth, dtype=np.int64)
    scores = np.asarray(scores, dtype=np.float64)
    predicted = scores.argmax(axis=1)
    matrix = confusion(truth, predicted, len(names))
    per_class = _per_class(matrix, names)
    found: dict[str, Any] = {
        "n": len(truth),
        "accuracy": float((predicted == truth).mean()),
        "macro_f1": float(np.mean([one["f1"] for one in per_class.values() if one["support"]])),
        "log_loss": log_loss(truth, scores),
        "ece": calibration_error(truth, scores),
        "per_class": per_class,
        "confused": _worst(matrix, names),
    }
    if len(names) <= MATRIX_CLASSES:
        found["confusion"] = matrix.tolist()
    return found


def regression(truth: NDArray[Any], predicted: NDArray[Any]) -> dict[str, Any]:
    """MAE and RMSE in the target's unit, and R² (None where the truth does not vary), of n predictions."""
    truth = np.asarray(truth, dtype=np.float64)
    errors = np.asarray(predicted, dtype=np.float64).reshape(truth.shape) - truth
    spread = float(np.square(truth - truth.mean()).sum())
    return {
        "n": len(truth),
        "mae": float(np.abs(errors).mean()),
        "rmse": math.sqrt(float(np.square(errors).mean())),
        "r2": 1 - float(np.square(errors).sum()) / spread if spread > 0 else None,
    }


def confusion(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts (C, C): row is the true class, column the predicted one."""
    counts = np.bincount(truth * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes)


def log_loss(truth: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """Mean negative logarithm of the probability given to the true class."""
    given = scores[np.arange(len(truth)), truth] / scores.sum(axis=1)
    return float(-np.log(np.maximum(given, _LEAST)).mean())


def calibration_error(truth: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """Expected calibration error of the top class in 15 bins of equal width (Guo et al., 2017, arXiv:1706.04599)."""
    confidence = scores.max(axis=1) / scores.sum(axis=1)
    right = scores.argmax(axis=1) == truth
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(truth))


def table(found: Mapping[str, Any]) -> str:
    """What `classification` or `regression` found, as lines for a person."""
    if "accuracy" not in found:
        r2 = "-" if found["r2"] is None else f"{found['r2']:.3f}"
        return f"MAE {found['mae']:.4g}   RMSE {found['rmse']:.4g}   R2 {r2}   ({found['n']} rows)"
    lines = [f"accuracy {found['accuracy']:.4f}   macro F1 {found['macro_f1']:.4f}   ({found['n']} rows)"]
    per_class = found["per_class"]
    if len(per_class) > 20:
        return lines[0]
    width = max(map(len, per_class))
    lines.append(f"  {'':<{width}}  precision  recall      f1  support")
    for name, one in per_class.items():
        lines.append(
            f"  {name:<{width}}  {one['precision']:9.3f}  {one['recall']:6.3f}  {one['f1']:6.3f}  {one['support']:7d}"
        )
    return "\n".join(lines)


def _per_class(matrix: NDArray[np.int64], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    hits, support, claimed = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
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


def _worst(matrix: NDArray[np.int64], names: Sequence[str]) -> list[list[Any]]:
    mistakes = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-mistakes, axis=None, kind="stable")[:LISTED_CONFUSIONS]
    pairs = [np.unravel_index(flat, matrix.shape) for flat in order]
    return [[names[i], names[j], int(mistakes[i, j])] for i, j in pairs if mistakes[i, j]]
