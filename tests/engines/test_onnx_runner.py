"""onnxruntime runs a graph that was compared with torch, and torch runs what it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cheap import recipe_for
from networks import engine_of, noise
from onnx import TensorProto, helper

from pipeline.bases import Base, feature_network, load_base
from pipeline.config import EngineSettings
from pipeline.devices import CoreThreads
from pipeline.engines import make_engine, onnx_graph, onnx_runner
from pipeline.errors import EngineError

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_base_that_does_not_export_runs_in_torch_with_a_word(
    base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnx_graph, "LARGEST_BYTES", 1000)
    assert engine_of(base).name == "torch"
    assert "squeezenet1_1 runs in torch, which is slower, since 0.0 GB of weights do not fit" in caplog.text
    with pytest.raises(EngineError, match=r"squeezenet1_1 cannot run in onnxruntime: .*; use --engine torch"):
        engine_of(base, engine="onnxruntime")


def test_a_graph_with_other_numbers_is_not_trusted(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    other = load_base("squeezenet1_1", "none")
    wrong = onnx_graph.export(feature_network(other, ["avgpool"]), other.transform)
    monkeypatch.setattr(onnx_graph, "export", lambda *_: wrong)
    with pytest.raises(EngineError, match="gives other numbers than torch"):
        engine_of(base, engine="onnxruntime")


def test_export_says_nothing(tmp_path: Path) -> None:
    program = (
        "from pipeline.feature_extractor import FeatureExtractor; "
        "FeatureExtractor('squeezenet1_1', weights='embedded', engine='onnxruntime').fit(['any.jpg']); print('done')"
    )
    run = subprocess.run([sys.executable, "-W", "default", "-c", program], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("done\n", "")


def test_a_graph_is_exported_once(base: Base, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = engine_of(base, batch_size=2)(noise(base, 2))[0]  # where it is measured, numbers may differ in a last bit
    assert len(list(own_cache.iterdir())) == 1
    monkeypatch.setattr(onnx_graph, "export", lambda *_: pytest.fail("exported again"))
    second = engine_of(base, batch_size=2)(noise(base, 2))[0]
    np.testing.assert_array_equal(first, second)


def test_where_the_graph_is_at_hand_the_base_is_not_loaded(base: Base) -> None:
    recipe, threads = recipe_for(base, layers=("avgpool", "pool5")), CoreThreads(2)
    settings = EngineSettings.of({"device": "cpu", "batch_size": 2})
    loaded: list[Base] = []

    def load() -> Base:
        loaded.append(base)
        return base

    first, second = (make_engine(load, recipe, settings, threads) for _ in range(2))
    assert loaded == [base]
    assert first.shapes == second.shapes == [(512,), (512, 13, 13)]
    for layer, again in zip(first(noise(base, 3)), second(noise(base, 3)), strict=True):
        np.testing.assert_array_equal(layer, again)
    for other in ({"engine": "torch"}, {"compile": True}):
        with pytest.raises(Asked):
            make_engine(refuse, recipe, settings.model_copy(update=other), threads)
    with pytest.raises(Asked):
        make_engine(refuse, recipe.model_copy(update={"precision": "fp16"}), settings, threads)


class Asked(Exception):
    """The base was asked for."""


def refuse() -> Base:
    raise Asked


def test_shapes_that_tracing_left_open_are_those_of_an_image() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["pixels"], ["sides"]),
            helper.make_node("Reshape", ["pixels", "sides"], ["layer0"]),
        ],
        "open",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 4, 5, 3])],
        [helper.make_tensor_value_info("layer0", TensorProto.UINT8, ["batch", "a", "b", "c"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    assert onnx_runner.OnnxRunner(model.SerializeToString(), cores=1).shapes == [(4, 5, 3)]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_entry_is_made_again(
    base: Base, own_cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = engine_of(base, batch_size=2)(noise(base, 2))[0]  # measured sizes may differ, and so may last bits
    (entry,) = own_cache.iterdir()
    good = entry.read_bytes()
    flipped = good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
    entry.write_bytes({"flip": flipped, "cut": good[:1000], "empty": b""}[damage])
    after = engine_of(base, batch_size=2)(noise(base, 2))[0]
    assert "is damaged; it is made again" in caplog.text
    np.testing.assert_array_equal(before, after)
    assert entry.read_bytes() == good
