"""Trained support vector machines that answer from their arrays alone: no library is given them unchecked.

A machine has one output for numbers and for two classes, and otherwise one for each class. Those of version 0.1.0 with
a kernel and several classes ask one machine for each pair and count votes, as scikit-learn's SVC does; confidences only
part classes of as many votes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.rows import BLOCK_FLOATS
from pipeline.heads.solvers.kernel import rbf
from pipeline.heads.tensors import Tensors

Array = NDArray[np.float64]
Single = NDArray[np.float32]


@dataclass(frozen=True)
class LinearMachine:
    """Standardised features (n, D) times `weight` (K, D) plus `intercept` (K,)."""

    weight: Array
    intercept: Array

    @classmethod
    def of(cls, tensors: Tensors, *, dimensions: int, groups: int) -> LinearMachine:
        """Check arrays for `groups` classes, 1 for numbers."""
        outputs = groups if groups > 2 else 1
        return cls(
            tensors.take("weight", (outputs, dimensions), np.float64),
            tensors.take("intercept", (outputs,), np.float64),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what `of` takes."""
        return {"weight": self.weight, "intercept": self.intercept}

    def settings(self) -> dict[str, Any]:
        """For JSON."""
        return {"kind": "linear"}

    def decide(self, features: Single) -> Array:
        """Scores (n, K), or (n,) of one output."""
        out = features.astype(np.float64) @ self.weight.T + self.intercept
        return out[:, 0] if len(self.weight) == 1 else out


@dataclass(frozen=True)
class RestMachine:
    """Values of the RBF kernel of features and `vectors` (S, D), times `coefficients` (K, S), plus `intercept` (K,)."""

    vectors: Single
    coefficients: Array
    intercept: Array
    gamma: float

    @classmethod
    def of(cls, tensors: Tensors, settings: Mapping[str, Any], *, dimensions: int, groups: int) -> RestMachine:
        """Check arrays for `groups` classes, 1 for numbers."""
        gamma = float(settings["gamma"])
        tensors.require(0 < gamma < np.inf, f"gamma is {gamma}")
        outputs = groups if groups > 2 else 1
        vectors = tensors.take("vectors", (None, dimensions), np.float32)
        coefficients = tensors.take("coefficients", (outputs, len(vectors)), np.float64)
        return cls(vectors, coefficients, tensors.take("intercept", (outputs,), np.float64), gamma)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what `of` takes."""
        return {"vectors": self.vectors, "coefficients": self.coefficients, "intercept": self.intercept}

    def settings(self) -> dict[str, Any]:
        """For JSON."""
        return {"kind": "one against the rest", "gamma": self.gamma}

    def decide(self, features: Single) -> Array:
        """Scores (n, K), or (n,) of one output; a block of rows at a time."""
        vectors = self.vectors.astype(np.float64)
        parts = [rbf(block, vectors, self.gamma) @ self.coefficients.T for block in _blocks(features, vectors)]
        out = np.concatenate(parts) + self.intercept
        return out[:, 0] if len(self.intercept) == 1 else out


@dataclass(frozen=True)
class KernelMachine:
    """Kernel values of features and `vectors` (S, D), times coefficients.

    `vectors` are those of one class after the other, `counts` (G,) of each; of numbers they are all of one group. A
    vector has a `coefficients` (max(G - 1, 1), S) against each other class, a pair an `intercept`. `gamma` is of the
    RBF kernel, None for the linear one.
    """

    vectors: Single
    counts: NDArray[np.int64]
    coefficients: Array
    intercept: Array
    gamma: float | None

    @classmethod
    def of(cls, tensors: Tensors, settings: Mapping[str, Any], *, dimensions: int, groups: int) -> KernelMachine:
        """Check arrays for `groups` classes, 1 for numbers."""
        gamma = None if settings["kernel"] == "linear" else float(settings["gamma"])
        tensors.require(settings["kernel"] in ("linear", "rbf"), f"{settings['kernel']!r} is no kernel")
        tensors.require(gamma is None or 0 < gamma < np.inf, f"gamma is {gamma}")
        counts = tensors.take("counts", (groups,), np.int64)
        vectors = tensors.take("vectors", (None, dimensions), np.float32)
        tensors.require(counts.min() >= 0, "counts holds what is negative")
        tensors.require(sum(counts.tolist()) == len(vectors), f"counts do not sum to {len(vectors)} vectors")
        pairs = max(groups * (groups - 1) // 2, 1)
        coefficients = tensors.take("coefficients", (max(groups - 1, 1), len(vectors)), np.float64)
        return cls(vectors, counts, coefficients, tensors.take("intercept", (pairs,), np.float64), gamma)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what `of` takes."""
        return {
            "vectors": self.vectors,
            "counts": self.counts,
            "coefficients": self.coefficients,
            "intercept": self.intercept,
        }

    def settings(self) -> dict[str, Any]:
        """For JSON."""
        return {"kind": "kernel", "kernel": "linear" if self.gamma is None else "rbf", "gamma": self.gamma}

    def decide(self, features: Single) -> Array:
        """Votes (n, G), or signed distances or numbers (n,) where there is one output; a block of rows at a time."""
        vectors = self.vectors.astype(np.float64)
        return np.concatenate([self._decide(block, vectors) for block in _blocks(features, vectors)])

    def _decide(self, features: Array, vectors: Array) -> Array:
        kernel = features @ vectors.T if self.gamma is None else rbf(features, vectors, self.gamma)
        if len(self.counts) <= 2:
            return np.asarray(kernel @ self.coefficients[0] + self.intercept[0])
        return self._votes(self._pairs(kernel))

    def _pairs(self, kernel: Array) -> Array:
        """Signed distances (n, pairs) from the boundary of each pair, positive on the side of its first class."""
        ends = np.cumsum(self.counts)
        spans = [slice(end - count, end) for end, count in zip(ends, self.counts, strict=True)]
        parts = [kernel[:, span] @ self.coefficients[:, span].T for span in spans]
        pairs = combinations(range(len(spans)), 2)
        sums = [parts[first][:, second - 1] + parts[second][:, first] for first, second in pairs]
        return np.stack(sums, axis=1) + self.intercept

    def _votes(self, pairs: Array) -> Array:
        """Votes (n, G), and as less than half of one the sum of signed distances."""
        votes = np.zeros((len(pairs), len(self.counts)))
        confidence = np.zeros_like(votes)
        for place, (first, second) in enumerate(combinations(range(len(self.counts)), 2)):
            wins = pairs[:, place] >= 0
            votes[:, first] += wins
            votes[:, second] += ~wins
            confidence[:, first] += pairs[:, place]
            confidence[:, second] -= pairs[:, place]
        return np.asarray(votes + confidence / (3 * (np.abs(confidence) + 1)))


def _blocks(features: Single, vectors: Array) -> Iterator[Array]:
    """Parts of features (n, D) in double precision, one at least."""
    length = max(BLOCK_FLOATS // max(vectors.shape), 64)
    for start in range(0, max(len(features), 1), length):
        yield features[start : start + length].astype(np.float64)


Machine = LinearMachine | RestMachine | KernelMachine


def machine_of(tensors: Tensors, settings: Mapping[str, Any], *, dimensions: int, groups: int) -> Machine:
    """Make the machine whose `arrays` and `settings` these are. Raises the tensors' error where they do not fit."""
    kind = settings["kind"]
    if kind == "linear":
        return LinearMachine.of(tensors, dimensions=dimensions, groups=groups)
    if kind == "one against the rest":
        return RestMachine.of(tensors, settings, dimensions=dimensions, groups=groups)
    return KernelMachine.of(tensors, settings, dimensions=dimensions, groups=groups)
