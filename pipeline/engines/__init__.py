"""Engines: a frozen base on a device, pixels in, features out.

ONNX Runtime and OpenVINO are the fastest on a CPU, equally so in single precision; OpenVINO alone gains by less of
it. torch runs everything everywhere. Which one ran is in a store's environment and not in its recipe: they agree
within 1e-4 of a layer's largest value.

embedder.py         `Embedder`: images to features by a recipe, on one device
workers.py          `Crew`: the same on several devices, a process each
batch_size.py       how many images go through a base at once
memory.py           bytes that are free on a device, bytes that a piece of work takes
torch_runner.py     one forward pass in torch, compiled or not
onnx_runner.py      one forward pass in ONNX Runtime
openvino_runner.py  one forward pass in OpenVINO
onnx_graph.py       a network as an ONNX graph
quantization.py     an ONNX graph in 8 bits
calibration.py      what int8 needs beside a base: ranges of activations on images of a source
cache.py            graphs and batch sizes, kept in the user's cache folder
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, cast

import numpy as np

from pipeline.config import EngineSettings, Recipe
from pipeline.devices import CoreThreads, computes, is_cpu, pick_device
from pipeline.engines import openvino_runner
from pipeline.engines.batch_size import Features, Pixels, fastest_size, in_halves
from pipeline.engines.cache import graph_key, keep_cached, keep_size, read_cached, read_size
from pipeline.engines.memory import budget, taken
from pipeline.errors import EngineError
from pipeline.images.transform import InputTransform

if TYPE_CHECKING:
    import torch

    from pipeline.bases import Base
    from pipeline.bases.taps import FeatureModule
    from pipeline.engines.onnx_runner import OnnxRunner
    from pipeline.engines.openvino_runner import OpenvinoRunner
    from pipeline.engines.torch_runner import TorchRunner

    GraphRunner = OnnxRunner | OpenvinoRunner
    Runner = GraphRunner | TorchRunner

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Images that one core is given at once, at the most: the search for the fastest number ends here.
LARGEST_STEP = 16
#: Images of a batch for each core: two of the largest steps, so that a core that is done early finds another.
IMAGES_A_CORE = 32
#: Sizes that are tried on a GPU.
SMALLEST_BATCH, LARGEST_BATCH = 8, 512
#: Batches in memory at once: three that are loaded (the one being filled and `loading.BATCHES_AHEAD` before it), the
#: one that is computed, and the one whose features are written.
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
        """Compute one float32 array (B, ...) a layer from uint8 (B, H, W, 3), any B."""


def make_engine(
    base: Base | Callable[[], Base],
    recipe: Recipe,
    settings: EngineSettings,
    threads: CoreThreads,
    network: FeatureModule | None = None,
) -> Engine:
    """Make the engine that runs `base` up to the layers of `recipe`, pooled and in its precision.

    `network` is what is run where the recipe names no layers of the base, but places in its graph.

    `base` may be what loads it: it is called, and torch is imported, only where the recipe's ONNX graph is not at hand.
    `threads` are the cores to share with whoever decodes. Where `settings` leave the batch size to us it is measured,
    within their memory. Raises `EngineError` where engine, device, precision and compile do not go together, or where
    ONNX Runtime or OpenVINO is asked for and cannot run this base.
    """
    at_hand = _engine_at_hand(recipe, settings, threads)
    return at_hand or _engine_of(_loaded(base), recipe, settings, threads, network)


def _loaded(base: Base | Callable[[], Base]) -> Base:
    return base() if callable(base) else base


def _engine_at_hand(recipe: Recipe, settings: EngineSettings, threads: CoreThreads) -> Engine | None:
    """Make the engine of a recipe whose graph is in the cache; None where there is none, or another engine is asked."""
    if settings.engine == "torch" or settings.compile or not is_cpu(settings.device):
        return None
    graph = read_cached(graph_key(recipe))
    name = None if graph is None else _graph_engine(recipe.precision, settings.engine)
    if graph is None or name is None:
        return None
    try:
        runner = _graph_runner(name, graph, recipe, cores=threads.count)
    except EngineError:  # which is told where it is made anew
        return None
    transform = InputTransform.from_description(recipe.transform)
    return _started(runner, runner.shapes, transform, recipe, settings, threads)


def _graph_engine(precision: str, asked: str) -> str | None:
    """Name the engine that runs a graph in `precision` on this CPU where `asked` is wanted; None where torch has to.

    Raises `EngineError` where the one that is asked for cannot do it.
    """
    if precision == "int8":
        return _openvino_in(precision, asked)
    if asked == "torch":
        return None
    if asked == "onnxruntime" and precision != "fp32":
        raise EngineError(f"engine onnxruntime runs on the CPU in fp32, not on cpu in {precision}; use --engine torch")
    if asked == "openvino":
        return _openvino_in(precision, asked)
    if precision == "fp32":
        return "onnxruntime"
    if precision == "bf16" and openvino_runner.is_installed() and openvino_runner.computes_bf16():
        return "openvino"
    return None


def _openvino_in(precision: str, asked: str) -> str:
    """Return the name of OpenVINO; raise `EngineError` where it does not compute in `precision` here."""
    if asked not in ("auto", "openvino"):
        raise EngineError(f"int8 runs in OpenVINO alone, not in {asked}; leave out --engine")
    if not openvino_runner.is_installed():
        raise EngineError(openvino_runner.MISSING)
    if precision == "fp16":
        raise EngineError("engine openvino runs on the CPU in fp32, bf16 and int8, not in fp16; use --engine torch")
    if precision == "bf16" and not openvino_runner.computes_bf16():
        raise EngineError("this CPU has no instructions for bf16, without which it is slower than fp32; use fp32")
    return "openvino"


def _engine_of(
    base: Base, recipe: Recipe, settings: EngineSettings, threads: CoreThreads, network: FeatureModule | None
) -> Engine:
    from pipeline.bases import feature_network
    from pipeline.engines.torch_runner import PRECISIONS, CompiledRunner, TorchRunner

    place, precision = pick_device(settings.device), recipe.precision
    if settings.engine in ("onnxruntime", "openvino") and place.type != "cpu":
        raise EngineError(f"engine {settings.engine} runs on the CPU, not on {place}; use --engine torch")
    if settings.compile and place.type == "cpu":
        raise EngineError("--compile is for a GPU; leave it out: on a CPU, onnxruntime optimises the network anyway")
    if precision == "int8" and place.type != "cpu":
        raise EngineError(f"int8 runs on the CPU, not on {place}; use --device cpu, or another --precision")
    network = feature_network(base, recipe.layers, recipe.pool) if network is None else network
    if place.type != "cpu":
        kind = CompiledRunner if settings.compile else TorchRunner
        gpu = kind(network, base.transform, place, PRECISIONS[precision])
        return _started(gpu, network.shapes, base.transform, recipe, settings, place)
    runner: Runner | None = None
    if name := _graph_engine(precision, settings.engine):
        try:
            runner = _graph_runner(name, graph_of(base, recipe, network), recipe, cores=threads.count)
        except EngineError as error:
            if precision == "int8":
                raise EngineError(f"{base.name} cannot run in int8: {error}") from None
            if settings.engine == name:
                raise EngineError(f"{base.name} cannot run in {name}: {error}; use --engine torch") from None
            log.warning("%s runs in torch, which is slower, since %s", base.name, error)
    elif precision == "bf16" and not computes("bf16"):
        log.warning("bf16 is slower than fp32 on this CPU, which has no instructions for it")
    runner = runner or TorchRunner(network, base.transform, place, PRECISIONS[precision])
    return _started(runner, network.shapes, base.transform, recipe, settings, threads)


def _graph_runner(name: str, graph: bytes, recipe: Recipe, *, cores: int) -> GraphRunner:
    """Return the runner called `name`; raises `EngineError` where it refuses the graph."""
    if recipe.precision == "int8" and recipe.calibration is None:
        raise EngineError("its recipe has no ranges of activations; extract again with --force")
    if recipe.precision == "int8" and not computes("int8"):
        log.warning("this CPU has no instructions for int8 (VNNI): sums may saturate, and features differ from others'")
    if name == "openvino":
        return openvino_runner.OpenvinoRunner(graph, cores=cores, precision=recipe.precision)
    from pipeline.engines.onnx_runner import OnnxRunner

    return OnnxRunner(graph, cores=cores)


def graph_of(base: Base | Callable[[], Base], recipe: Recipe, network: FeatureModule | None = None) -> bytes:
    """Return the graph from the cache; one that is not there is made, from the base that may be loaded, and kept.

    Raises `EngineError` where there can be none, or where the ranges of an int8 recipe are not those of its graph.
    """
    key = graph_key(recipe)
    graph = read_cached(key)
    if graph is None:
        graph = _made_graph(base, recipe, network)
        keep_cached(key, graph)
    return graph


def _made_graph(base: Base | Callable[[], Base], recipe: Recipe, network: FeatureModule | None) -> bytes:
    if (calibration := recipe.calibration) is None:
        from pipeline.bases import feature_network
        from pipeline.engines.onnx_graph import make_graph

        base = _loaded(base)
        network = feature_network(base, recipe.layers, recipe.pool) if network is None else network
        return make_graph(network, base.transform)
    from pipeline.engines.quantization import quantized

    whole = recipe.model_copy(update={"layers": calibration.layers, "calibration": None})
    return quantized(graph_of(base, whole), calibration, recipe.layers)


def _started(
    runner: Runner,
    shapes: Sequence[tuple[int, ...]],
    transform: InputTransform,
    recipe: Recipe,
    settings: EngineSettings,
    place: CoreThreads | torch.device,
) -> Engine:
    """Start the engine of a runner on the cores of a CPU, or on another device."""
    size = settings.batch_size
    if isinstance(place, CoreThreads):
        room = budget("cpu", settings.memory)
        plain = recipe.model_copy(update={"calibration": None})  # whose ranges change no speed
        key = f"{graph_key(plain)}-{runner.name}-{recipe.precision}-{place.count}"
        return CpuEngine(runner, shapes, transform, place, batch_size=size, room=room, key=key)
    room = budget(str(place), settings.memory)
    return GpuEngine(cast("TorchRunner", runner), shapes, transform, place, batch_size=size, room=room)


def forward(engine: Engine, images: Sequence[Pixels]) -> Features:
    """Compute features of n images, uint8 (V, H, W, 3) each: (n, ...) a layer for one view, (n, V, ...) for more."""
    views = len(images[0])
    found = engine(np.concatenate(images))
    return found if views == 1 else [layer.reshape(len(images), views, *layer.shape[1:]) for layer in found]


class CpuEngine:
    """Engine of a CPU: each core runs a few images on its own, so that no core ever waits for another."""

    device = "cpu"

    def __init__(
        self,
        runner: Runner,
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
        """Compute as `Engine` says: fewer images than cores with all cores at once, more in a step for each core."""
        if len(pixels) < self._cores:
            features, seconds = _timed(self._runner.on_all_cores, pixels)
            self.seconds += seconds
            return features
        step = max(1, min(self._step, len(pixels) // self._cores))
        chunks = [pixels[start : start + step] for start in range(0, len(pixels), step)]
        with self._runner.threads_kept():
            parts = list(self._threads.map(self._on_one_core, chunks))
        self.seconds += sum(seconds for _, seconds in parts) / self._cores
        return [np.concatenate(layer) for layer in zip(*(features for features, _ in parts), strict=True)]

    def _on_one_core(self, chunk: Pixels) -> tuple[Features, float]:
        (fitted, features), seconds = _timed(lambda part: in_halves(self._runner.on_one_core, part, len(part)), chunk)
        self._step = min(self._step, fitted) if fitted < len(chunk) else self._step
        return features, seconds

    def _measured(self, blank: Callable[[int], Pixels], room: int, key: str) -> int:
        """Return how many images a core runs at once: measured with all cores at work, once for a base on a machine."""
        size = read_size(key)
        if size is None:

            def trial(count: int) -> int:
                with self._runner.threads_kept():
                    work = [blank(count)] * self._cores
                    return taken("cpu", lambda: list(self._threads.map(self._runner.on_one_core, work)))

            size = fastest_size(trial, smallest=1, largest=LARGEST_STEP, budget=room)
            if 2 * size.bytes <= room:  # else it says more of this moment's memory than of the base
                keep_size(key, size)
        return size.within(room).images


class GpuEngine:
    """Engine of CUDA or MPS: one batch at a time.

    A batch that does not fit into memory is halved, for this and all later calls.
    """

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
                return taken(str(device), lambda: runner.uncompiled(_blank(transform, count)))

            size = fastest_size(trial, smallest=SMALLEST_BATCH, largest=LARGEST_BATCH, budget=room)
            batch_size = size.images
        self.batch_size = batch_size

    def __call__(self, pixels: Pixels) -> Features:
        """Compute as `Engine` says, at most `batch_size` images at a time."""
        (self.batch_size, features), seconds = _timed(
            lambda batch: in_halves(self._runner.on_all_cores, batch, self.batch_size), pixels
        )
        self.seconds += seconds
        return features


def _blank(transform: InputTransform, count: int) -> Pixels:
    return np.zeros((count, *transform.size, 3), dtype=np.uint8)


def _batch_within(room: int, wanted: int, shapes: Sequence[tuple[int, ...]], transform: InputTransform) -> int:
    """Return `wanted`, or as many images as have room for their pixels and features."""
    features = sum(math.prod(shape) * 4 for shape in shapes)
    return max(1, min(wanted, room // (BATCHES_AT_ONCE * (math.prod(transform.size) * 3 + features))))


def _timed(run: Callable[[Pixels], Result], pixels: Pixels) -> tuple[Result, float]:
    started = time.perf_counter()
    result = run(pixels)
    return result, time.perf_counter() - started
