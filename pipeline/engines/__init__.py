"""What runs a frozen base: pixels in, features out.

ONNX Runtime is the fastest on a CPU; torch runs everything everywhere. Which one ran is in a store's environment
and not in its recipe: they agree within 1e-4 of a layer's largest value.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch

from pipeline.bases import Base, feature_network
from pipeline.config import EngineSettings, Recipe
from pipeline.devices import CoreThreads, pick_device
from pipeline.engines.batch_size import Features, Pixels, fastest_size, in_halves
from pipeline.engines.cache import keep_size, read_size
from pipeline.engines.memory import budget, taken
from pipeline.engines.onnx_graph import graph_key
from pipeline.engines.onnx_runner import OnnxRunner
from pipeline.engines.torch_runner import CompiledRunner, TorchRunner
from pipeline.errors import EngineError
from pipeline.images.transform import InputTransform

log = logging.getLogger(__name__)

Result = TypeVar("Result")

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: Images that one core may be given at once, and images of a batch for each core, which keep all of them busy.
LARGEST_STEP, IMAGES_A_CORE = 16, 32
SMALLEST_BATCH, LARGEST_BATCH = 8, 512
#: Batches that are in memory at once: those being loaded, the one that is computed, the one that is written.
BATCHES_AT_ONCE = 5


class Engine(Protocol):
    """A frozen base, ready to run on `device`.

    `shapes` are those of one image's features, one a layer. `batch_size` is the number of images that suits it.
    `seconds` is the time spent in forward passes so far, as if all cores had worked on nothing else.
    """

    name: str
    device: str
    shapes: list[tuple[int, ...]]
    batch_size: int
    seconds: float

    def __call__(self, pixels: Pixels) -> Features:
        """uint8 (B, H, W, 3), any B, to one float32 array (B, ...) a layer."""


def make_engine(base: Base, recipe: Recipe, settings: EngineSettings, threads: CoreThreads) -> Engine:
    """Make what runs `base` up to the layers of `recipe`, pooled and in the precision that it says.

    `threads` are the cores to share with whoever decodes. Where `settings` leave the batch size to us it is measured,
    within their memory. Raises `EngineError` where engine, device, precision and compile do not go together, or where
    ONNX Runtime is asked for and cannot run this base.
    """
    place, precision = pick_device(settings.device), recipe.precision
    if settings.engine == "onnxruntime" and (place.type != "cpu" or precision != "fp32"):
        raise EngineError(
            f"engine onnxruntime runs on the CPU in fp32, not on {place} in {precision}; use --engine torch"
        )
    if settings.compile and place.type == "cpu":
        raise EngineError("--compile is for a GPU; leave it out: on a CPU, onnxruntime optimises the network anyway")
    network = feature_network(base, recipe.layers, recipe.pool)
    room, batch_size = budget(place, settings.memory), settings.batch_size
    if place.type != "cpu":
        kind = CompiledRunner if settings.compile else TorchRunner
        runner = kind(network, base.transform, place, PRECISIONS[precision])
        return GpuEngine(runner, network.shapes, base.transform, place, batch_size=batch_size, room=room)
    cpu: OnnxRunner | TorchRunner | None = None
    if settings.engine != "torch" and precision == "fp32":
        try:
            cpu = OnnxRunner(base, network, cores=threads.count)
        except EngineError as error:
            if settings.engine == "onnxruntime":
                raise EngineError(f"{base.name} cannot run in onnxruntime: {error}; use --engine torch") from None
            log.warning("%s runs in torch, which is slower, since %s", base.name, error)
    key = f"{graph_key(base, network)}-{cpu.name if cpu else 'torch'}-{precision}-{threads.count}"
    cpu = cpu or TorchRunner(network, base.transform, place, PRECISIONS[precision])
    return CpuEngine(cpu, network.shapes, base.transform, threads, batch_size=batch_size, room=room, key=key)


def forward(engine: Engine, images: Sequence[Pixels]) -> Features:
    """Features of images of uint8 (V, H, W, 3) each: (n, ...) a layer for one view, (n, V, ...) for more."""
    views = len(images[0])
    found = engine(np.concatenate(images))
    return found if views == 1 else [layer.reshape(len(images), views, *layer.shape[1:]) for layer in found]


class CpuEngine:
    """Each core runs a few images on its own, so that no core ever waits for another."""

    device = "cpu"

    def __init__(
        self,
        runner: OnnxRunner | TorchRunner,
        shapes: Sequence[tuple[int, ...]],
        transform: InputTransform,
        threads: CoreThreads,
        *,
        batch_size: int | Literal["auto"],
        room: int,
        key: str,
    ) -> None:
        self.name = runner.name
        self.shapes = list(shapes)
        self.seconds = 0.0
        self._runner = runner
        self._threads = threads
        self._cores = threads.count
        self._step = LARGEST_STEP
        if batch_size == "auto":
            self._step = self._measured(partial(_blank, transform), room, key)
            batch_size = _batch_within(room, max(self._step, IMAGES_A_CORE) * self._cores, self.shapes, transform)
        self.batch_size = batch_size

    def __call__(self, pixels: Pixels) -> Features:
        if len(pixels) < self._cores:
            features, seconds = _timed(self._runner.on_all_cores, pixels)
            self.seconds += seconds
            return features
        step = max(1, min(self._step, len(pixels) // self._cores))
        chunks = [pixels[start : start + step] for start in range(0, len(pixels), step)]
        with _torch_threads_kept():
            parts = list(self._threads.map(self._on_one_core, chunks))
        self.seconds += sum(seconds for _, seconds in parts) / self._cores
        return [np.concatenate(layer) for layer in zip(*(features for features, _ in parts), strict=True)]

    def _on_one_core(self, chunk: Pixels) -> tuple[Features, float]:
        (fitted, features), seconds = _timed(lambda part: in_halves(self._runner.on_one_core, part, len(part)), chunk)
        self._step = min(self._step, fitted) if fitted < len(chunk) else self._step
        return features, seconds

    def _measured(self, blank: Callable[[int], Pixels], room: int, key: str) -> int:
        """Images at once for a core: measured with all cores at work, once for a base on a machine."""
        size = read_size(key)
        if size is None:

            def trial(count: int) -> int:
                with _torch_threads_kept():
                    work = [blank(count)] * self._cores
                    return taken(torch.device("cpu"), lambda: list(self._threads.map(self._runner.on_one_core, work)))

            size = fastest_size(trial, smallest=1, largest=LARGEST_STEP, budget=room)
            if 2 * size.bytes <= room:  # else it says more of this moment's memory than of the base
                keep_size(key, size)
        return size.within(room).images


class GpuEngine:
    """CUDA or MPS: one batch at a time. One that does not fit into memory is halved, for this and all later calls."""

    name = "torch"

    def __init__(
        self,
        runner: TorchRunner,
        shapes: Sequence[tuple[int, ...]],
        transform: InputTransform,
        device: torch.device,
        *,
        batch_size: int | Literal["auto"],
        room: int,
    ) -> None:
        self.device = str(device)
        self.shapes = list(shapes)
        self.seconds = 0.0
        self._runner = runner
        if batch_size == "auto":

            def trial(count: int) -> int:
                # Uncompiled also where it will be compiled: every size that is tried would cost its compilation.
                return taken(device, lambda: TorchRunner.on_all_cores(runner, _blank(transform, count)))

            size = fastest_size(trial, smallest=SMALLEST_BATCH, largest=LARGEST_BATCH, budget=room)
            batch_size = size.images
        self.batch_size = batch_size

    def __call__(self, pixels: Pixels) -> Features:
        (self.batch_size, features), seconds = _timed(
            lambda batch: in_halves(self._runner.on_all_cores, batch, self.batch_size), pixels
        )
        self.seconds += seconds
        return features


def _blank(transform: InputTransform, count: int) -> Pixels:
    return np.zeros((count, *transform.size, 3), dtype=np.uint8)


def _batch_within(room: int, wanted: int, shapes: Sequence[tuple[int, ...]], transform: InputTransform) -> int:
    """`wanted` images, or as many as their pixels and features leave room for."""
    features = sum(math.prod(shape) * 4 for shape in shapes)
    return max(1, min(wanted, room // (BATCHES_AT_ONCE * (math.prod(transform.size) * 3 + features))))


def _timed(run: Callable[[Pixels], Result], pixels: Pixels) -> tuple[Result, float]:
    started = time.perf_counter()
    result = run(pixels)
    return result, time.perf_counter() - started


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """What a core's thread says of its own threads is taken by torch for the whole process, too: undo it afterwards."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
