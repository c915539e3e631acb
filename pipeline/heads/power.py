"""Signed square root of features, and rows of length one: what makes histograms and activations comparable.

A feature that is large in a few pictures outweighs many that are small, and a picture of much contrast is longer than
another of the same kind; both go (Perronnin, Sanchez and Mensink, 2010). It is no better for every base: which way is
taken is searched, on training rows alone, and kept with the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.heads.rows import ArrayRows, Features, Rows


@dataclass(frozen=True)
class Power:
    """The transformation of rows of layers side by side, which are `widths` wide."""

    widths: tuple[int, ...]

    def apply(self, features: NDArray[np.floating]) -> Features:
        """Transform features (..., D), each layer for itself. Raises `ModelError` for another D."""
        if features.shape[-1] != sum(self.widths):
            raise ModelError(f"the head takes layers of {self.widths} features, not {features.shape[-1]} in all")
        out = np.sqrt(np.abs(features, dtype=np.float32))
        np.copysign(out, features, out=out)
        for layer in np.split(out, np.cumsum(self.widths)[:-1], axis=-1):
            length = np.linalg.norm(layer.astype(np.float64), axis=-1, keepdims=True)
            layer /= np.where(length > 0, length, 1).astype(np.float32)
        return np.asarray(out, dtype=np.float32)

    def rows(self, rows: Rows) -> Rows:
        """Transform rows: at once those in memory, others as they pass."""
        return ArrayRows(self.apply(rows.array())) if isinstance(rows, ArrayRows) else AppliedRows(rows, self.apply)

    def config(self) -> dict[str, Any]:
        """Return what `of` takes, for JSON."""
        return {"kind": "sqrt", "widths": list(self.widths)}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Make it from what `config` returned. Raises `ValueError` or `TypeError` where it is none of that."""
        widths: Sequence[int] = [int(width) for width in config["widths"]]
        if config["kind"] != "sqrt" or not widths or min(widths) < 1:
            raise ValueError(f"{dict(config)} is no power of features")
        return cls(tuple(widths))


class AppliedRows:
    """Rows that stay where they are and are transformed as they pass."""

    def __init__(self, rows: Rows, apply: Callable[[Features], Features]) -> None:
        self._rows = rows
        self._apply = apply

    @property
    def shape(self) -> tuple[int, int]:
        """(n, D)."""
        return self._rows.shape

    def blocks(self) -> Iterator[tuple[slice, Features]]:
        """Read and transform block by block."""
        for which, block in self._rows.blocks():
            yield which, self._apply(block)

    def array(self) -> Features:
        """Raise what the rows beneath do where they are too many."""
        return self._apply(self._rows.array())

    def take(self, which: NDArray[np.int64]) -> AppliedRows:
        """Take the rows `which`."""
        return AppliedRows(self._rows.take(which), self._apply)
