"""Standardisation of features, and how it is folded into the weights of a linear model.

All features of a layer are in one unit, and few rows tell the spread of a feature badly: one that is zero in nearly all
of them seems to have next to none, and divided by it a new row explodes. So each is divided by the root of the sum of
two squares, its own spread and the mean spread of its layer, as small spreads are tamed elsewhere (the fudge factor of
Tusher, Tibshirani and Chu, 2001). One factor for the layer then makes the mean variance of what varies in it 1, so that
layers stand side by side whatever their units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import HeadError
from pipeline.heads.rows import Rows

#: A feature whose spread is this small beside its mean is rounding noise, not information.
_CONSTANT = 1e-6


@dataclass(frozen=True)
class Standard:
    """Location and scale of training features: `mean` (D,) is taken off, and they are divided by `scale` (D,).

    A constant feature has an infinite scale and so no say.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Rows, widths: Sequence[int] = ()) -> Standard:
        """Of all `rows`, in one pass; `widths` are the dimensions of each layer in them, none for one layer.

        Raises `HeadError` on features that are not finite.
        """
        count, dimensions = rows.shape
        if widths and sum(widths) != dimensions:
            raise HeadError(f"layers of {', '.join(map(str, widths))} dimensions are not rows of {dimensions}")
        shift: NDArray[np.float32] | None = None
        total, squares = np.zeros(dimensions), np.zeros(dimensions)
        for _, block in rows.blocks():
            with np.errstate(invalid="ignore", over="ignore"):
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
        std = np.sqrt(np.maximum(squares / count - offset**2, 0))
        std[std <= _CONSTANT * np.abs(mean)] = 0
        layers = np.split(std, np.cumsum(widths)[:-1]) if widths else [std]
        return cls(mean, np.concatenate([_scale(layer) for layer in layers]))

    def apply(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Standardised features (n, D)."""
        centred = features - self.mean.astype(np.float32)
        centred *= (1 / self.scale).astype(np.float32)
        return np.asarray(centred, dtype=np.float32)

    def divide(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Standardise by division instead of a product, to the last bit as StandardScaler of scikit-learn 1.9 does.

        Heads that were saved with that scaler go on giving the same answers. Those of scikit-learn 1.6 rounded later,
        so that answers agree to the seventh digit or so.
        """
        centred = features.astype(np.float32) - self.mean.astype(np.float32)
        centred /= self.scale.astype(np.float32)
        return centred

    def fold(
        self, weight: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weight (C, D) and bias (C,) on raw features, from those on standardised ones."""
        raw = weight / self.scale
        return raw, bias - raw @ self.mean


def _scale(std: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what the features of one layer are divided by, from the `std` of each; 0 is that of a constant one."""
    scale = np.full(len(std), np.inf)
    varies = std > 0
    if varies.any():
        own = std[varies]
        tamed = np.hypot(own, own.mean())
        scale[varies] = tamed * np.sqrt(np.square(own / tamed).mean())
    return scale
