"""The input transform as an ONNX graph: any uint8 image to the pixels that a base sees, rounded as Pillow rounds.

Pillow resizes in two passes, each of which weighs bytes in fixed point and rounds to a byte. A pass is a product with
a matrix of whole numbers here, and so exact. ONNX's own Resize rounds otherwise. Which pass comes first is a matter of
the sides; older releases of Pillow begin with the columns always, and so differ by one in a few bytes of tall images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import EngineError
from pipeline.images.transform import InputTransform

OPSET = 18
#: How far the kernels reach that are written here, in pixels.
REACH = {"bilinear": 1.0, "bicubic": 2.0}
#: Pillow's fixed point has 22 bits.
ONE = 2.0**22


class Nodes:
    """The nodes of a graph that is being written: a call adds one, and returns the name of what it gives."""

    def __init__(self, scope: str = "resize") -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._scope = scope

    def __call__(self, operator: str, *inputs: Any, **attributes: Any) -> str:
        """Add a node; inputs that are no names are constants: numbers are doubles, arrays keep their type."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        name = f"{self._scope}/{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [name], name=name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        """Add an array, or a number as a double."""
        array = value if isinstance(value, np.ndarray) else np.array(value, dtype=np.float64)
        name = f"{self._scope}/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name


def preprocess_graph(transform: InputTransform) -> onnx.ModelProto:
    """Write the graph from ``image`` uint8 (H, W, 3), any H and W, to ``pixels`` uint8 (1, height, width, 3).

    Raises `EngineError` for a kind of interpolation that is not written here.
    """
    if transform.interpolation not in REACH:
        raise EngineError(
            f"interpolation {transform.interpolation!r} cannot be exported, {' and '.join(REACH)} can; "
            "export with --input pixels, which leaves resizing to the caller"
        )
    node = Nodes()
    sides = node("Cast", node("Shape", "image"), to=TensorProto.DOUBLE)
    height, width = (node("Gather", sides, np.array(axis)) for axis in (0, 1))
    to_height, to_width = _resized(node, height, width, transform)
    rows, inside_rows = _weights(node, height, to_height, transform.crop[0], transform.interpolation)
    columns, inside_columns = _weights(node, width, to_width, transform.crop[1], transform.interpolation)
    taller = node("Sub", height, to_height)
    rows_first = node("Greater", taller, node("Mul", node("Sub", width, to_width), 2.0))
    rows_first = node("And", rows_first, node("Greater", taller, 0.0))
    columns_only = _passes("columns first", "image", ("columns", columns), ("rows", rows))
    rows_only = _passes("rows first", "image", ("rows", rows), ("columns", columns))
    image = node("If", rows_first, then_branch=rows_only, else_branch=columns_only)  # (height, width, 3)
    fill = [round(255 * mean) if transform.fit == "longest" else 0 for mean in transform.mean]
    inside = node("And", inside_rows, node("Transpose", inside_columns, perm=[1, 0]))
    inside = node("Unsqueeze", inside, np.array([2]))
    image = node("Where", inside, image, np.array(fill, dtype=np.uint8))
    node.nodes.append(helper.make_node("Unsqueeze", [image, node.constant(np.array([0]))], ["pixels"]))
    graph = helper.make_graph(
        node.nodes,
        "preprocess",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", 3])],
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, *transform.crop, 3])],
        initializer=node.constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def _passes(name: str, image: str, *passes: tuple[str, str]) -> onnx.GraphProto:
    """Write a branch that weighs an image (H, W, 3) along one axis after the other, in the order given."""
    node = Nodes(name)
    for axis, weights in passes:
        last = [1, 2, 0] if axis == "rows" else [0, 2, 1]
        back = [2, 0, 1] if axis == "rows" else [0, 2, 1]
        image = node("Transpose", _weighed(node, node("Transpose", image, perm=last), weights), perm=back)
    output = helper.make_tensor_value_info(image, TensorProto.UINT8, None)
    return helper.make_graph(node.nodes, name, [], [output], initializer=node.constants)


def _weighed(node: Nodes, image: str, weights: str) -> str:
    """Weigh the last axis of bytes (., ., S) by whole numbers (K, S) of 23 bits and a sign: bytes (., ., K).

    The weights are taken apart into bytes, so that the products are those of integers, and exact. Their highest byte is
    at most 64, with which no sum of two products overflows where a CPU adds them in 16 bits.
    """
    weights = node("Transpose", weights, perm=[1, 0])
    high = node("Floor", node("Div", weights, 65536.0))
    rest = node("Sub", weights, node("Mul", high, 65536.0))
    middle = node("Floor", node("Div", rest, 256.0))
    low = node("Sub", rest, node("Mul", middle, 256.0))
    sums = node.constant(ONE / 2)
    for part, kind, unit in (
        (high, TensorProto.INT8, 65536.0),
        (middle, TensorProto.UINT8, 256.0),
        (low, TensorProto.UINT8, 1.0),
    ):
        product = node("MatMulInteger", image, node("Cast", part, to=kind))
        sums = node("Add", sums, node("Mul", node("Cast", product, to=TensorProto.DOUBLE), unit))
    whole = node("Min", node("Max", node("Floor", node("Div", sums, ONE)), 0.0), 255.0)
    return node("Cast", whole, to=TensorProto.UINT8)


def _resized(node: Nodes, height: str, width: str, transform: InputTransform) -> tuple[Any, Any]:
    """Return (height, width) after resizing, as `InputTransform._resized` computes them."""
    to_height, to_width = (float(side) for side in transform.resize)
    if transform.fit == "stretch":
        return node.constant(to_height), node.constant(to_width)
    if transform.fit == "shortest" and to_height == to_width:
        short, long = node("Min", height, width), node("Max", height, width)
        overhang = node("Floor", node("Div", node("Mul", long, to_width), short))
        upright = node("LessOrEqual", width, height)
        return node("Where", upright, overhang, to_height), node("Where", upright, to_width, overhang)
    choose = "Min" if transform.fit == "shortest" else "Max"
    ratio = node(choose, node("Div", height, to_height), node("Div", width, to_width))
    high, wide = (node("Max", 1.0, node("Round", node("Div", side, ratio))) for side in (height, width))
    return high, wide


def _weights(node: Nodes, source: str, resized: str, kept: int, interpolation: str) -> tuple[str, str]:
    """Return what the `kept` middle pixels of a resized side are made of, and which of them are not padding.

    The weights (kept, source) are whole numbers that sum to about `ONE`, as doubles; the mask is (kept, 1).
    """
    larger = node("Max", resized, float(kept))
    start = node("Round", node("Div", node("Sub", larger, float(kept)), 2.0))
    padded = node("Floor", node("Div", node("Sub", larger, resized), 2.0))
    index = node("Add", np.arange(kept, dtype=np.float64)[:, None], node("Sub", start, padded))
    inside = node("And", node("GreaterOrEqual", index, 0.0), node("Less", index, resized))
    scale = node("Div", source, resized)
    stretch = node("Max", scale, 1.0)
    reach = node("Mul", stretch, REACH[interpolation])
    centre = node("Mul", node("Add", index, 0.5), scale)
    first = node("Max", node("Floor", node("Add", node("Sub", centre, reach), 0.5)), 0.0)
    last = node("Min", node("Floor", node("Add", node("Add", centre, reach), 0.5)), source)
    place = node("Unsqueeze", node("Range", 0.0, source, 1.0), np.array([0]))
    distance = node("Mul", node("Add", node("Sub", place, centre), 0.5), node("Reciprocal", stretch))
    weight = _kernel(node, node("Abs", distance), interpolation)
    among = node("And", node("GreaterOrEqual", place, first), node("Less", place, last))
    weight = node("Where", among, weight, 0.0)
    total = node("ReduceSum", weight, np.array([1]), keepdims=1)
    weight = node("Mul", weight, node("Where", inside, node("Reciprocal", total), 0.0))
    size = node("Floor", node("Add", node("Mul", node("Abs", weight), ONE), 0.5))
    return node("Mul", node("Sign", weight), size), inside


def _kernel(node: Nodes, distance: str, interpolation: str) -> str:
    """Return the weights at `distance` >= 0, computed in the order in which Pillow does."""
    near = node("Less", distance, 1.0)
    if interpolation == "bilinear":
        return node("Where", near, node("Sub", 1.0, distance), 0.0)
    a = -0.5
    inner = node("Sub", node("Mul", distance, a + 2.0), a + 3.0)
    inner = node("Add", node("Mul", node("Mul", inner, distance), distance), 1.0)
    outer = node("Add", node("Mul", node("Sub", distance, 5.0), distance), 8.0)
    outer = node("Mul", node("Sub", node("Mul", outer, distance), 4.0), a)
    return node("Where", near, inner, node("Where", node("Less", distance, 2.0), outer, 0.0))
