"""Tests of batch sizes: halved where memory runs out, doubled while it pays, never over the budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.engines import batch_size
from pipeline.engines.batch_size import Size, fastest_size, in_halves
from pipeline.errors import EngineError


class Memory:
    """A device on which at most `room` images fit, of 10 bytes each."""

    def __init__(self, room: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.room = room
        self.error = error
        self.ran: list[int] = []

    def __call__(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        if len(pixels) > self.room:
            raise self.error("Failed to allocate memory for requested buffer of size 123")
        self.ran.append(len(pixels))
        return [pixels.astype(np.float32)]

    def trial(self, count: int) -> int:
        self(np.zeros(count, np.uint8))
        return 10 * count


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
@pytest.mark.parametrize(("room", "fits"), [(100, 64), (40, 32), (7, 4), (1, 1)])
def test_a_batch_that_does_not_fit_is_halved(
    room: int, fits: int, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.arange(100, dtype=np.uint8)
    memory = Memory(room, error)
    size, (features,) = in_halves(memory, pixels, 64)
    assert size == fits
    np.testing.assert_array_equal(features, pixels)
    assert max(memory.ran) == fits
    assert (f"going on with {fits} images at a time" in caplog.text) == (fits < 64)


def test_one_image_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(EngineError, match="one image alone does not fit into the device's memory"):
        in_halves(Memory(0), np.zeros(4, np.uint8), 4)
    with pytest.raises(EngineError, match="one image alone does not fit"):
        fastest_size(Memory(0).trial, smallest=8, largest=64, budget=10**9)


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    def broken(_given: object) -> int:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        in_halves(broken, np.zeros(4, np.uint8), 4)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fastest_size(broken, smallest=1, largest=4, budget=10**9)


@pytest.mark.parametrize(
    ("room", "budget", "expected"),
    [
        *((1000, 10**9, 64), (50, 10**9, 32), (8, 10**9, 8), (3, 10**9, 2), (1, 10**9, 1)),
        *((1000, 320, 32), (1000, 319, 16), (1000, 79, 4), (1000, 5, 1)),
    ],
)
def test_a_size_is_doubled_while_it_pays_and_the_budget_lasts(
    monkeypatch: pytest.MonkeyPatch, room: int, budget: int, expected: int
) -> None:
    clock = [0.0]
    monkeypatch.setattr(batch_size.time, "perf_counter", lambda: clock[0])
    memory = Memory(room)

    def trial(count: int) -> int:
        clock[0] += 1.0 + max(0, count - 64) / 60  # a fixed cost up to 64 images
        return memory.trial(count)

    assert fastest_size(trial, smallest=8, largest=512, budget=budget).images == expected


def test_a_size_within_a_budget() -> None:
    assert Size(16, 1600).within(1600) == Size(16, 1600)
    assert Size(16, 1600).within(500) == Size(4, 400)
    assert Size(16, 1600).within(1) == Size(1, 100)
    assert Size(16).within(1) == Size(16)  # nothing is known of its bytes
