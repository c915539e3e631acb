"""onnxruntime runs a graph that was compared with torch, and torch runs what it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import engine_of, noise

from pipeline.bases import Base, feature_network, load_base
from pipeline.engines import onnx_graph, onnx_runner
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
    monkeypatch.setattr(onnx_runner, "export", lambda *_: wrong)
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
    monkeypatch.setattr(onnx_runner, "export", lambda *_: pytest.fail("exported again"))
    second = engine_of(base, batch_size=2)(noise(base, 2))[0]
    np.testing.assert_array_equal(first, second)


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
