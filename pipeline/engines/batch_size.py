"""Batch size of a base: measured within a budget of memory, and halved where memory runs out."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EngineError

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Features = list[NDArray[np.float32]]

#: A size is timed for as long as this, so that small bases are not judged by the noise of a millisecond.
TIMED_SECONDS = 0.05
#: A doubled size must be faster by this factor, to be worth the memory.
GAIN = 1.05
#: Words of the allocators of torch, ONNX Runtime and NumPy where no memory is left.
_NO_MEMORY = ("out of memory", "can't allocate memory", "Failed to allocate memory", "not enough memory")
NO_ROOM = "one image alone does not fit into the device's memory; use --device cpu or a smaller base"


@dataclass(frozen=True)
class Size:
    """A number of images at once, and the bytes that they took; 0 where that is not known."""

    images: int
    bytes: int = 0

    def within(self, budget: int) -> Size:
        """Halve the size until it is within `budget` bytes, or one image."""
        size = self
        while size.bytes > budget and size.images > 1:
            size = Size(size.images // 2, size.bytes // 2)
        return size


def is_out_of_memory(error: Exception) -> bool:
    """Return True where `error` says that memory ran out; on a CPU only its words say so."""
    torch = sys.modules.get("torch")  # where it was not imported, no error is of it
    kinds = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(word in str(error) for word in _NO_MEMORY)


def in_halves(forward: Callable[[Pixels], Features], pixels: Pixels, size: int) -> tuple[int, Features]:
    """Run `forward` on parts of at most `size` images, halved whenever memory runs out.

    Returns the size that fitted and the features of all images. Raises `EngineError` where a single image does not fit.
    """
    parts: list[Features] = []
    start = 0
    while start < len(pixels):
        try:
            parts.append(forward(pixels[start : start + size]))
            start += size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise EngineError(NO_ROOM) from None
            size = max(1, min(size, len(pixels)) // 2)
            log.warning("out of memory: going on with %d images at a time", size)
            release_memory()
    return size, [np.concatenate(layer) if len(layer) > 1 else layer[0] for layer in zip(*parts, strict=True)]


def fastest_size(trial: Callable[[int], int], *, smallest: int, largest: int, budget: int) -> Size:
    """Measure the smallest size that is within `GAIN` of the fastest: doubled while it pays.

    ``trial(n)`` runs n images and returns the bytes it took; the first run of a size warms up and is not timed. Memory
    that runs out, or a doubling that would exceed `budget`, ends the search. Raises `EngineError` where not even one
    image fits.
    """
    best, best_rate = Size(0), 0.0
    size = smallest
    while size <= largest:
        try:
            took = trial(size)
            rate = _rate(trial, size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            release_memory()
            if best.images:
                break
            if size == 1:
                raise EngineError(NO_ROOM) from None
            size, largest = size // 2, size // 2
            continue
        if rate < GAIN * best_rate:
            break
        best, best_rate = Size(size, took), rate
        if 2 * took > budget:
            break
        size *= 2
    return best.within(budget)


def _rate(trial: Callable[[int], int], size: int) -> float:
    started = time.perf_counter()
    runs, elapsed = 0, 0.0
    while elapsed < TIMED_SECONDS:
        trial(size)
        runs, elapsed = runs + 1, time.perf_counter() - started
    return runs * size / elapsed


def release_memory() -> None:
    """Give back what is cached and not used."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
