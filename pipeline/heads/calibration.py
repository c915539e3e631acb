"""From a head's raw scores to probabilities: one temperature, fitted on scores of rows that the head did not see."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]

#: Raw score of a class that a model has no example of: its probability is zero.
ABSENT = -1e30
#: Sharpest and flattest softmax that a temperature may ask for; scores of separable classes would ask for more.
_LOG_RANGE = (-7.0, 9.0)
_TINY = 1e-300


def softmax(scores: NDArray[np.floating], inverse_temperature: float = 1.0) -> Scores:
    """Probabilities (n, C) of scores (n, C), which are multiplied by `inverse_temperature`."""
    sharp = scores.astype(np.float64) * inverse_temperature
    sharp -= sharp.max(axis=1, keepdims=True)
    np.exp(sharp, out=sharp)
    sharp /= sharp.sum(axis=1, keepdims=True)
    return sharp


def fit_inverse_temperature(scores: NDArray[np.floating], y: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    """Fit the inverse temperature that makes the log loss of out-of-fold `scores` (n, C) least (Guo et al., 2017).

    The loss is convex in it, so the root of its slope is the one minimum. Ranking and accuracy do not change. The
    truth is taken for certain only as far as n rows allow (after Platt, 1999): as if each row had occurred n times with
    its class and once with any. Few rows that are all told apart would otherwise make every doubt impossible.
    """
    scores = scores.astype(np.float64)
    rows = len(scores)
    of_any = scores.mean(axis=1, where=scores > ABSENT / 2)
    of_truth = (rows * scores[np.arange(rows), y] + of_any) / (rows + 1)

    def slope(log_inverse: float) -> tuple[float, float]:
        """Return the slope of the loss over the inverse temperature, and its own over the logarithm of that."""
        inverse = float(np.exp(log_inverse))
        likely = softmax(scores, inverse)
        expected = np.einsum("nc,nc->n", likely, scores)
        spread = np.einsum("nc,nc,nc->n", likely, scores, scores) - expected**2
        return float((expected - of_truth) @ weights), inverse * float(spread @ weights)

    return float(np.exp(_root(slope, *_LOG_RANGE)))


def _root(rising: Callable[[float], tuple[float, float]], low: float, high: float) -> float:
    """Return where a `rising` function, which gives its slope too, is zero, or the end that is next to it.

    By Newton's steps, and by halves where these would leave the range that it is known to lie in.
    """
    if rising(high)[0] <= 0:
        return high
    if rising(low)[0] >= 0:
        return low
    at = (low + high) / 2
    for _ in range(60):
        value, slope = rising(at)
        low, high = (low, at) if value > 0 else (at, high)
        before, ahead = at, at - value / max(slope, _TINY)
        at = ahead if low < ahead < high else (low + high) / 2
        if abs(at - before) < 1e-9:
            break
    return at


def least_in_set(probabilities: NDArray[np.floating], y: NDArray[np.int64], coverage: float) -> float | None:
    """Find the least probability that puts a class into a prediction set, from out-of-fold `probabilities` (n, C).

    The nonconformity score is 1 - p of the true class (Sadinle et al., 2019: the smallest sets on average), and the
    ceil((n + 1) coverage)-th smallest one covers a new row with at least that probability; None where n is too small.
    """
    largest = conformal_quantile(-probabilities[np.arange(len(y)), y], coverage)  # -p: 1 - p would be rounded
    return None if largest is None else -largest


def interval_half_width(residuals: NDArray[np.float64], coverage: float) -> float | None:
    """Return half the width of a prediction interval from absolute out-of-fold `residuals` (n,).

    It is the ceil((n + 1) coverage)-th smallest; None where n is too small for it. Of one fixed model and exchangeable
    rows it would cover a new row with at least that probability (Vovk et al., 2005). Out of fold the models differ
    from the one that answers, and nothing is guaranteed for the plain quantile of their residuals (Barber et al., 2021,
    can give 1 - 2 (1 - coverage) for another interval); `tests/benchmarks/intervals.py` measures what it covers.
    """
    return conformal_quantile(np.abs(residuals), coverage)


def conformal_quantile(scores: NDArray[np.floating], coverage: float) -> float | None:
    """Return the ceil((n + 1) coverage)-th smallest of `scores` (n,), which the next one of their kind is at most.

    That holds with a probability of at least `coverage`, whatever n. None where n is too small for it.

    >>> conformal_quantile(np.arange(1.0, 20.0), 0.9), conformal_quantile(np.arange(3.0), 0.9)
    (18.0, None)
    """
    rank = int(np.ceil((len(scores) + 1) * coverage))
    return None if rank > len(scores) else float(np.partition(scores, rank - 1)[rank - 1])
