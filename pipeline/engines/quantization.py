"""ONNX graphs in 8 bits: the ranges of activations on some images, and the graph that they give, the same anywhere.

Weights are quantised by channel, activations by fixed ranges (`onnxruntime.quantization`); inputs and outputs stay as
they are. https://arxiv.org/abs/2004.09602
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx

from pipeline.config import Calibration
from pipeline.engines.batch_size import Pixels
from pipeline.engines.onnx_runner import session
from pipeline.errors import EngineError

#: Quantised, by their names in ONNX; all others compute in single precision. Sums are among those: with `Add` in 8 bits
#: the residual branches of EfficientNet-Lite0 lose a tenth of the cosine.
OPERATORS = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip", "MaxPool", "AveragePool"),
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Pad", "Split", "Resize"),
)
#: Steps of the grid of ranges for each doubling: CPUs differ in the last bits of an activation, and not in its step.
STEPS = 16

Ranges = dict[str, tuple[float, float]]


def measure_ranges(graph: bytes, batches: Iterable[Pixels], *, threads: int) -> Ranges:
    """Return the range of each activation that is quantised over batches of uint8 (B, H, W, 3), zero in it.

    Raises `EngineError` where nothing in `graph` can be quantised.
    """
    model = _with_shapes(graph)
    names = _activations(model)
    if not names:
        raise EngineError("its graph has nothing to quantise; use --precision fp32")
    outputs = {output.name for output in model.graph.output}
    shown = [info for info in model.graph.value_info if info.name in names and info.name not in outputs]
    model.graph.output.extend(shown)
    watched = session(model.SerializeToString(), threads=threads)
    lows, highs = np.zeros(len(names)), np.zeros(len(names))
    for pixels in batches:
        found = watched.run(names, {"pixels": pixels})
        lows = np.minimum(lows, [float(values.min()) for values in found])
        highs = np.maximum(highs, [float(values.max()) for values in found])
    return {name: (-_outward(-low), _outward(high)) for name, low, high in zip(names, lows, highs, strict=True)}


def _outward(size: float) -> float:
    """Return the next step of the grid that is not below `size`."""
    return float(f"{2 ** (math.ceil(STEPS * math.log2(size)) / STEPS):.6g}") if size > 0 else 0.0


def quantized(graph: bytes, calibration: Calibration, layers: Sequence[str]) -> bytes:
    """Return the graph of `calibration.layers` in 8 bits, with the outputs of `layers` alone.

    Raises `EngineError` where the ranges are those of another graph.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = _with_shapes(graph)
    names = _activations(model)
    if set(names) != calibration.ranges.keys():
        raise EngineError("its graph is not the one whose ranges were measured; extract again with --force")
    pairs = {name: tuple(np.float32(end) for end in calibration.ranges[name]) for name in names}
    ranges = TensorsData(CalibrationMethod.MinMax, pairs)
    kinds = {"weight_qType": QuantType.QInt8, "activation_qType": QuantType.QUInt8}
    chosen = {"nodes_to_quantize": [], "nodes_to_exclude": [], "op_types_to_quantize": list(OPERATORS)}
    settings = {"per_channel": True, "reduce_range": False, "extra_options": {}, **kinds, **chosen}
    quantizer = QDQQuantizer(model, tensors_range=ranges, **settings)
    try:
        quantizer.quantize_model()
    except (ValueError, RuntimeError) as error:
        raise EngineError(f"its graph cannot be quantised: {str(error).splitlines()[0]}") from None
    made: Any = quantizer.model.model
    outputs = dict(zip(calibration.layers, made.graph.output, strict=True))
    kept = [outputs[layer] for layer in layers]
    del made.graph.output[:]
    made.graph.output.extend(kept)
    content: bytes = made.SerializeToString()
    return content


def _with_shapes(graph: bytes) -> Any:
    return onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))


def _activations(model: Any) -> list[str]:
    """List the tensors in single precision that go into or come out of what is quantised, in the graph's order."""
    infos = [*model.graph.value_info, *model.graph.output]
    floats = {info.name for info in infos if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    constants = {tensor.name for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in OPERATORS]
    names = [name for node in nodes for name in (*node.input, *node.output) if name in floats - constants]
    return list(dict.fromkeys(names))
