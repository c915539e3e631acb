"""Small features to learn from, drawn the same every time, and problems made of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads import Problem
from pipeline.heads.rows import ArrayRows

#: As many rows are drawn whatever is asked, so that more rows of a seed are more of the same.
POOL = 4000

Arrays = tuple[NDArray[np.float32], NDArray[Any]]


def blobs(rows: int, dimensions: int, classes: int, *, seed: int = 0, apart: float = 1.0) -> Arrays:
    """Overlapping clouds in a few directions of space, clipped at zero as features after a ReLU are."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, 16)) * apart
    y = random.integers(0, classes, max(rows, POOL))
    y[:classes] = np.arange(classes)
    hidden = centres[y] + random.normal(size=(len(y), 16)) * 1.5
    features = hidden @ random.normal(size=(16, dimensions)) / 4 + 0.3 * random.normal(size=(len(y), dimensions))
    return np.maximum(features[:rows], 0).astype(np.float32), y[:rows]


def line(rows: int, dimensions: int, *, seed: int = 0, noise: float = 1.0) -> Arrays:
    """Numbers that are a linear function of a few features, plus `noise`."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(max(rows, POOL), dimensions)).astype(np.float32)
    y = 50 + 3 * features[:, 0] - 2 * features[:, 1] + noise * random.normal(size=len(features))
    return features[:rows], y[:rows]


def problem_of(
    features: NDArray[np.floating],
    y: NDArray[Any],
    *,
    sample_weight: NDArray[np.floating] | None = None,
    groups: NDArray[np.int64] | None = None,
    classes: int | None = None,
    score_views: str = "plain",
    widths: Sequence[int] = (),
) -> Problem:
    """A problem from arrays: features (n, D) or (n, V, D), `y` integer codes for classes or floats for numbers."""
    views = features.shape[1] if features.ndim == 3 else 1
    rows = ArrayRows(features.reshape(len(features) * views, -1))
    weights = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    if np.issubdtype(y.dtype, np.integer):
        y = y.astype(np.int64)
        classes = classes or int(y.max()) + 1
    else:
        y, classes = y.astype(np.float64), None
    groups = np.arange(len(y)) if groups is None else groups
    return Problem(rows, y, weights / weights.mean(), groups, classes, views, score_views, tuple(widths))
