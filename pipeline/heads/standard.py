"""Standardisation of features, and how it is folded into the weights of a linear model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import HeadError
from pipeline.heads.rows import Rows

#: A feature whose spread is this small beside its mean is rounding noise, not information.
_CONSTANT = 1e-6


@dataclass(frozen=True)
class Standard:
    """Mean (D,) and spread (D,) of training features; a constant feature has an infinite spread and so no say."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Rows) -> Standard:
        """Of all `rows`, in one pass. Raises `HeadError` on features that are not finite."""
        count, dimensions = rows.shape
        shift: NDArray[np.float32] | None = None
        total, squares = np.zeros(dimensions), np.zeros(dimensions)
        for _, block in rows.blocks():
            if shift is None:  # sums of what is near zero lose no digits
                shift = block.mean(axis=0)
            centred = block - shift
            total += centred.sum(axis=0, dtype=np.float64)
            squares += np.einsum("nd,nd->d", centred, centred, dtype=np.float64)
        if shift is None:
            raise HeadError("there is no row to train on")
        if not np.isfinite(squares).all():
            raise HeadError("the features hold NaN or infinity; run pipeline verify on the file")
        offset = total / count
        mean = shift + offset
        scale = np.sqrt(np.maximum(squares / count - offset**2, 0))
        scale[scale <= _CONSTANT * np.abs(mean)] = np.inf
        return cls(mean, scale)

    def apply(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Standardised features (n, D)."""
        centred = features - self.mean.astype(np.float32)
        centred *= (1 / self.scale).astype(np.float32)
        return np.asarray(centred, dtype=np.float32)

    def fold(
        self, weight: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weight (C, D) and bias (C,) on raw features, from those on standardised ones."""
        raw = weight / self.scale
        return raw.astype(np.float32), (bias - raw @ self.mean).astype(np.float32)
