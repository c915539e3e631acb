"""What runs a frozen base: pixels in, features out.

ONNX Runtime is the fastest on a CPU; torch runs everything everywhere. Which one ran is in a store's environment
and not in its recipe: they agree within 1e-4 of a layer's largest value.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_state

from pipeline.bases import Base, FeatureNetwork, feature_network
from pipeline.config import Pool
from pipeline.devices import CoreThreads, pick_device
from pipeline.errors import EngineError, SettingsError
from pipeline.graphs import export, graph_key, keep_cached, matches, read_cached
from pipeline.inputs import InputTransform
from pipeline.registry import nearest

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Features = list[NDArray[np.float32]]

ENGINES = ("auto", "torch", "onnxruntime")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: Images that one core computes at a time: more are no faster and need more memory.
IMAGES_A_CORE = 4
CHUNKS_A_CORE = 8
CPU_BATCH = 16
LARGEST_BATCH = 512

_ONNX_ERRORS = (
    onnx_state.Fail,
    onnx_state.InvalidGraph,
    onnx_state.InvalidProtobuf,
    onnx_state.NotImplemented,
    onnx_state.RuntimeException,
)


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


def make_engine(
    base: Base,
    layers: Sequence[str],
    pool: Pool = "none",
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int | Literal["auto"] = "auto",
    threads: CoreThreads | None = None,
) -> Engine:
    """What runs `base` up to `layers`, each pooled by `pool`.

    `threads` are the cores to share with whoever decodes; an engine on a CPU takes its own without. With
    `batch_size` auto it is measured on a GPU. Raises `EngineError` where `engine`, `device` and `precision` do not
    go together, or where ONNX Runtime is asked for and cannot run this base.
    """
    _check(engine, ENGINES, "engine")
    _check(precision, PRECISIONS, "precision")
    place = pick_device(device)
    network = feature_network(base, layers, pool)
    if engine == "onnxruntime" and (place.type != "cpu" or precision != "fp32"):
        raise EngineError(
            f"engine onnxruntime runs on the CPU in fp32, not on {place} in {precision}; use --engine torch"
        )
    if engine != "torch" and place.type == "cpu" and precision == "fp32":
        try:
            return OnnxEngine(base, network, threads=threads, batch_size=batch_size)
        except EngineError as error:
            if engine == "onnxruntime":
                raise EngineError(f"{base.name} cannot run in onnxruntime: {error}; use --engine torch") from None
            log.warning("%s runs in torch, which is slower, since %s", base.name, error)
    return TorchEngine(network, base.transform, place, precision=precision, batch_size=batch_size)


def _check(name: str, known: Sequence[str] | dict[str, Any], kind: str) -> None:
    if name not in known:
        raise SettingsError(f"unknown {kind} {name!r}{nearest(name, known)}; known: {', '.join(known)}")


class OnnxEngine:
    """ONNX Runtime on a CPU: each core runs a few images on its own, so that no core ever waits for another."""

    name = "onnxruntime"
    device = "cpu"

    def __init__(
        self,
        base: Base,
        network: FeatureNetwork,
        *,
        threads: CoreThreads | None = None,
        batch_size: int | Literal["auto"] = "auto",
    ) -> None:
        self.shapes = list(network.shapes)
        self.seconds = 0.0
        self._threads = threads or CoreThreads()
        self._cores = self._threads.count
        self._graph = _graph(base, network)
        self._session = _session(self._graph, threads=1)
        automatic = IMAGES_A_CORE * CHUNKS_A_CORE * self._cores
        self.batch_size = automatic if batch_size == "auto" else batch_size

    def __call__(self, pixels: Pixels) -> Features:
        if len(pixels) < self._cores:
            features, seconds = _run(self._all_cores_on_one, pixels)
            self.seconds += seconds
            return features
        step = max(1, min(IMAGES_A_CORE, len(pixels) // self._cores))
        chunks = [pixels[start : start + step] for start in range(0, len(pixels), step)]
        parts = list(self._threads.map(lambda chunk: _run(self._session, chunk), chunks))
        self.seconds += sum(seconds for _, seconds in parts) / self._cores
        return [np.concatenate(layer) for layer in zip(*(features for features, _ in parts), strict=True)]

    @cached_property
    def _all_cores_on_one(self) -> Any:
        """For fewer images than cores, as in predict: its own copy of the weights, made when first needed."""
        return _session(self._graph, threads=self._cores)


def _graph(base: Base, network: FeatureNetwork) -> bytes:
    """The graph from the cache, or exported, compared with torch, and kept. Raises `EngineError`."""
    key = graph_key(base, network)
    graph = read_cached(key)
    if graph is None:
        graph = export(network, base.transform)
        _compare(graph, network, base.transform)
        keep_cached(key, graph)
    return graph


def _compare(graph: bytes, network: FeatureNetwork, transform: InputTransform) -> None:
    """Raise `EngineError` unless `graph` gives what `network` gives; another batch than it was exported with."""
    noise = np.random.default_rng(13).integers(0, 256, (3, *transform.size, 3), dtype=np.uint8)
    given = [torch.from_numpy(layer) for layer in _run(_session(graph, threads=1), noise)[0]]
    with torch.inference_mode():
        wanted = network(transform.normalize(torch.from_numpy(noise)))
    if not matches(given, wanted):
        raise EngineError("its ONNX graph gives other numbers than torch")


def _session(graph: bytes, *, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only: its warnings are about its own optimisations
    # A thread that has nothing to do must not spin: the core is needed for decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except _ONNX_ERRORS as error:
        raise EngineError(f"onnxruntime refuses its graph: {str(error).splitlines()[0]}") from None


def _run(session: Any, pixels: Pixels) -> tuple[Features, float]:
    started = time.perf_counter()
    features = session.run(None, {"pixels": pixels})
    return features, time.perf_counter() - started


class TorchEngine:
    """PyTorch on a CPU, CUDA or MPS: channels last, no gradients, pixels normalised where the base is.

    A batch that does not fit into memory is halved, for this and all later calls.
    """

    name = "torch"

    def __init__(
        self,
        network: FeatureNetwork,
        transform: InputTransform,
        device: torch.device,
        *,
        precision: str = "fp32",
        batch_size: int | Literal["auto"] = "auto",
    ) -> None:
        self.device = str(device)
        self.shapes = list(network.shapes)
        self.seconds = 0.0
        self._place = device
        self._precision = PRECISIONS[precision]
        self._transform = transform
        self._network = network.to(device).to(memory_format=torch.channels_last)
        self.batch_size = CPU_BATCH if batch_size == "auto" else batch_size
        if batch_size == "auto" and device.type != "cpu":
            self.batch_size = fastest_batch_size(self._trial, largest=LARGEST_BATCH)

    def __call__(self, pixels: Pixels) -> Features:
        started = time.perf_counter()
        self.batch_size, parts = in_halves(self._forward, pixels, self.batch_size)
        features = [torch.cat([part[number] for part in parts]).cpu().numpy() for number in range(len(self.shapes))]
        self.seconds += time.perf_counter() - started
        return features

    def _forward(self, pixels: Pixels) -> list[torch.Tensor]:
        batch = torch.from_numpy(np.ascontiguousarray(pixels))
        if self._place.type == "cuda":
            batch = batch.pin_memory()
        with torch.inference_mode(), _repeatable(self._place), self._mixed():
            images = self._transform.normalize(batch.to(self._place, non_blocking=True))
            return [layer.float() for layer in self._network(images)]

    def _mixed(self) -> Any:
        if self._precision == torch.float32:
            return nullcontext()
        return torch.autocast(self._place.type, dtype=self._precision)

    def _trial(self, count: int) -> None:
        self._forward(np.zeros((count, *self._transform.size, 3), dtype=np.uint8))
        if self._place.type == "cuda":
            torch.cuda.synchronize(self._place)
        elif self._place.type == "mps":
            torch.mps.synchronize()


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """On CUDA, algorithms that give the same numbers every time, and fp32 that is fp32 and not TF32."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def in_halves(
    forward: Callable[[Pixels], list[torch.Tensor]], pixels: Pixels, batch_size: int
) -> tuple[int, list[list[torch.Tensor]]]:
    """Run `forward` on parts of at most `batch_size`, halved whenever memory runs out.

    Returns the batch size that fitted and the outputs of the parts in order. Raises `EngineError` where a single
    image does not fit.
    """
    parts: list[list[torch.Tensor]] = []
    start = 0
    while start < len(pixels):
        try:
            parts.append(forward(pixels[start : start + batch_size]))
            start += batch_size
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise EngineError(
                    "one image alone does not fit into the device's memory; use --device cpu or a smaller base"
                ) from None
            batch_size = max(1, min(batch_size, len(pixels)) // 2)
            log.warning("out of memory: going on with batches of %d", batch_size)
            _release_memory()
    return batch_size, parts


def _release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def fastest_batch_size(
    trial: Callable[[int], None], *, smallest: int = 8, largest: int = LARGEST_BATCH, gain: float = 1.05
) -> int:
    """The smallest batch size that is within `gain` of the fastest, by measurement: doubled while it pays.

    ``trial(n)`` runs n images; the first run of a size warms up and is not timed. Memory that runs out ends the
    search. Raises `EngineError` where not even `smallest` and its halves fit.
    """
    best, best_rate = 0, 0.0
    size = smallest
    while size <= largest:
        try:
            trial(size)
            started = time.perf_counter()
            trial(size)
            rate = size / (time.perf_counter() - started)
        except torch.OutOfMemoryError:
            _release_memory()
            if best:
                break
            if size == 1:
                raise EngineError("one image alone does not fit into the device's memory; use --device cpu") from None
            size, largest = size // 2, size // 2
            continue
        if rate < gain * best_rate:
            break
        best, best_rate = size, rate
        size *= 2
    return best
