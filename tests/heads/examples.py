"""Small features to learn from, drawn the same every time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
