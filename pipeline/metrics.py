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
#: Of them, and of the classes recognized least, so many are shown where a line for each class is too much.
MOST_SHOWN = 5
CALIBRATION_BINS = 15
#: Fewer rows than this say little: the interval of an accuracy is wider than what most choices are about.
FEW_ROWS = 30
#: Fewer rows of a class than this do not tell how well it is told.
RARE_ROWS = 10
#: Classes from which on it is told how often the right one is among the five best.
TOP_CLASSES = 10
#: What the parts of a data set are called.
PARTS = {"val": "held-out rows", "test": "test rows", "cv": "out of fold", "train": "training rows"}
#: Share of rows, and the share of all squares about the median that they have where they are outliers.
OUTLYING, DROWNING = 0.02, 0.9
#: Bootstrap samples, and the number of groups from which on they say no more than a normal distribution does.
RESAMPLES, SETTLED = 1000, 2000
#: Groups from which the spread of an error can be told, and the largest logarithm that a bound has.
FEWEST, LARGEST_LOGARITHM = 10, 50.0
NORMAL = 1.959964
#: Groups by whose number it is divided how much larger than the largest error seen the next one may be: measured.
UNSEEN = 14
#: What is to be known of the probabilities of a model that was trained under class_weight=balanced.
BALANCED = (
    "class_weight=balanced: probabilities are those of classes that occur equally often, not of classes as they occur "
    "in these rows; log loss and calibration error are of the latter"
)
_LEAST = 1e-15


def classification(
    truth: NDArray[Any],
    scores: NDArray[Any],
    names: Sequence[str],
    *,
    groups: NDArray[np.int64] | None = None,
    predicted: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """Measure class probabilities `scores` (n, C) against codes `truth` (n,) of the classes `names`.

    Rows of one of the `groups` (n,) are one observation: an image and its copies are right or wrong together, and
    intervals are as wide as that asks for. `predicted` (n,) are the codes that are answered, unless the likeliest are.

    Keys: n, groups (how many), accuracy, accuracy_interval (95 %), majority (the share of the most frequent class: what
    always saying it would score), balanced_accuracy (the mean recall), macro_f1, roc_auc and average_precision (each
    class against the rest; all of these are means over classes that occur), top5_accuracy (from 10 classes on), absent
    (classes that do not occur), never_predicted (those that do), log_loss, ece, per_class, confusion (rows are the
    truth; up to 100 classes) and confused (the most frequent mistakes as [truth, predicted, count]).
    """
    truth = np.asarray(truth, dtype=np.int64)
    scores = np.asarray(scores, dtype=np.float64)
    predicted = scores.argmax(axis=1) if predicted is None else predicted
    per_class = _per_class(truth, predicted, names)
    groups = np.arange(len(truth)) if groups is None else groups
    right = predicted == truth
    claimed = set(predicted.tolist())
    found: dict[str, Any] = {
        "n": len(truth),
        "groups": len(np.unique(groups)),
        "accuracy": float(right.mean()),
        "accuracy_interval": list(accuracy_interval(right, groups)),
        "majority": float(np.bincount(truth).max() / len(truth)),
        "balanced_accuracy": _mean_of(per_class, "recall"),
        "macro_f1": _mean_of(per_class, "f1"),
        **_rankings(truth, scores),
        "absent": [name for name, one in per_class.items() if not one["support"]],
        "never_predicted": [
            name for code, name in enumerate(names) if per_class[name]["support"] and code not in claimed
        ],
        "log_loss": log_loss(truth, scores),
        "ece": calibration_error(truth, scores),
        "per_class": per_class,
        "confused": _worst(truth, predicted, names),
    }
    if len(names) >= TOP_CLASSES:
        found["top5_accuracy"] = float(_among_best(truth, scores, 5).mean())
    if len(names) <= MATRIX_CLASSES:
        found["confusion"] = confusion(truth, predicted, len(names)).tolist()
    return found


def _mean_of(per_class: Mapping[str, Mapping[str, Any]], measure: str) -> float:
    """Return the mean of a measure over the classes that occur."""
    return float(np.mean([one[measure] for one in per_class.values() if one["support"]]))


def _rankings(truth: NDArray[np.int64], scores: NDArray[np.float64]) -> dict[str, float | None]:
    """Return how well the probability of each class tells its rows from the rest; None where there is but one class."""
    occurring = np.unique(truth)
    if len(occurring) < 2:
        return {"roc_auc": None, "average_precision": None}
    found = np.array([ranking_measures(truth == code, scores[:, code]) for code in occurring.tolist()])
    area, precision = found.mean(axis=0).tolist()
    return {"roc_auc": area, "average_precision": precision}


def ranking_measures(is_it: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[float, float]:
    """Return the area under the ROC curve and the average precision of `scores` (n,) for the rows that `is_it` (n,).

    Rows of equal score come together. Some rows have to be it, and some not.

    >>> ranking_measures(np.array([True, False, True, False]), np.array([0.9, 0.6, 0.5, 0.1]))
    (0.75, 0.8333333333333333)
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of each run of equal scores
    hits = np.cumsum(is_it[order])[last]
    recall, false = hits / hits[-1], (last + 1 - hits) / (last[-1] + 1 - hits[-1])
    steps = np.diff(recall, prepend=0)
    area = float(np.sum(np.diff(false, prepend=0) * (recall - steps / 2)))
    return area, float(np.sum(steps * hits / (last + 1)))


def _among_best(truth: NDArray[np.int64], scores: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Return the mask (n,) of the rows whose true class is among the `count` of the highest scores."""
    given = scores[np.arange(len(truth)), truth][:, None]
    before = (scores > given) | ((scores == given) & (np.arange(scores.shape[1]) < truth[:, None]))
    return np.asarray(before.sum(axis=1) < count)


def accuracy_interval(
    right: NDArray[Any], groups: NDArray[np.int64], weights: NDArray[np.float64] | None = None
) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy: of the sum of `right` (n,), 1 or the row's weight where it is right.

    It is that of the share in as many independent rows as the `groups` (n,) are worth.
    """
    weights = np.ones(len(groups)) if weights is None else weights
    count = effective_count(groups, weights)
    return share_interval(min(float(right.sum() / weights.sum()), 1.0) * count, count)


def effective_count(groups: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> float:
    """Count how many independent rows say as much as those in `groups` (n,), equal where one follows from another.

    Kish (1965): the square of the sum of the groups' sizes by the sum of their squares; with `weights` (n,), those are
    what their rows weigh. Without copies it is n.

    >>> effective_count(np.array([0, 0, 1, 1])), effective_count(np.array([0, 0, 0, 1]))
    (2.0, 1.6)
    """
    sizes = np.bincount(np.unique(groups, return_inverse=True)[1], weights=weights)
    return float(sizes.sum() ** 2 / np.square(sizes).sum())


def share_interval(hits: float, count: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share, of `hits` in `count` independent rows (Clopper and Pearson, 1934).

    Neither has to be whole: of rows that are not independent, `count` is what `effective_count` gives, and `hits` their
    share of it (Korn and Graubard, 1998).

    >>> [round(share, 3) for share in share_interval(33, 40)]
    [0.672, 0.927]
    """
    from scipy.special import betaincinv  # a third of a second less than the import of scipy.stats, the same numbers

    tail = (1 - confidence) / 2
    low = float(betaincinv(hits, count - hits + 1, tail)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, count - hits, 1 - tail)) if hits < count else 1.0
    return low, high


def regression(
    truth: NDArray[Any], predicted: NDArray[Any], *, groups: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Measure n predictions: MAE and RMSE in the target's unit, and R² (None where the truth does not vary).

    Each has a 95 % interval by resampling `groups` (n,) of rows, which are one observation each: mae_interval,
    rmse_interval, r2_interval; None where fewer than `FEWEST` groups leave too little to tell it from.
    """
    truth = np.asarray(truth, dtype=np.float64)
    errors = np.asarray(predicted, dtype=np.float64).reshape(truth.shape) - truth
    groups = np.arange(len(truth)) if groups is None else groups
    squared, spread = np.square(errors), np.square(truth - truth.mean())
    ones = np.ones(len(truth))
    varies = float(spread.sum()) > 0
    squares = ratio_interval(squared, ones, groups, power=2)
    unexplained = ratio_interval(squared, spread, groups, power=2) if varies else None
    return {
        "n": len(truth),
        "groups": len(np.unique(groups)),
        "mae": float(np.abs(errors).mean()),
        "mae_interval": _listed(ratio_interval(np.abs(errors), ones, groups)),
        "rmse": math.sqrt(float(squared.mean())),
        "rmse_interval": squares and [math.sqrt(bound) for bound in squares],
        "r2": 1 - float(squared.sum() / spread.sum()) if varies else None,
        "r2_interval": unexplained and [1 - bound for bound in reversed(unexplained)],
    }


def ratio_interval(
    above: NDArray[np.float64], below: NDArray[np.float64], groups: NDArray[np.int64], *, power: int = 1
) -> tuple[float, float] | None:
    """Return the 95 % interval of the ratio of two sums over rows that are not negative, as a mean error is one.

    The bootstrap-t of its logarithm (Efron and Tibshirani, 1993, 12.5) over `groups` (n,): the few large errors that
    most of a sum comes from make percentiles of plain resampling too narrow. Few rows rarely hold one of them at all:
    the upper end is that of the same rows and one more, whose error is larger than the largest by the share
    `UNSEEN` / groups. `power` is 2 for squares of errors. From `SETTLED` groups on the normal distribution says the
    same. None where there are fewer than `FEWEST`, or all is zero.
    """
    _, of_row = np.unique(groups, return_inverse=True)
    count = int(of_row.max()) + 1
    a, b = (np.bincount(of_row, weights=values).astype(np.float64) for values in (above, below))
    if count < FEWEST or not a.sum() > 0:
        return None
    if count >= SETTLED:
        return _around(a, b, (-NORMAL, NORMAL))
    unseen = a.max() * (1 + UNSEEN / count) ** power
    more = np.append(a, unseen), np.append(b, b.mean())
    return _around(a, b, _resampled(a, b))[0], _around(*more, _resampled(*more))[1]


def _around(a: NDArray[np.float64], b: NDArray[np.float64], errors: tuple[float, float]) -> tuple[float, float]:
    """Return the interval of sum(a) / sum(b) whose logarithm is off by so many standard `errors`, least and most."""
    logarithm, spread = map(float, _log_ratio(_sums(a, b).sum(axis=1)))
    low, high = errors
    return math.exp(logarithm - high * spread), math.exp(min(logarithm - low * spread, LARGEST_LOGARITHM))


def _resampled(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Return the central 95 % of how many standard errors the logarithm of the ratio is off, over resamples."""
    count, sums = len(a), _sums(a, b)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    logarithms, spreads = _log_ratio(sums @ drawn.T)
    known = np.isfinite(logarithms) & (spreads > 0)
    if not known.any():
        return 0.0, 0.0
    off = (logarithms[known] - math.log(a.sum() / b.sum())) / spreads[known]
    low, high = np.quantile(off, (0.025, 0.975))
    return float(low), float(high)


def _sums(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([a, b, a * a, a * b, b * b])


def _log_ratio(sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return logarithms of ratios and their standard errors, from the sums of a, b, a², ab and b², (5, ...)."""
    a, b, aa, ab, bb = sums
    with np.errstate(divide="ignore", invalid="ignore"):  # a sample may be all zeros: it is left out
        return np.log(a / b), np.sqrt(np.maximum(aa / (a * a) - 2 * ab / (a * b) + bb / (b * b), 0))


def paired_interval(gaps: NDArray[np.float64], groups: NDArray[np.int64], *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `gaps` (n,), differences of two models on the same rows.

    It is the central part of resamples of whole `groups` (n,), from `SETTLED` groups on that of a normal distribution.

    >>> paired_interval(np.zeros(5), np.arange(5))
    (0.0, 0.0)
    """
    _, of_row = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(of_row, weights=gaps), np.bincount(of_row)
    count, mean = len(sizes), float(gaps.mean())
    if count >= SETTLED:
        error = float(np.sqrt(np.square(sums - mean * sizes).sum())) / len(gaps)
        return mean - NORMAL * error, mean + NORMAL * error
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    low, high = np.quantile((drawn @ sums) / (drawn @ sizes), (0.025, 0.975))
    return float(low), float(high)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p of McNemar's exact test (1947): that two models are right equally often.

    It is the binomial test of the rows where only one of them is right: `only_a` and `only_b`.

    >>> mcnemar(0, 0), mcnemar(1, 7)
    (1.0, 0.0703125)
    """
    from scipy.special import bdtr

    count = only_a + only_b
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), count, 0.5))) if count else 1.0


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


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
        return errors_text(found)
    per_class = found["per_class"]
    occurring = sum(one["support"] > 0 for one in per_class.values())
    of = "" if occurring == len(per_class) else f" over {occurring} of {len(per_class)} classes"
    lines = [f"{accuracy_text(found)}   macro F1 {found['macro_f1']:.4f}{of}   ({_counted(found)})"]
    lines.append(f"  {_more_measures(found)}")
    if len(per_class) > 20:
        return "\n".join([*lines, *_weakest(found)])
    written = {name: shown(name) for name in per_class}
    width = max(map(len, written.values()))
    lines.append(f"  {'':<{width}}  precision  recall      f1  support")
    for name, one in per_class.items():
        measured = f"{one['precision']:9.3f}  {one['recall']:6.3f}  {one['f1']:6.3f}  {one['support']:7d}"
        lines.append(f"  {written[name]:<{width}}  {measured}")
    return "\n".join(lines)


def _more_measures(found: Mapping[str, Any]) -> str:
    measured = {"balanced accuracy": found["balanced_accuracy"], "top-5 accuracy": found.get("top5_accuracy")}
    measured |= {"ROC-AUC": found["roc_auc"], "average precision": found["average_precision"]}
    return "   ".join(f"{name} {value:.4f}" for name, value in measured.items() if value is not None)


def _weakest(found: Mapping[str, Any]) -> list[str]:
    """List the pairs of classes that are confused most, and the classes that are recognized least."""
    lines = [f"  {count} of {shown(true)} called {shown(said)}" for true, said, count in found["confused"][:MOST_SHOWN]]
    weak = [(one["recall"], -one["support"], name) for name, one in found["per_class"].items() if one["support"]]
    weakest = [f"{shown(name)} {recall:.2f} of {-support}" for recall, support, name in sorted(weak) if recall < 1]
    lines = ["most confused:", *lines] if lines else []
    return lines + ([f"recognized least: {', '.join(weakest[:MOST_SHOWN])}"] if weakest else [])


def accuracy_text(found: Mapping[str, Any]) -> str:
    """Format an accuracy with its interval, and with the score of always saying the most frequent class."""
    low, high = found["accuracy_interval"]
    return f"accuracy {found['accuracy']:.4f} (95 %: {low:.2f} to {high:.2f}; majority {found['majority']:.2f})"


def errors_text(found: Mapping[str, Any]) -> str:
    """Format errors with their intervals."""

    def between(name: str, digits: str) -> str:
        interval = found[f"{name}_interval"]
        return "" if interval is None else f" ({interval[0]:{digits}} to {interval[1]:{digits}})"

    r2 = "-" if found["r2"] is None else f"{found['r2']:.3f}{between('r2', '.2f')}"
    intervals = found.get("interval")
    held = "" if intervals is None else f"   {intervals['coverage']:.0%} intervals hold {intervals['covered']:.0%}"
    mae, rmse = (f"{found[name]:.4g}{between(name, '.3g')}" for name in ("mae", "rmse"))
    return f"MAE {mae}   RMSE {rmse}   R2 {r2}{held.replace('%', ' %')}   ({_counted(found)})"


def _counted(found: Mapping[str, Any]) -> str:
    """Say how many rows there are, and how many of them say something of their own."""
    alike = f", {found['groups']} of them different" if found["groups"] < found["n"] else ""
    return f"{plural(found['n'], 'row')}{alike}"


def cautions(found: Mapping[str, Any], part: str) -> list[str]:
    """Return cautions on these measures of the `part` ("held-out rows"): few rows, classes without any."""
    said = []
    if found["n"] < FEW_ROWS:
        judged = "they say" if found["n"] > 1 else "it says"
        said.append(f"{part}: only {plural(found['n'], 'row')}; {judged} little of what other images would score")
    if found.get("absent"):
        listed = _named(found["absent"])
        said.append(f"{part}: no row of {listed}; how well that is told does not show in these measures")
    return said + (_class_cautions(found, part) if "accuracy" in found else [])


def _class_cautions(found: Mapping[str, Any], part: str) -> list[str]:
    """Return cautions where an accuracy hides what becomes of the rarer classes."""
    occurring = {name: one["support"] for name, one in found["per_class"].items() if one["support"]}
    if len(occurring) < 2:
        return []
    said = []
    if found["never_predicted"]:
        said.append(f"{part}: {_named(found['never_predicted'])} is never predicted; --class-weight balanced may help")
    rare = [name for name, support in occurring.items() if support < RARE_ROWS]
    if rare and found["n"] >= FEW_ROWS:
        said.append(f"{part}: fewer than {RARE_ROWS} rows of {_named(rare)}, too few to judge by")
    if found["accuracy_interval"][0] <= found["majority"]:
        most = max(occurring, key=lambda name: occurring[name])
        said.append(
            f"{part}: the accuracy is not clearly better than always saying {shown(most)} ({found['majority']:.4f})"
        )
    return said


def _named(names: Sequence[str]) -> str:
    return ", ".join(shown(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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
        f"(half are from {low:.4g} to {high:.4g}, these up to {numbers[far[0]]:.4g}) and dominate every "
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
