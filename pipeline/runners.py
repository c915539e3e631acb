"""A cut network as a function from pixels to features: in ONNX Runtime, in torch, or compiled by torch.

What is here knows nothing of batch sizes, and of threads only how many of them one call takes.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_state
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pipeline.bases import Base, FeatureNetwork
from pipeline.batching import Features, Pixels
from pipeline.errors import EngineError
from pipeline.graphs import export, graph_key, keep_cached, matches, read_cached
from pipeline.images.transform import InputTransform

_ONNX_ERRORS = (
    onnx_state.Fail,
    onnx_state.InvalidGraph,
    onnx_state.InvalidProtobuf,
    onnx_state.NotImplemented,
    onnx_state.RuntimeException,
)


class OnnxRunner:
    """ONNX Runtime on a CPU; the graph comes from the cache, or is exported, compared with torch, and kept.

    Raises `EngineError` where the network does not export, or gives other numbers than torch.
    """

    name = "onnxruntime"

    def __init__(self, base: Base, network: FeatureNetwork, *, cores: int) -> None:
        self._cores = cores
        key = graph_key(base, network)
        graph = read_cached(key)
        if graph is None:
            graph = export(network, base.transform)
            _compare(graph, network, base.transform)
            keep_cached(key, graph)
        self._graph = graph
        self._session = _session(graph, threads=1)

    def on_one_core(self, pixels: Pixels) -> Features:
        """uint8 (B, H, W, 3) to one float32 array (B, ...) a layer; may be called on several threads at once."""
        return _run(self._session, pixels)

    def on_all_cores(self, pixels: Pixels) -> Features:
        """The same with all cores for one call."""
        return _run(self._wide_session, pixels)

    @cached_property
    def _wide_session(self) -> Any:
        """For fewer images than cores, as in predict: its own copy of the weights, made when first needed."""
        return _session(self._graph, threads=self._cores)


def _compare(graph: bytes, network: FeatureNetwork, transform: InputTransform) -> None:
    """Raise `EngineError` unless `graph` gives what `network` gives; another batch than it was exported with."""
    noise = np.random.default_rng(13).integers(0, 256, (3, *transform.size, 3), dtype=np.uint8)
    given = [torch.from_numpy(layer) for layer in _run(_session(graph, threads=1), noise)]
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


def _run(session: Any, pixels: Pixels) -> Features:
    features: Features = session.run(None, {"pixels": pixels})
    return features


class TorchRunner:
    """PyTorch on any device: channels last, no gradients, pixels normalised where the base is."""

    name = "torch"

    def __init__(
        self, network: FeatureNetwork, transform: InputTransform, device: torch.device, precision: torch.dtype
    ) -> None:
        self._network = network.to(device).to(memory_format=torch.channels_last)
        self._transform = transform
        self._device = device
        self._precision = precision
        self._threads = threading.local()

    def on_one_core(self, pixels: Pixels) -> Features:
        """uint8 (B, H, W, 3) to one float32 array (B, ...) a layer; may be called on several threads at once."""
        if not hasattr(self._threads, "network"):
            torch.set_num_threads(1)
            self._threads.network = _twin(self._network)
        return self._features(self._threads.network, pixels)

    def on_all_cores(self, pixels: Pixels) -> Features:
        """The same with all cores, or with the whole of a GPU, for one call."""
        return self._features(self._network, pixels)

    def _features(self, network: Callable[[Tensor], tuple[Tensor, ...]], pixels: Pixels) -> Features:
        batch = torch.from_numpy(np.ascontiguousarray(pixels))
        if self._device.type == "cuda":
            batch = batch.pin_memory()
        with torch.inference_mode(), _repeatable(self._device), self._mixed():
            images = self._transform.normalize(batch.to(self._device, non_blocking=True))
            return [layer.float().cpu().numpy() for layer in network(images)]

    def _mixed(self) -> Any:
        if self._precision == torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._precision)


def _twin(network: FeatureNetwork) -> FeatureNetwork:
    """The same modules over the same weights, for another thread: a forward pass hangs its hooks on its modules."""
    shared = [*network.parameters(), *network.buffers()]
    twin: FeatureNetwork = copy.deepcopy(network, {id(tensor): tensor for tensor in shared})
    return twin


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """On CUDA, algorithms that give the same numbers every time, and fp32 that is fp32 and not TF32."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


class CompiledRunner(TorchRunner):
    """PyTorch with the network compiled for one batch size; smaller batches are filled up to it.

    Raises `EngineError` where it cannot be compiled.
    """

    backend = "inductor"

    def __init__(
        self, network: FeatureNetwork, transform: InputTransform, device: torch.device, precision: torch.dtype
    ) -> None:
        super().__init__(network, transform, device, precision)
        self._compiled: dict[int, Callable[[Tensor], tuple[Tensor, ...]]] = {}

    def on_all_cores(self, pixels: Pixels) -> Features:
        """As for torch; the first call of a size compiles."""
        size = min((known for known in self._compiled if known >= len(pixels)), default=len(pixels))
        missing = size - len(pixels)
        filled = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)]) if missing else pixels
        try:
            return [layer[: len(pixels)] for layer in self._features(self._forward, filled)]
        except torch.OutOfMemoryError:
            self._compiled.pop(size, None)
            raise

    def _forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = len(images)
        if size not in self._compiled:
            try:
                # Hooks and the early end of the forward pass are Python: what tracing leaves is a plain graph.
                graph = make_fx(self._network)(images)
                compiled = torch.compile(graph, backend=self.backend)
                compiled(images)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                why = str(error).splitlines()[0]
                raise EngineError(f"torch cannot compile it ({why}); leave out --compile") from None
            self._compiled[size] = compiled
        return self._compiled[size](images)
