"""Feature rows for training, in memory or streamed: the solvers only ever ask for blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import HeadError

#: Floats of a block: small enough for a cache, large enough for matrix products to run at full speed.
BLOCK_FLOATS = 1 << 20

Features = NDArray[np.float32]


class Rows(Protocol):
    """n rows of D float32 features."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, D)."""

    def blocks(self) -> Iterator[tuple[slice, Features]]:
        """All rows in order, as (which, features) of at most `block_length(D)` rows each."""

    def array(self) -> Features:
        """All rows at once, (n, D). Raises `HeadError` where they do not fit the memory budget."""

    def take(self, which: NDArray[np.int64]) -> Rows:
        """Return the rows `which`, in that order."""


def block_length(dimensions: int) -> int:
    """Rows of a block."""
    return max(BLOCK_FLOATS // dimensions, 64)


class ArrayRows:
    """Rows in memory."""

    def __init__(self, features: NDArray[np.floating]) -> None:
        if features.ndim != 2:
            raise HeadError(f"features must be (rows, dimensions), not {features.shape}")
        self._features = np.ascontiguousarray(features, dtype=np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, D)."""
        return self._features.shape[0], self._features.shape[1]

    def blocks(self) -> Iterator[tuple[slice, Features]]:
        """Pass views of the array."""
        length = block_length(self.shape[1])
        for start in range(0, len(self._features), length):
            which = slice(start, min(start + length, len(self._features)))
            yield which, self._features[which]

    def array(self) -> Features:
        """Return the array itself."""
        return self._features

    def take(self, which: NDArray[np.int64]) -> ArrayRows:
        """Copy the rows `which`."""
        return ArrayRows(self._features[which])


class StreamedRows:
    """Rows that stay where they are; `read` gets the ones at some positions, (k, D)."""

    def __init__(
        self, read: Callable[[NDArray[np.int64]], Features], which: NDArray[np.int64], dimensions: int
    ) -> None:
        self._read = read
        self._which = which
        self._dimensions = dimensions

    @property
    def shape(self) -> tuple[int, int]:
        """(n, D)."""
        return len(self._which), self._dimensions

    def blocks(self) -> Iterator[tuple[slice, Features]]:
        """Read block by block; one is in memory at a time."""
        length = block_length(self._dimensions)
        for start in range(0, len(self._which), length):
            which = slice(start, min(start + length, len(self._which)))
            yield which, self._read(self._which[which])

    def array(self) -> Features:
        """Never: a head that needs all rows at once cannot be trained within the budget."""
        rows, dimensions = self.shape
        raise HeadError(
            f"{rows} x {dimensions} features ({rows * dimensions * 4 / 1e9:.1f} GB) are over the memory budget and "
            "this head needs them all at once; raise --memory, or take a head that streams: ridge, or linear of classes"
        )

    def take(self, which: NDArray[np.int64]) -> StreamedRows:
        """Return the rows `which`, still streamed."""
        return StreamedRows(self._read, self._which[which], self._dimensions)
