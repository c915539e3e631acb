"""Losses that a descent can take: what the scores of a class are worth to a row, and in which direction they should go.

Scores and slopes are (k, C, n), for k fits at once; the true classes are (n,).
"""

from __future__ import annotations

from typing import Protocol

from pipeline.heads.solvers.arrays import Array, library

#: Beyond this, squares are no numbers in single precision; only rows that count nothing are so far off.
_FAR = 1e15


class Loss(Protocol):
    """A convex loss of the scores of a row, with a continuous slope."""

    def curvature(self, classes: int) -> float:
        """Return the usual curvature of the loss along one score, of which a descent makes its first steps."""

    def pull(self, classes: int) -> float:
        """Return what the penalty is multiplied with, so that C means what it does in scikit-learn."""

    def evaluate(self, scores: Array, target: Array) -> tuple[Array, Array]:
        """Return losses (k, n) and slopes (k, C, n)."""


class LogLoss:
    """Multinomial log loss: the scores of a row compete."""

    def curvature(self, classes: int) -> float:
        """Return the curvature where all classes are as likely."""
        return (1 - 1 / classes) / classes

    def pull(self, classes: int) -> float:
        """Return 2 for two classes: they have w/2 and -w/2, half the square of the one vector w of scikit-learn."""
        return 2.0 if classes == 2 else 1.0

    def evaluate(self, scores: Array, target: Array) -> tuple[Array, Array]:
        """Return -log p of the true class, and p less 1 for it."""
        xp = library(scores)
        rows = xp.arange(len(target))
        slope = scores - xp.amax(scores, axis=1, keepdims=True)
        given = slope[:, target, rows]
        xp.exp(slope, out=slope)
        total = slope.sum(axis=1)
        slope /= total[:, None]
        slope[:, target, rows] -= 1
        return xp.log(total) - given, slope


class SquaredHinge:
    """Each class against the rest, by the square of what its score falls short of 1 (or -1): as LinearSVC has it."""

    def curvature(self, classes: int) -> float:
        """Return that of one row in two: the others are on the right side of the margin."""
        return 1.0

    def pull(self, classes: int) -> float:
        """Return 1: the classes have nothing to do with each other, of two each has the whole penalty."""
        return 1.0

    def evaluate(self, scores: Array, target: Array) -> tuple[Array, Array]:
        """Return the sum over classes, and the slope of each."""
        xp = library(scores)
        sign = xp.full_like(scores, -1.0)
        sign[:, target, xp.arange(len(target))] = 1.0
        short = 1 - sign * scores
        xp.clip(short, 0, _FAR, out=short)
        loss = xp.square(short).sum(axis=1)
        short *= sign
        short *= -2
        return loss, short
