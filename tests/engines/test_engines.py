"""Tests of the engines and the graphs they run: one contract, the same numbers, and what happens when things fail."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cheap import recipe_for
from numpy.typing import NDArray

from pipeline import engines
from pipeline.bases import Base, feature_network, load_base
from pipeline.config import EngineSettings
from pipeline.devices import CoreThreads
from pipeline.engines import CpuEngine, Engine, GpuEngine, cache, make_engine, onnx_graph, onnx_runner
from pipeline.engines.batch_size import Size
from pipeline.engines.cache import keep_size, read_size
from pipeline.engines.torch_runner import CompiledRunner, TorchRunner
from pipeline.errors import EngineError, PipelineError, SettingsError

#: A small member of each family of torchvision.
MEMBERS = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t"),
    *("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5"),
    *("squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_32"),
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for the test alone."""
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "onnx"


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("squeezenet1_1", "embedded")


def noise(base: Base, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (count, *base.transform.size, 3), dtype=np.uint8)


def engine_of(
    base: Base,
    *layers: str,
    precision: str = "fp32",
    threads: CoreThreads | None = None,
    device: str = "cpu",
    **options: Any,
) -> Engine:
    recipe = recipe_for(base, layers=layers or ("avgpool",), precision=precision)
    return make_engine(base, recipe, EngineSettings.of({"device": device, **options}), threads or CoreThreads())


def largest_difference(given: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Relative to the largest value."""
    return float(np.abs(given - wanted).max() / np.abs(wanted).max())


# --- the contract


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
@pytest.mark.parametrize("count", [1, 2, 3, 13])
def test_any_number_of_images_in_order(base: Base, engine: str, count: int) -> None:
    running = engine_of(base, "avgpool", "pool5", engine=engine, batch_size=4)
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
    (given,) = engine_of(base, engine="onnxruntime")(pixels)
    (wanted,) = engine_of(base, engine="torch")(pixels)
    assert largest_difference(given, wanted) <= 1e-4


def test_auto_on_a_cpu_is_onnxruntime_and_shares_its_threads(base: Base) -> None:
    with CoreThreads(2) as threads:
        engine = engine_of(base, threads=threads)
        assert isinstance(engine, CpuEngine)
        assert engine.name == "onnxruntime"
        assert engine.batch_size == 64
        engine(noise(base, 8))
        assert {thread.name.partition("_")[0] for thread in threads._threads} == {"core"}


def test_torch_equals_the_network_it_runs(base: Base) -> None:
    pixels = noise(base, 3)
    with torch.no_grad():
        expected = base.module.features(base.transform.normalize(torch.from_numpy(pixels))).mean((2, 3))
    (given,) = engine_of(base, engine="torch")(pixels)
    assert largest_difference(given, expected.numpy()) <= 1e-6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_on_a_cpu_runs_in_torch(base: Base, precision: str) -> None:
    pixels = noise(base, 2)
    engine = engine_of(base, precision=precision)
    assert engine.name == "torch"
    (given,) = engine(pixels)
    (wanted,) = engine_of(base, engine="torch")(pixels)
    assert given.dtype == np.float32
    assert 0 < largest_difference(given, wanted) < 0.05


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"engine": "torhc"}, SettingsError, "engine='torhc': give auto or torch or onnxruntime"),
        ({"precision": "fp8"}, SettingsError, "precision='fp8': give fp32 or bf16 or fp16"),
        ({"engine": "onnxruntime", "precision": "bf16"}, EngineError, "runs on the CPU in fp32, not on cpu in bf16"),
        ({"compile": True}, EngineError, "--compile is for a GPU; leave it out"),
        ({"memory": 0.0}, SettingsError, "memory=0.0: give auto, or a finite number, above 0 and"),
        ({"device": "cuda:7"}, EngineError, "no device 'cuda:7' here"),
    ],
)
def test_what_does_not_go_together(
    base: Base, options: dict[str, Any], kind: type[PipelineError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        engine_of(base, **options)


def test_a_base_that_does_not_export_runs_in_torch_with_a_word(
    base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnx_graph, "LARGEST_BYTES", 1000)
    assert engine_of(base).name == "torch"
    assert "squeezenet1_1 runs in torch, which is slower, since 0.0 GB of weights do not fit" in caplog.text
    with pytest.raises(EngineError, match=r"squeezenet1_1 cannot run in onnxruntime: .*; use --engine torch"):
        engine_of(base, engine="onnxruntime")


def test_an_operation_that_onnx_does_not_have(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    network = feature_network(base, ["avgpool"])
    monkeypatch.setattr(
        type(base.transform),
        "normalize",
        lambda self, pixels: torch.special.bessel_j0(pixels.permute(0, 3, 1, 2).float()),
    )
    with pytest.raises(EngineError, match="does not export to ONNX: ") as caught:
        onnx_graph.export(network, base.transform)
    assert "\n" not in str(caught.value)


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


# --- the cache of graphs


def test_a_graph_is_exported_once(base: Base, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = engine_of(base, batch_size=2)(noise(base, 2))[0]  # where it is measured, numbers may differ in a last bit
    assert len(list(own_cache.iterdir())) == 1
    monkeypatch.setattr(onnx_runner, "export", lambda *_: pytest.fail("exported again"))
    second = engine_of(base, batch_size=2)(noise(base, 2))[0]
    np.testing.assert_array_equal(first, second)


def test_every_part_of_the_recipe_has_its_own_graph(base: Base) -> None:
    random = load_base("squeezenet1_1", "none")
    keys = [
        onnx_graph.graph_key(base, feature_network(base, ["avgpool"])),
        onnx_graph.graph_key(base, feature_network(base, ["pool5"])),
        onnx_graph.graph_key(base, feature_network(base, ["pool5"], "avg")),
        onnx_graph.graph_key(base, feature_network(base, ["pool5", "avgpool"])),
        onnx_graph.graph_key(random, feature_network(random, ["avgpool"])),
    ]
    assert len(set(keys)) == len(keys)
    assert onnx_graph.graph_key(base, feature_network(base, ["avgpool"])) == keys[0]


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


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO):
        assert engine_of(base).name == "onnxruntime"
    assert "the graph is not kept" in caplog.text


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_folder() == Path(os.environ["PIPELINE_CACHE"])
    monkeypatch.delenv("PIPELINE_CACHE")
    if sys.platform == "linux":
        assert cache.cache_folder() == Path("/somewhere/cached-feature-pipeline")
    monkeypatch.delenv("XDG_CACHE_HOME")
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    assert cache.cache_folder() == Path.home() / caches / "cached-feature-pipeline"


def test_a_user_without_a_home_keeps_nothing_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(user: int) -> None:
        raise KeyError(user)

    for name in ("PIPELINE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)  # a container's number that no table of users has
    cache.keep_cached("key", b"graph")
    assert cache.read_cached("key") is None
    keep_size("key", Size(8, 100))
    assert read_size("key") is None


def test_the_cache_forgets_what_was_used_longest_ago(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "KEPT_BYTES", 250)
    for age, key in ((300, "old"), (200, "middle")):
        cache.keep_cached(key, bytes(68))
        entry = own_cache / f"{key}.onnx"
        entry.touch()
        __import__("os").utime(entry, (entry.stat().st_mtime - age,) * 2)
    assert cache.read_cached("old") == bytes(68)  # used just now
    cache.keep_cached("new", bytes(68))
    assert {entry.stem for entry in own_cache.iterdir()} == {"old", "new"}
    monkeypatch.setattr(cache, "KEPT_BYTES", 1)
    cache.keep_cached("last", bytes(68))
    assert {entry.stem for entry in own_cache.iterdir()} == {"last"}


# --- threads, batch sizes and memory


def test_torch_keeps_to_one_thread_a_core_and_gives_the_process_its_own_back(base: Base) -> None:
    def asked(_images: torch.Tensor) -> None:
        seen.append((threading.current_thread().name.partition("_")[0], torch.get_num_threads()))

    seen: list[tuple[str, int]] = []
    engine = engine_of(base, engine="torch", threads=CoreThreads(2))
    plain = type(base.transform).normalize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(base.transform), "normalize", lambda self, images: asked(images) or plain(self, images))
        before = torch.get_num_threads()
        engine(noise(base, 8))
    assert set(seen) == {("core", 1)}
    assert torch.get_num_threads() == before


def test_the_batch_size_is_measured_once_for_a_base_and_a_machine(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = engine_of(base)
    (entry,) = (tmp_path / "cache" / "sizes").iterdir()
    measured = json.loads(entry.read_text())
    assert measured["images"] in (1, 2, 4, 8, 16)
    monkeypatch.setattr(engines, "fastest_size", lambda *_, **__: pytest.fail("measured again"))
    assert engine_of(base).batch_size == first.batch_size
    entry.write_text('{"images": 16, "bytes": 16000000}')
    tight = engine_of(base, memory=0.005)
    assert isinstance(tight, CpuEngine)
    assert tight._step == 4  # a quarter of the bytes
    assert tight.batch_size == 5_000_000 // (5 * (224 * 224 * 3 + 512 * 4))
    assert largest_difference(tight(noise(base, 9))[0], first(noise(base, 9))[0]) < 1e-5


@pytest.mark.parametrize("kept", ["", "{", "[1]", '{"images": 4, "batch": 2}'])
def test_a_kept_size_that_cannot_be_read_is_measured_again(base: Base, tmp_path: Path, kept: str) -> None:
    engine_of(base)
    (entry,) = (tmp_path / "cache" / "sizes").iterdir()
    entry.write_text(kept)
    engine_of(base)
    assert json.loads(entry.read_text())["images"] >= 1


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_a_core_that_runs_out_of_memory_takes_fewer_images_from_then_on(
    base: Base, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = engine_of(base, engine=engine, batch_size=16, threads=CoreThreads(2))
    assert isinstance(running, CpuEngine)
    whole = running(noise(base, 16))[0]
    plain = running._runner.on_one_core

    def small(pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        if len(pixels) > 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory")
        return plain(pixels)

    monkeypatch.setattr(running._runner, "on_one_core", small)
    assert largest_difference(running(noise(base, 16))[0], whole) < 1e-5
    assert running._step == 2


def gpu_engine(base: Base, runner: type[TorchRunner] = TorchRunner, **options: Any) -> GpuEngine:
    """The engine of GPUs, on the CPU."""
    network, place = feature_network(base, ["avgpool"]), torch.device("cpu")
    ready = runner(network, base.transform, place, torch.float32)
    return GpuEngine(ready, network.shapes, base.transform, place, **{"batch_size": "auto", "room": 10**9, **options})


def test_an_engine_of_a_gpu_measures_its_batch_and_remembers_what_fitted(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "LARGEST_BATCH", 16)
    engine = gpu_engine(base)
    assert engine.batch_size in (8, 16)
    wanted = engine(noise(base, 9))[0]
    plain = engine._runner.on_all_cores

    def small(pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(pixels)

    monkeypatch.setattr(engine._runner, "on_all_cores", small)
    assert largest_difference(engine(noise(base, 9))[0], wanted) < 1e-5
    assert engine.batch_size == 2


# --- compiled


class GraphRunner(CompiledRunner):
    """Traced and guarded as for a GPU, and then run step by step: no compiler is needed."""

    backend = "eager"


def test_a_compiled_base_gives_the_same_numbers_and_is_compiled_once(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = gpu_engine(base, GraphRunner, batch_size=4)
    wanted = gpu_engine(base, batch_size=4)(noise(base, 9))[0]  # two whole batches and one of a single image
    assert largest_difference(engine(noise(base, 9))[0], wanted) < 1e-5
    assert isinstance(engine._runner, CompiledRunner)
    assert list(engine._runner._compiled) == [4]
    full = engine._runner._compiled[4]

    def crowded(_images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(engine._runner._compiled, 4, crowded)
    assert largest_difference(engine(noise(base, 9))[0], wanted) < 1e-5
    assert list(engine._runner._compiled) == [2]
    assert full is not engine._runner._compiled[2]


def test_a_base_that_does_not_compile_is_one_line(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no C compiler\nmore of it")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(EngineError, match=r"torch cannot compile it \(no C compiler\); leave out --compile$"):
        gpu_engine(base, CompiledRunner, batch_size=4)(noise(base, 4))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_by_inductor(base: Base) -> None:
    wanted = gpu_engine(base, batch_size=4)(noise(base, 5))[0]
    assert largest_difference(gpu_engine(base, CompiledRunner, batch_size=4)(noise(base, 5))[0], wanted) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 2e-2), ("bf16", 5e-2)])
def test_cuda_agrees_with_the_cpu(base: Base, precision: str, tolerance: float, compile: bool) -> None:
    pixels = noise(base, 9)
    engine = engine_of(base, device="cuda", precision=precision, compile=compile)
    (given,) = engine(pixels)
    (wanted,) = engine_of(base, engine="torch")(pixels)
    assert largest_difference(given, wanted) <= tolerance
    np.testing.assert_array_equal(given, engine(pixels)[0])
    assert engine.batch_size >= 8


@pytest.mark.parametrize(
    "kept",
    [
        *({"images": "8", "bytes": 1}, {"images": 8, "bytes": None}, {"images": 8, "bytes": -1}, {"images": 0}),
        *({"images": True}, {"images": 2.5}, {"images": [8]}, {"images": -4}, {"other": 8}, [8], 8, None, "8"),
    ],
)
def test_a_kept_size_that_is_none_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Any) -> None:
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path))
    keep_size("key", Size(8, 100))
    assert read_size("key") == Size(8, 100)
    (tmp_path / "sizes" / "key").write_text(json.dumps(kept))
    assert read_size("key") is None
