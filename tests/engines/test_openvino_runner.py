"""OpenVINO runs the graph that ONNX Runtime runs, in less than single precision where the CPU can, and tells nobody."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cheap import recipe_for
from networks import engine_of, largest_difference, noise

from pipeline.bases import Base
from pipeline.config import EngineSettings
from pipeline.devices import CoreThreads
from pipeline.engines import make_engine, openvino_runner
from pipeline.errors import EngineError

pytestmark = pytest.mark.usefixtures("own_cache")

needs_bf16 = pytest.mark.skipif(not openvino_runner.computes_bf16(), reason="needs a CPU with bf16")


def test_the_same_graph_is_run_without_the_base(base: Base, own_cache: Path) -> None:
    pixels = noise(base, 5)
    (wanted,) = engine_of(base, engine="onnxruntime", batch_size=2)(pixels)
    settings = EngineSettings.of({"device": "cpu", "engine": "openvino", "batch_size": 2})
    running = make_engine(_refused, recipe_for(base, layers=("avgpool",)), settings, CoreThreads(2))
    assert running.name == "openvino"
    assert running.shapes == [(512,)]
    (given,) = running(pixels)
    assert largest_difference(given, wanted) < 1e-5
    assert len(list(own_cache.iterdir())) == 1


def _refused() -> Base:
    pytest.fail("the base is loaded though its graph is at hand")


def test_answers_are_arrays_of_their_own(base: Base) -> None:
    running = engine_of(base, engine="openvino", batch_size=4)
    first = running(noise(base, 4))[0]
    kept = first.copy()
    running(np.zeros_like(noise(base, 4)))
    np.testing.assert_array_equal(first, kept)


@needs_bf16
def test_bf16_is_openvino_where_the_cpu_has_it(base: Base) -> None:
    pixels = noise(base, 3)
    (wanted,) = engine_of(base, engine="onnxruntime")(pixels)
    for engine in ("auto", "openvino"):
        running = engine_of(base, engine=engine, precision="bf16")
        assert running.name == "openvino"
        (given,) = running(pixels)
        assert given.dtype == np.float32
        assert 1e-4 < largest_difference(given, wanted) < 0.05


def test_a_cpu_without_bf16_says_that_it_is_slower(
    base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openvino_runner, "computes_bf16", lambda: False)
    monkeypatch.setattr("pipeline.engines.computes", lambda precision: False)
    with caplog.at_level(logging.WARNING):
        assert engine_of(base, precision="bf16", batch_size=1).name == "torch"
    assert "bf16 is slower than fp32 on this CPU" in caplog.text
    with pytest.raises(EngineError, match="no instructions for bf16, without which it is slower than fp32; use fp32"):
        engine_of(base, engine="openvino", precision="bf16")


def test_without_openvino_the_others_run(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runner, "is_installed", lambda: False)
    assert engine_of(base, batch_size=1).name == "onnxruntime"
    assert engine_of(base, precision="bf16", batch_size=1).name == "torch"
    with pytest.raises(EngineError, match=r"not installed; install it with pip install '.*\[openvino\]'"):
        engine_of(base, engine="openvino")


def test_a_graph_that_is_none_is_refused_in_one_line() -> None:
    with pytest.raises(EngineError, match=r"^openvino refuses its graph: Unable to read the model\.[^\n]*$"):
        openvino_runner.OpenvinoRunner(b"no graph", cores=1)


#: Extracts with OpenVINO, and fails where anything but the computer itself is asked for.
WATCHED = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print("asked", event, arguments, file=sys.stderr)
sys.addaudithook(watch)
import pipeline
result = pipeline.extract(sys.argv[1], sys.argv[2], base="squeezenet1_1", weights="embedded", engine="openvino")
reporters = [name for name in sys.modules if "openvino_telemetry" in name]
print(result.engine, "openvino.tools.ovc" in sys.modules, reporters)
"""


def test_a_run_reports_nothing_to_anybody(photo_folder: Path, tmp_path: Path) -> None:
    """Its package of telemetry, which comes with it, is not so much as imported."""
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(photo_folder), str(tmp_path / "f.h5")],
        env={**os.environ, "HOME": str(home), "PIPELINE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "openvino True []\n"
    assert "asked" not in done.stderr
    assert not (home / "intel").exists()


def test_a_process_has_one_core() -> None:
    """Several that were made and gone left its memory damaged."""
    assert openvino_runner._core() is openvino_runner._core()


#: Runs a graph on two threads at once, which are the first to do so.
AT_ONCE = """
import sys, threading
import numpy as np
from pipeline.engines.openvino_runner import OpenvinoRunner
runner = OpenvinoRunner(open(sys.argv[1], "rb").read(), cores=2)
sys.setswitchinterval(1e-6)
start = threading.Barrier(2)
def work():
    start.wait()
    runner.on_one_core(np.zeros((1, 8, 8, 3), np.uint8))
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_the_first_two_threads_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """OpenVINO's own first look at NumPy is not made for two threads: they did, one time in a few."""
    pixels = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["batch", 8, 8, 3])
    layer = onnx.helper.make_tensor_value_info("layer0", onnx.TensorProto.FLOAT, ["batch", 8, 8, 3])
    node = onnx.helper.make_node("Cast", ["pixels"], ["layer0"], to=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph([node], "cast", [pixels], [layer])
    opset = onnx.helper.make_opsetid("", 18)
    file = tmp_path / "cast.onnx"
    file.write_bytes(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())
    subprocess.run([sys.executable, "-c", AT_ONCE, str(file)], timeout=60, check=True)
