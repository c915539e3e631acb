"""Heads that are scikit-learn pipelines, kept in head.skops: their arrays and settings, no code.

A file is opened only if everything in it is of a type that skops trusts by itself, and only as a standardisation
followed by one of the estimators that a head of this package makes.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.heads.calibration import ABSENT
from pipeline.heads.contract import Head, Problem
from pipeline.heads.standard import Standard

FILE = "head.skops"


class EstimatorHead(Head):
    """A fitted scikit-learn pipeline of StandardScaler and one estimator out of `estimators`."""

    estimators: ClassVar[tuple[str, ...]]
    pipeline: Any

    #: Number of classes of the problem; more than the estimator's own where some have no example.
    classes: int | None = None

    def save(self, folder: Path) -> dict[str, Any]:
        """The pipeline in head.skops."""
        from skops import io

        io.dump(self.pipeline, folder / FILE)
        return self.config() | {"classes": self.classes}

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """What `save` wrote, if it is nothing else."""
        head = cls.restore(config)
        head.pipeline = read_pipeline(folder / FILE, cls.estimators)
        head.classes = config["classes"]
        return head


def read_pipeline(path: Path, allowed: Sequence[str]) -> Any:
    """The pipeline in a skops file; raises `ModelError` where it holds anything that is not on the list."""
    from sklearn.exceptions import InconsistentVersionWarning
    from skops import io
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InconsistentVersionWarning)  # model.json names the versions
            pipeline = io.load(path, trusted=[])
    except UntrustedTypesFoundException as error:
        raise ModelError(f"{path} holds types that no head has and is not opened: {error}") from None
    except (OSError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} cannot be read: {error}; train the head again") from None
    steps = [type(step).__name__ for _, step in getattr(pipeline, "steps", [])]
    if len(steps) != 2 or steps[0] != "StandardScaler" or steps[1] not in allowed:
        raise ModelError(f"{path} holds {steps or type(pipeline).__name__}, not a head that this program trains")
    return pipeline


def scaler_of(standard: Standard) -> Any:
    """The scikit-learn scaler that does what `standard` says."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    scaler.mean_, scaler.scale_ = standard.mean, standard.scale
    scaler.n_features_in_ = len(standard.mean)
    return scaler


def widened(scores: NDArray[np.floating], known: NDArray[np.integer], classes: int) -> NDArray[np.float64]:
    """Scores (n, C) of all classes from those of the `known` ones, in one column for two classes."""
    if scores.ndim == 1:
        scores = np.stack([-scores, scores], axis=1)
    if len(known) == classes:
        return scores.astype(np.float64)
    out = np.full((len(scores), classes), ABSENT)
    out[:, known] = scores
    return out


def known_elsewhere(problem: Problem, folds: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask (n,): images whose class occurs outside their own fold, so that the fold's model can know it."""
    if problem.classes is None:
        return np.ones(len(folds), dtype=bool)
    count = np.zeros((int(folds.max()) + 1, problem.classes), dtype=np.int64)
    np.add.at(count, (folds, problem.y), 1)
    return np.asarray(count.sum(axis=0)[problem.y] > count[folds, problem.y])
