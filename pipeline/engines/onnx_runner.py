"""A cut network in ONNX Runtime on a CPU: pixels in, features out."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_state

from pipeline.bases import Base, FeatureNetwork
from pipeline.engines.batch_size import Features, Pixels
from pipeline.engines.cache import keep_cached, read_cached
from pipeline.engines.onnx_graph import export, graph_key, matches
from pipeline.errors import EngineError
from pipeline.images.transform import InputTransform

_ONNX_ERRORS = (
    onnx_state.Fail,
    onnx_state.InvalidGraph,
    onnx_state.InvalidProtobuf,
    onnx_state.NotImplemented,
    onnx_state.RuntimeException,
)


class OnnxRunner:
    """Runner of ONNX Runtime on a CPU; its graph comes from the cache, or is exported, compared with torch, and kept.

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
        self._session = session(graph, threads=1)

    def on_one_core(self, pixels: Pixels) -> Features:
        """Compute one float32 array (B, ...) a layer of uint8 (B, H, W, 3), on any thread, on several at once."""
        return _run(self._session, pixels)

    def on_all_cores(self, pixels: Pixels) -> Features:
        """Compute the same with all cores for one call."""
        return _run(self._wide_session, pixels)

    @cached_property
    def _wide_session(self) -> Any:
        """The session for fewer images than cores, as in predict: a second copy of the weights, made when needed."""
        return session(self._graph, threads=self._cores)


def _compare(graph: bytes, network: FeatureNetwork, transform: InputTransform) -> None:
    """Raise `EngineError` unless `graph` gives what `network` gives."""
    # Three images, as it was exported with two: a graph into which tracing wrote its batch size fails here.
    noise = np.random.default_rng(13).integers(0, 256, (3, *transform.size, 3), dtype=np.uint8)
    given = [torch.from_numpy(layer) for layer in _run(session(graph, threads=1), noise)]
    with torch.inference_mode():
        wanted = network(transform.normalize(torch.from_numpy(noise)))
    if not matches(given, wanted):
        raise EngineError("its ONNX graph gives other numbers than torch")


def session(graph: bytes, *, threads: int) -> Any:
    """Open a session of ONNX Runtime on `threads` cores; raises `EngineError` where it refuses the graph."""
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
