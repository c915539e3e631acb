"""Tests of what is said of memory: against blocks of known size, and against files like the kernel's."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.engines import memory
from pipeline.errors import SettingsError

CPU = "cpu"


def kernel_tells() -> bool:
    try:
        return "VmHWM" in memory.STATUS.read_text()
    except OSError:
        return False


@pytest.mark.skipif(not kernel_tells(), reason="elsewhere the peak of a process cannot be reset")
def test_the_peak_of_a_piece_of_work_is_measured_after_it_is_gone() -> None:
    def work() -> None:
        # Fresh pages of the kernel: malloc may give some that are resident already, which is no growth.
        np.frombuffer(mmap.mmap(-1, 64 << 20), np.uint8)[:] = 1

    assert 57 <= memory.taken(CPU, work) / 2**20 <= 72


def test_where_the_peak_cannot_be_measured_the_work_is_done_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "PEAK_RESET", tmp_path / "gone" / "clear_refs")
    done: list[int] = []
    assert memory.taken(CPU, lambda: done.append(1)) == 0
    assert done == [1]


@pytest.mark.parametrize("status", ["", "Name:\tpython\n", "VmRSS:\t  5000 kB\n"])
def test_a_kernel_that_tells_only_a_part_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setattr(memory, "PEAK_RESET", tmp_path / "clear_refs")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    memory.STATUS.write_text(status)
    done: list[int] = []
    assert memory.taken(CPU, lambda: done.append(1)) == 0
    assert done == [1]


def test_a_kernel_that_does_not_tell_what_is_free_leaves_half_of_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemFree: 300 kB\n")
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory._free_here(tmp_path / "meminfo") == there // 2


def test_the_budget_is_what_is_given_or_half_of_what_is_free() -> None:
    assert memory.budget(CPU, 1.5) == 1_500_000_000
    assert 0 < memory.budget(CPU) <= memory.free(CPU)


def test_what_is_free_is_read_from_the_kernel_and_the_container(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:   300 kB\n")
    assert memory._free_here(tmp_path / "meminfo") == 300 * 1024
    assert memory._free_here(tmp_path / "none") > 0
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert memory._free_in_container(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._free_in_container(tmp_path) == sys.maxsize


@pytest.mark.parametrize("given", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_budget_that_no_machine_has_is_refused(given: float) -> None:
    with pytest.raises(SettingsError, match=r"memory=.*: give a number of GB, more than 0 and at most 1,000,000"):
        memory.budget(CPU, given)
