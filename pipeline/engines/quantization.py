"""ONNX graphs in 8 bits: the ranges of activations on some images, and the graph that they give, the same anywhere.

What goes into a convolution or a matrix product is quantised: weights by channel, symmetric, activations by fixed
ranges. Its sums, and all else, stay in single precision: with sums of branches in 8 bits EfficientNet-Lite0 loses a
tenth of the cosine. https://arxiv.org/abs/2004.09602
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.config import Calibration
from pipeline.engines.batch_size import Pixels
from pipeline.engines.onnx_runner import session
from pipeline.errors import EngineError

#: Computed in 8 bits, by their names in ONNX.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: They move numbers and make none: in 8 bits where what comes after them is.
MOVING = ("Concat", "Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
#: Steps of the grid of ranges for each doubling: CPUs differ in the last bits of an activation, and not in its step.
STEPS = 16

Ranges = dict[str, tuple[float, float]]


def measure_ranges(graph: bytes, batches: Iterable[Pixels], *, threads: int) -> Ranges:
    """Return the range of each activation that is quantised over batches of uint8 (B, H, W, 3), zero in it.

    Raises `EngineError` where nothing in `graph` can be quantised.
    """
    model = onnx.load_from_string(graph)
    names = _activations(model.graph)
    if not names:
        raise EngineError("its graph has nothing to quantise; use --precision fp32")
    ends = [f"{name} {which}" for which in ("ReduceMin", "ReduceMax") for name in names]
    for end in ends:  # in the graph, as the activations themselves would be gigabytes
        name, which = end.rsplit(" ", 1)
        model.graph.node.append(helper.make_node(which, [name], [end], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(end, TensorProto.FLOAT, []))
    watched = session(model.SerializeToString(), threads=threads)
    found = np.array([watched.run(ends, {"pixels": pixels}) for pixels in batches], float).reshape(-1, 2, len(names))
    lows, highs = np.minimum(found[:, 0].min(axis=0), 0), np.maximum(found[:, 1].max(axis=0), 0)
    return {name: (-_outward(-low), _outward(high)) for name, low, high in zip(names, lows, highs, strict=True)}


def _outward(size: float) -> float:
    """Return the next step of the grid that is not below `size`."""
    return float(f"{2 ** (math.ceil(STEPS * math.log2(size)) / STEPS):.6g}") if size > 0 else 0.0


def quantized(graph: bytes, calibration: Calibration, layers: Sequence[str]) -> bytes:
    """Return the graph of `calibration.layers` in 8 bits, with the outputs of `layers` alone.

    Raises `EngineError` where the ranges are those of another graph.
    """
    model = onnx.load_from_string(graph)
    if set(_activations(model.graph)) != calibration.ranges.keys():
        raise EngineError("its graph is not the one whose ranges were measured; extract again with --force")
    outputs = dict(zip(calibration.layers, model.graph.output, strict=True))
    kept = [outputs[layer] for layer in layers]
    nodes = _Quantizer(model.graph, calibration.ranges).nodes()
    constants = [tensor for tensor in model.graph.initializer if any(tensor.name in node.input for node in nodes)]
    for place, content in (
        (model.graph.node, nodes),
        (model.graph.initializer, constants),
        (model.graph.output, kept),
        (model.graph.value_info, []),
    ):
        del place[:]
        place.extend(content)
    made: bytes = model.SerializeToString()
    return made


class _Quantizer:
    """A graph's nodes, with pairs of QuantizeLinear and DequantizeLinear where numbers pass in 8 bits."""

    def __init__(self, graph: Any, ranges: Ranges) -> None:
        self._graph = graph
        self._ranges = ranges
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._instead: dict[str, str] = {}
        self._nodes: list[Any] = []

    def nodes(self) -> list[Any]:
        """List the nodes in order, and add their constants to the graph."""
        for node in self._graph.node:
            if node.op_type in WEIGHTED:
                for place in _operands(node):
                    if node.input[place] in self._weights:
                        node.input[place] = self._weight(node, node.input[place])
            node.input[:] = [self._instead.get(name, name) for name in node.input]
            self._nodes.append(node)
            for name in set(node.output) & self._ranges.keys():
                self._instead[name] = self._activation(name)
        return self._nodes

    def _activation(self, name: str) -> str:
        low, high = self._ranges[name]
        scale = np.float32((high - low) / 255 or 1)
        grid = [self._constant(f"{name}_scale", scale), self._constant(f"{name}_zero", np.uint8(round(-low / scale)))]
        self._nodes.append(helper.make_node("QuantizeLinear", [name, *grid], [f"{name}_8bit"]))
        self._nodes.append(helper.make_node("DequantizeLinear", [f"{name}_8bit", *grid], [f"{name}_rounded"]))
        return f"{name}_rounded"

    def _weight(self, node: Any, name: str) -> str:
        """Return the name of the weights `name` in 8 bits, rounded once for all nodes that share them."""
        axis = _channel_axis(node, len(self._weights[name].dims))
        rounded = f"{name}_rounded{axis}"
        if rounded not in self._instead.values():
            values = numpy_helper.to_array(self._weights[name]).astype(np.float32)
            others = tuple(other for other in range(values.ndim) if other != axis)
            scale = np.abs(values).max(axis=others, keepdims=True) / np.float32(127)
            scale[scale == 0] = 1
            whole = self._constant(f"{rounded}_8bit", np.rint(values / scale).astype(np.int8))
            scales = self._constant(f"{rounded}_scale", scale.ravel())
            zeros = self._constant(f"{rounded}_zero", np.zeros(scale.size, np.int8))
            self._nodes.append(helper.make_node("DequantizeLinear", [whole, scales, zeros], [rounded], axis=axis))
            self._instead[f"{name} {axis}"] = rounded
        return rounded

    def _constant(self, name: str, values: Any) -> str:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name


def _operands(node: Any) -> range:
    """Return the places of the two factors of a convolution or product; a third input is added to it."""
    return range(min(2, len(node.input)))


def _channel_axis(node: Any, dimensions: int) -> int:
    """Return the axis of the output's channels in the weights of `node`."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    if node.op_type == "MatMul":
        return dimensions - 1
    return 1 if node.op_type == "ConvTranspose" or (node.op_type == "Gemm" and not transposed) else 0


def _activations(graph: Any) -> list[str]:
    """List the tensors that are quantised, in the graph's order: factors, and what they are moved from."""
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    wanted: set[str] = set()
    waiting = [node.input[place] for node in graph.node if node.op_type in WEIGHTED for place in _operands(node)]
    while waiting:
        name = waiting.pop()
        maker = makers.get(name)
        if maker is None or name in wanted or name in constants or maker.op_type == "Constant":
            continue
        wanted.add(name)
        if maker.op_type in MOVING:
            waiting += maker.input if maker.op_type == "Concat" else maker.input[:1]
    return [name for node in graph.node for name in node.output if name in wanted]
