"""The fitted head that a training starts from: its weights, and how one is fitted where none is given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FitSettings
from pipeline.heads.affine import AffineHead
from pipeline.heads.contract import Problem
from pipeline.heads.rows import ArrayRows
from pipeline.heads.selection import train_head
from pipeline.training.batches import Indices
from pipeline.training.dataset import Examples
from pipeline.training.recipes import Hyperparameters

#: A calibrated start, with logits times the head's inverse temperature, has the right loss from the first step. The fit
#: is unbounded for a head without a mistake, and logits that are too large leave no gradients: at most so much.
LARGEST_INVERSE_TEMPERATURE = 10.0

#: Weight (C, D) and bias (C,) of a linear layer.
Weights = tuple[NDArray[np.floating], NDArray[np.floating]]


def weights_of(head: AffineHead) -> Weights:
    """Return the weights that give the head's calibrated logits, or its numbers."""
    sharpness = 1.0
    if head.task == "classes":
        sharpness = min(head.inverse_temperature, LARGEST_INVERSE_TEMPERATURE)
    return head.weight * sharpness, head.bias * sharpness


def fit_weights(
    features: NDArray[np.floating], rows: Indices, examples: Examples, settings: Hyperparameters
) -> Weights:
    """Fit a linear head as `fit-head` does, ridge for numbers, to `features` (n, D) of the training `rows` (n,)."""
    target, name = examples.target, "linear" if examples.target.task == "classes" else "ridge"
    weights = np.ones(len(rows))
    if settings.is_balanced:
        weights = examples.balance()[target.values[rows]].astype(np.float64)
    problem = Problem(
        rows=ArrayRows(features),
        y=target.values[rows],
        weights=weights / weights.mean(),
        groups=examples.groups[rows],
        classes=None if target.names is None else len(target.names),
    )
    # A slope on the root of a feature has no end at zero: such a head cannot be trained on.
    fitting = FitSettings.of({"head": name, "power": "none", "seed": settings.seed})
    head = train_head(name, problem, fitting).head
    if not isinstance(head, AffineHead):
        raise TypeError(f"a {name} head is no affine one")
    return weights_of(head)
