"""A cut network in ONNX Runtime on a CPU: pixels in, features out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_state

from pipeline.engines.batch_size import Features, Pixels
from pipeline.errors import EngineError

_ONNX_ERRORS = (
    onnx_state.Fail,
    onnx_state.InvalidGraph,
    onnx_state.InvalidProtobuf,
    onnx_state.NotImplemented,
    onnx_state.RuntimeException,
)


class OnnxRunner:
    """Runner of ONNX Runtime on a CPU, of a graph that `onnx_graph` made; raises `EngineError` where it is refused."""

    name = "onnxruntime"

    def __init__(self, graph: bytes, *, cores: int) -> None:
        self._graph = graph
        self._cores = cores
        self._session = session(graph, threads=1)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of one image's features, one a layer."""
        shapes = [tuple(output.shape[1:]) for output in self._session.get_outputs()]
        if all(isinstance(side, int) for shape in shapes for side in shape):
            return shapes
        # Some are known only when it runs: tracing computed them from the input.
        (pixels,) = self._session.get_inputs()
        blank = np.zeros((1, *pixels.shape[1:]), dtype=np.uint8)
        return [layer.shape[1:] for layer in run(self._session, blank)]

    def on_one_core(self, pixels: Pixels) -> Features:
        """Compute one float32 array (B, ...) a layer of uint8 (B, H, W, 3), on any thread, on several at once."""
        return run(self._session, pixels)

    def on_all_cores(self, pixels: Pixels) -> Features:
        """Compute the same with all cores for one call."""
        return run(self._wide_session, pixels)

    def threads_kept(self) -> AbstractContextManager[None]:
        """Nothing to restore: a session has threads of its own."""
        return nullcontext()

    @cached_property
    def _wide_session(self) -> Any:
        """The session for fewer images than cores, as in predict: a second copy of the weights, made when needed."""
        return session(self._graph, threads=self._cores)


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


def run(session: Any, pixels: Pixels) -> Features:
    """Compute the features of uint8 (B, H, W, 3)."""
    features: Features = session.run(None, {"pixels": pixels})
    return features
