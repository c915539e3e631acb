"""A cut network in OpenVINO on a CPU: pixels in, features out."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, cached_property
from typing import Any

import numpy as np

from pipeline.engines.batch_size import Features, Pixels
from pipeline.errors import EngineError

_TELEMETRY = "openvino_telemetry"
MISSING = "engine openvino is not installed; install it with pip install 'cached-feature-pipeline[openvino]'"
#: Arithmetic that OpenVINO is told to take. What an int8 graph does not quantise is in single precision.
_ARITHMETIC = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


def is_installed() -> bool:
    """Return True where OpenVINO can be imported; it is not imported to find out."""
    return importlib.util.find_spec("openvino") is not None


def computes_bf16() -> bool:
    """Return True where this CPU has instructions for bf16 (AVX512-BF16, AMX) that OpenVINO uses."""
    capabilities: list[str] = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capabilities


class OpenvinoRunner:
    """Runner of OpenVINO on a CPU, of a graph that `onnx_graph` made; raises `EngineError` where it is refused.

    `shapes` are those of one image's features, one a layer.
    A core has a stream of its own. One request on all cores at a time was never faster by more than the noise, and
    would leave no core to decoding meanwhile: `on_all_cores` is for fewer images than cores.
    """

    name = "openvino"

    def __init__(self, graph: bytes, *, cores: int, precision: str = "fp32") -> None:
        self._graph = graph
        self._cores = cores
        self._precision = precision
        self._narrow = _Requests(compiled(graph, cores=cores, streams=cores, precision=precision))
        # The first array must not be given to OpenVINO by two threads at once: each may wait for the other for ever.
        blank = self._narrow(np.zeros(self._narrow.image_shape, np.uint8))
        self.shapes = [layer.shape[1:] for layer in blank]

    def on_one_core(self, pixels: Pixels) -> Features:
        """Compute one float32 array (B, ...) a layer of uint8 (B, H, W, 3), on any thread, on several at once."""
        return self._narrow(pixels)

    def on_all_cores(self, pixels: Pixels) -> Features:
        """Compute the same with all cores for one call."""
        return self._wide(pixels)

    def threads_kept(self) -> AbstractContextManager[None]:
        """Nothing to restore: the streams have threads of their own, and whoever asked waits for them."""
        return nullcontext()

    @cached_property
    def _wide(self) -> _Requests:
        """One stream of all cores: a second copy of the weights, made when needed."""
        return _Requests(compiled(self._graph, cores=self._cores, streams=1, precision=self._precision))


class _Requests:
    """A compiled model with a request for each thread that asks: one request serves one thread at a time."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._local = threading.local()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of a batch of one image."""
        return 1, *(side.get_length() for side in list(self._model.inputs[0].partial_shape)[1:])

    def __call__(self, pixels: Pixels) -> Features:
        if not hasattr(self._local, "request"):
            self._local.request = self._model.create_infer_request()
        found = self._local.request.infer([np.ascontiguousarray(pixels)], share_inputs=True)
        return [found[output] for output in self._model.outputs]


def compiled(graph: bytes, *, cores: int, streams: int, precision: str) -> Any:
    """Compile `graph` for as many `streams` on `cores`; raises `EngineError` where it is refused, or not installed."""
    settings = {
        "INFERENCE_NUM_THREADS": cores,
        "NUM_STREAMS": streams,
        "INFERENCE_PRECISION_HINT": _ARITHMETIC[precision],
        "ENABLE_CPU_PINNING": False,  # whoever decodes beside it may need that very core
    }
    core = _core()
    try:
        return core.compile_model(core.read_model(graph), "CPU", settings)
    except RuntimeError as error:
        why = next((line for line in reversed(str(error).splitlines()) if line.strip()), "no reason given")
        raise EngineError(f"openvino refuses its graph: {why.strip()}") from None


@cache
def _core() -> Any:
    """Return OpenVINO's core, one for the process: its memory is not whole any more once several were made and gone."""
    if not is_installed():
        raise EngineError(MISSING)
    with _without_telemetry():
        import openvino
    return openvino.Core()


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Hide the package that reports to OpenVINO's maker: its tools of conversion would load it, and not its runtime."""
    if _TELEMETRY in sys.modules:  # somebody else's choice
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
