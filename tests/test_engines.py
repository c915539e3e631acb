"""Tests of the engines and the graphs they run: one contract, the same numbers, and what happens when things fail."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline import engines, graphs
from pipeline.bases import Base, feature_network, load_base
from pipeline.devices import CoreThreads
from pipeline.engines import OnnxEngine, TorchEngine, fastest_batch_size, in_halves, make_engine
from pipeline.errors import EngineError, PipelineError, SettingsError

#: A small member of each family of torchvision.
MEMBERS = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t"),
    *("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5"),
    *("squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_32"),
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for the test alone."""
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "onnx"


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("squeezenet1_1", "embedded")


def noise(base: Base, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (count, *base.transform.size, 3), dtype=np.uint8)


def largest_difference(given: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Relative to the largest value."""
    return float(np.abs(given - wanted).max() / np.abs(wanted).max())


# --- the contract


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
@pytest.mark.parametrize("count", [1, 2, 3, 13])
def test_any_number_of_images_in_order(base: Base, engine: str, count: int) -> None:
    running = make_engine(base, ["avgpool", "pool5"], engine=engine, device="cpu", batch_size=4)
    assert (running.name, running.device) == (engine, "cpu")
    assert running.shapes == [(512,), (512, 13, 13)]
    pixels = noise(base, count)
    pooled, maps = running(pixels)
    assert pooled.dtype == maps.dtype == np.float32
    assert pooled.shape == (count, 512)
    assert maps.shape == (count, 512, 13, 13)
    alone = np.concatenate([running(pixels[row : row + 1])[0] for row in range(count)])
    assert largest_difference(pooled, alone) < 1e-5
    assert running.seconds > 0


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_engines_agree(name: str) -> None:
    assert_engines_agree(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMBERS)
def test_engines_agree_for_every_family(name: str) -> None:
    assert_engines_agree(name)


def assert_engines_agree(name: str) -> None:
    base = load_base(name, "none")
    pixels = noise(base, 5)
    (given,) = make_engine(base, ["avgpool"], engine="onnxruntime", device="cpu")(pixels)
    (wanted,) = make_engine(base, ["avgpool"], engine="torch", device="cpu")(pixels)
    assert largest_difference(given, wanted) <= 1e-4


def test_auto_on_a_cpu_is_onnxruntime_and_shares_its_threads(base: Base) -> None:
    with CoreThreads(2) as threads:
        engine = make_engine(base, ["avgpool"], device="cpu", threads=threads)
        assert isinstance(engine, OnnxEngine)
        assert engine.batch_size == 64
        engine(noise(base, 8))
        assert {thread.name.partition("_")[0] for thread in threads._threads} == {"core"}


def test_torch_equals_the_network_it_runs(base: Base) -> None:
    pixels = noise(base, 3)
    with torch.no_grad():
        expected = base.module.features(base.transform.normalize(torch.from_numpy(pixels))).mean((2, 3))
    (given,) = make_engine(base, ["avgpool"], engine="torch", device="cpu")(pixels)
    assert largest_difference(given, expected.numpy()) <= 1e-6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_on_a_cpu_runs_in_torch(base: Base, precision: str) -> None:
    pixels = noise(base, 2)
    engine = make_engine(base, ["avgpool"], device="cpu", precision=precision)
    assert engine.name == "torch"
    (given,) = engine(pixels)
    (wanted,) = make_engine(base, ["avgpool"], engine="torch", device="cpu")(pixels)
    assert given.dtype == np.float32
    assert 0 < largest_difference(given, wanted) < 0.05


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"engine": "torhc"}, SettingsError, r"unknown engine 'torhc' \(did you mean 'torch'\?\)"),
        ({"precision": "fp8"}, SettingsError, "unknown precision 'fp8'"),
        ({"engine": "onnxruntime", "precision": "bf16"}, EngineError, "runs on the CPU in fp32, not on cpu in bf16"),
        ({"device": "cuda:7"}, EngineError, "no device 'cuda:7' here"),
    ],
)
def test_what_does_not_go_together(
    base: Base, options: dict[str, str], kind: type[PipelineError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        make_engine(base, ["avgpool"], **{"device": "cpu", **options})


def test_a_base_that_does_not_export_runs_in_torch_with_a_word(
    base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(graphs, "LARGEST_BYTES", 1000)
    assert make_engine(base, ["avgpool"], device="cpu").name == "torch"
    assert "squeezenet1_1 runs in torch, which is slower, since 0.0 GB of weights do not fit" in caplog.text
    with pytest.raises(EngineError, match=r"squeezenet1_1 cannot run in onnxruntime: .*; use --engine torch"):
        make_engine(base, ["avgpool"], device="cpu", engine="onnxruntime")


def test_an_operation_that_onnx_does_not_have(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    network = feature_network(base, ["avgpool"])
    monkeypatch.setattr(
        type(base.transform),
        "normalize",
        lambda self, pixels: torch.special.bessel_j0(pixels.permute(0, 3, 1, 2).float()),
    )
    with pytest.raises(EngineError, match="does not export to ONNX: ") as caught:
        graphs.export(network, base.transform)
    assert "\n" not in str(caught.value)


def test_a_graph_with_other_numbers_is_not_trusted(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    other = load_base("squeezenet1_1", "none")
    wrong = graphs.export(feature_network(other, ["avgpool"]), other.transform)
    monkeypatch.setattr(engines, "export", lambda *_: wrong)
    with pytest.raises(EngineError, match="gives other numbers than torch"):
        make_engine(base, ["avgpool"], engine="onnxruntime", device="cpu")


def test_export_says_nothing(tmp_path: Path) -> None:
    program = (
        "from pipeline.bases import load_base; from pipeline.engines import make_engine; "
        "print(make_engine(load_base('squeezenet1_1', 'embedded'), ['avgpool'], device='cpu').name)"
    )
    run = subprocess.run([sys.executable, "-W", "default", "-c", program], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("onnxruntime\n", "")


# --- the cache of graphs


def test_a_graph_is_exported_once(base: Base, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_engine(base, ["avgpool"], device="cpu")(noise(base, 2))[0]
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(engines, "export", lambda *_: pytest.fail("exported again"))
    second = make_engine(base, ["avgpool"], device="cpu")(noise(base, 2))[0]
    np.testing.assert_array_equal(first, second)


def test_every_part_of_the_recipe_has_its_own_graph(base: Base) -> None:
    random = load_base("squeezenet1_1", "none")
    keys = [
        graphs.graph_key(base, feature_network(base, ["avgpool"])),
        graphs.graph_key(base, feature_network(base, ["pool5"])),
        graphs.graph_key(base, feature_network(base, ["pool5"], "avg")),
        graphs.graph_key(base, feature_network(base, ["pool5", "avgpool"])),
        graphs.graph_key(random, feature_network(random, ["avgpool"])),
    ]
    assert len(set(keys)) == len(keys)
    assert graphs.graph_key(base, feature_network(base, ["avgpool"])) == keys[0]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_entry_is_made_again(base: Base, cache: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    before = make_engine(base, ["avgpool"], device="cpu")(noise(base, 2))[0]
    (entry,) = cache.iterdir()
    good = entry.read_bytes()
    flipped = good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
    entry.write_bytes({"flip": flipped, "cut": good[:1000], "empty": b""}[damage])
    after = make_engine(base, ["avgpool"], device="cpu")(noise(base, 2))[0]
    assert "is damaged; it is made again" in caplog.text
    np.testing.assert_array_equal(before, after)
    assert entry.read_bytes() == good


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO):
        assert make_engine(base, ["avgpool"], device="cpu").name == "onnxruntime"
    assert "the graph is not kept" in caplog.text


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIPELINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert graphs.cache_folder() == Path("/somewhere/cached-feature-pipeline")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert graphs.cache_folder() == Path.home() / ".cache" / "cached-feature-pipeline"


def test_the_cache_forgets_what_was_used_longest_ago(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "KEPT_BYTES", 250)
    for age, key in ((300, "old"), (200, "middle")):
        graphs.keep_cached(key, bytes(68))
        entry = cache / f"{key}.onnx"
        entry.touch()
        __import__("os").utime(entry, (entry.stat().st_mtime - age,) * 2)
    assert graphs.read_cached("old") == bytes(68)  # used just now
    graphs.keep_cached("new", bytes(68))
    assert {entry.stem for entry in cache.iterdir()} == {"old", "new"}
    monkeypatch.setattr(graphs, "KEPT_BYTES", 1)
    graphs.keep_cached("last", bytes(68))
    assert {entry.stem for entry in cache.iterdir()} == {"last"}


# --- memory


class Memory:
    """A device on which at most `room` images fit."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.ran: list[int] = []

    def __call__(self, pixels: NDArray[np.uint8]) -> list[torch.Tensor]:
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.ran.append(len(pixels))
        return [torch.from_numpy(pixels.astype(np.float32))]

    def trial(self, count: int) -> None:
        self(np.zeros(count, np.uint8))


@pytest.mark.parametrize(("room", "fits"), [(100, 64), (40, 32), (7, 4), (1, 1)])
def test_a_batch_that_does_not_fit_is_halved_and_stays_so(
    room: int, fits: int, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.arange(100, dtype=np.uint8)
    memory = Memory(room)
    size, parts = in_halves(memory, pixels, 64)
    assert size == fits
    np.testing.assert_array_equal(torch.cat([part[0] for part in parts]).numpy(), pixels)
    assert max(memory.ran) == fits
    assert (f"going on with batches of {fits}" in caplog.text) == (fits < 64)


def test_a_torch_engine_remembers_what_fitted(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(base, ["avgpool"], engine="torch", device="cpu", batch_size=8)
    assert isinstance(engine, TorchEngine)
    whole = engine(noise(base, 8))[0]
    forward = engine._forward

    def small(pixels: NDArray[np.uint8]) -> list[torch.Tensor]:
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return forward(pixels)

    monkeypatch.setattr(engine, "_forward", small)
    assert largest_difference(engine(noise(base, 8))[0], whole) < 1e-5
    assert engine.batch_size == 2


def test_one_image_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(EngineError, match="one image alone does not fit into the device's memory"):
        in_halves(Memory(0), np.zeros(4, np.uint8), 4)
    with pytest.raises(EngineError, match="one image alone does not fit"):
        fastest_batch_size(Memory(0).trial)


@pytest.mark.parametrize(("room", "expected"), [(1000, 64), (50, 32), (8, 8), (3, 2), (1, 1)])
def test_batch_size_is_doubled_while_it_pays(monkeypatch: pytest.MonkeyPatch, room: int, expected: int) -> None:
    clock = [0.0]
    monkeypatch.setattr(engines.time, "perf_counter", lambda: clock[0])
    memory = Memory(room)

    def trial(count: int) -> None:
        memory.trial(count)
        clock[0] += 1.0 + max(0, count - 64) / 60  # a fixed cost up to 64 images

    assert fastest_batch_size(trial) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 2e-2), ("bf16", 5e-2)])
def test_cuda_agrees_with_the_cpu(base: Base, precision: str, tolerance: float) -> None:
    pixels = noise(base, 9)
    engine = make_engine(base, ["avgpool"], device="cuda", precision=precision)
    (given,) = engine(pixels)
    (wanted,) = make_engine(base, ["avgpool"], engine="torch", device="cpu")(pixels)
    assert largest_difference(given, wanted) <= tolerance
    np.testing.assert_array_equal(given, engine(pixels)[0])
    assert engine.batch_size >= 8
