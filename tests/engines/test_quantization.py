"""Graphs in 8 bits: ranges that do not depend on the machine, and the same graph from them anywhere."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from cheap import recipe_for
from networks import noise

from pipeline.bases import Base
from pipeline.config import Calibration
from pipeline.engines import graph_of, quantization
from pipeline.engines.onnx_runner import run, session
from pipeline.errors import EngineError


@pytest.fixture(scope="module")
def graph(base: Base, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PIPELINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return graph_of(base, recipe_for(base, layers=("avgpool", "pool5")))


@pytest.fixture(scope="module")
def calibration(base: Base, graph: bytes) -> Calibration:
    ranges = quantization.measure_ranges(graph, [noise(base, 2)], threads=1)
    return Calibration(images=2, layers=("avgpool", "pool5"), ranges=ranges)


def test_ranges_hold_zero_and_do_not_depend_on_last_bits(base: Base, graph: bytes, calibration: Calibration) -> None:
    pixels = noise(base, 2)
    apart = quantization.measure_ranges(graph, [pixels[:1], pixels[1:]], threads=1)
    assert apart == calibration.ranges
    assert all(low <= 0 <= high and low < high for low, high in apart.values())
    for size in (1e-3, 0.7, 1.0, 123.4):
        step = quantization._outward(size)
        assert size <= step * (1 + 1e-5)
        assert step < size * 2 ** (1.1 / quantization.STEPS)
    assert quantization._outward(0.0) == 0.0
    assert quantization._outward(5.0) == quantization._outward(math.nextafter(5.0, 6))


def test_the_graph_is_the_same_each_time_and_smaller(base: Base, graph: bytes, calibration: Calibration) -> None:
    again = Calibration.model_validate_json(calibration.model_dump_json())
    made = quantization.quantized(graph, calibration, ("avgpool", "pool5"))
    assert made == quantization.quantized(graph, again, ("avgpool", "pool5"))
    assert len(made) < 0.4 * len(graph)
    pixels = noise(base, 2)
    for given, wanted in zip(
        run(session(made, threads=1), pixels), run(session(graph, threads=1), pixels), strict=True
    ):
        flat, plain = given.ravel(), wanted.ravel()
        assert flat @ plain / np.linalg.norm(flat) / np.linalg.norm(plain) > 0.99


def test_fewer_layers_are_those_of_the_same_graph(base: Base, graph: bytes, calibration: Calibration) -> None:
    pixels = noise(base, 2)
    both = run(session(quantization.quantized(graph, calibration, ("avgpool", "pool5")), threads=1), pixels)
    (alone,) = run(session(quantization.quantized(graph, calibration, ("pool5",)), threads=1), pixels)
    np.testing.assert_array_equal(alone, both[1])


def test_ranges_of_another_graph_are_refused(graph: bytes, calibration: Calibration) -> None:
    name, *rest = calibration.ranges
    other = calibration.model_copy(update={"ranges": {one: calibration.ranges[one] for one in rest}})
    with pytest.raises(EngineError, match="not the one whose ranges were measured; extract again with --force"):
        quantization.quantized(graph, other, ("avgpool", "pool5"))
    assert name not in other.ranges


def test_a_graph_without_anything_to_quantise_is_refused() -> None:
    pixels = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["batch", 4, 4, 3])
    layer = onnx.helper.make_tensor_value_info("layer0", onnx.TensorProto.FLOAT, ["batch", 4, 4, 3])
    node = onnx.helper.make_node("Cast", ["pixels"], ["layer0"], to=onnx.TensorProto.FLOAT)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "cast", [pixels], [layer]))
    with pytest.raises(EngineError, match="nothing to quantise"):
        quantization.measure_ranges(model.SerializeToString(), [], threads=1)
