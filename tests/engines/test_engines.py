"""Engines: one contract, the same numbers from each, and what happens when memory ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from networks import engine_of, gpu_engine, largest_difference, noise
from numpy.typing import NDArray

from pipeline import engines
from pipeline.bases import Base, load_base
from pipeline.devices import CoreThreads
from pipeline.engines import CpuEngine
from pipeline.errors import EngineError, PipelineError, SettingsError

pytestmark = pytest.mark.usefixtures("own_cache")

#: A small member of each family of torchvision.
MEMBERS = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t"),
    *("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5"),
    *("squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_32"),
)


# --- the contract


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
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
    (wanted,) = engine_of(base, engine="torch")(pixels)
    for engine in ("onnxruntime", "openvino"):
        (given,) = engine_of(base, engine=engine)(pixels)
        assert largest_difference(given, wanted) <= 1e-4


def test_auto_on_a_cpu_is_onnxruntime_and_shares_its_threads(base: Base) -> None:
    with CoreThreads(2) as threads:
        engine = engine_of(base, threads=threads)
        assert isinstance(engine, CpuEngine)
        assert engine.name == "onnxruntime"
        assert engine.batch_size == 64
        engine(noise(base, 8))
        assert {thread.name.partition("_")[0] for thread in threads._threads} == {"core"}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_on_a_cpu_runs_in_torch(base: Base, precision: str) -> None:
    pixels = noise(base, 2)
    engine = engine_of(base, precision=precision, engine="torch")
    assert engine.name == "torch"
    (given,) = engine(pixels)
    (wanted,) = engine_of(base, engine="torch")(pixels)
    assert given.dtype == np.float32
    assert 0 < largest_difference(given, wanted) < 0.05


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"engine": "torhc"}, SettingsError, "engine='torhc': give auto or torch or onnxruntime or openvino"),
        ({"precision": "fp8"}, SettingsError, "precision='fp8': give fp32 or bf16 or fp16 or int8"),
        ({"engine": "onnxruntime", "precision": "bf16"}, EngineError, "runs on the CPU in fp32, not on cpu in bf16"),
        (
            {"engine": "openvino", "precision": "fp16"},
            EngineError,
            "runs on the CPU in fp32, bf16 and int8, not in fp16",
        ),
        ({"engine": "torch", "precision": "int8"}, EngineError, "int8 runs in OpenVINO alone, not in torch; leave out"),
        ({"precision": "int8"}, EngineError, "squeezenet1_1 cannot run in int8: its recipe has no ranges"),
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


# --- threads, batch sizes and memory


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
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
