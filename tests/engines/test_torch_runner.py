"""torch on the CPU and compiled: the network's own numbers, and no more threads than were given."""

from __future__ import annotations

import shutil
import threading

import pytest
import torch
from networks import engine_of, gpu_engine, largest_difference, noise

from pipeline.bases import Base
from pipeline.devices import CoreThreads
from pipeline.engines.torch_runner import CompiledRunner
from pipeline.errors import EngineError


def test_torch_equals_the_network_it_runs(base: Base) -> None:
    pixels = noise(base, 3)
    with torch.no_grad():
        expected = base.module.features(base.transform.normalize(torch.from_numpy(pixels))).mean((2, 3))
    (given,) = engine_of(base, engine="torch")(pixels)
    assert largest_difference(given, expected.numpy()) <= 1e-6


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
