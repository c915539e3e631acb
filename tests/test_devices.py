"""Tests of devices and cores."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from pipeline.devices import CoreThreads, computes, cores, devices_of_kind, pick_device
from pipeline.errors import EngineError, PipelineError, SettingsError


def test_auto_is_the_fastest_kind_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert devices_of_kind("cuda") == ["cuda:0", "cuda:1"]
    assert devices_of_kind("cpu") == ["cpu"]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("gpu", SettingsError, "unknown device 'gpu'"),
        ("cuda:x", SettingsError, "unknown device 'cuda:x'"),
        ("cuda:1", EngineError, "no device 'cuda:1' here: there are 1 of kind cuda; --device cpu always works"),
        ("cpu:1", EngineError, "no device 'cpu:1'"),
        ("mps", EngineError, "no device 'mps' here"),
    ],
)
def test_devices_that_are_not_here(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: type[PipelineError], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(kind, match=message):
        pick_device(name)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 64), ("150000 100000", 2), ("10000 100000", 1), ("", 64), ("9900000 100000", 64)],
)
def test_a_container_may_have_less_than_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert cores(tmp_path / "cpu.max") == expected
    assert cores(tmp_path / "absent") == 64


def test_where_affinity_is_not_known_every_core_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    assert cores(tmp_path / "absent") == 12
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert cores(tmp_path / "absent") == 1


def test_threads_are_one_a_core() -> None:
    with CoreThreads() as threads:
        assert threads.count == cores()
    with CoreThreads(3) as threads:
        together = threading.Barrier(3)
        assert sorted(threads.map(lambda number: (together.wait(timeout=10), number)[1], range(3))) == [0, 1, 2]
    with pytest.raises(SettingsError, match="workers=0: at least one thread is needed"):
        CoreThreads(0)


def test_instructions_are_told_by_the_flags_of_the_cpu(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    for flags, bf16, int8 in (("avx2 avx512_bf16", True, False), ("avx2 avx512_vnni", False, True)):
        cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
        assert (computes("bf16", cpuinfo), computes("int8", cpuinfo)) == (bf16, int8)
    assert computes("bf16", tmp_path / "none")
