"""Memory that is free on a device, and memory that a piece of work takes there: measured, not guessed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pipeline.errors import SettingsError

MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
PEAK_RESET = Path("/proc/self/clear_refs")
CGROUP = Path("/sys/fs/cgroup")
#: The share of the free memory that "auto" takes: others need some, and so does the rest of this process.
SHARE = 0.5
MOST = 1_000_000  # GB; more is a slip of the pen, or no number
#: Raised on a system without the file, or a kernel without the entry.
UNKNOWN = (OSError, KeyError)


def budget(device: str, memory: float | Literal["auto"] = "auto") -> int:
    """Return the bytes that forward passes on `device` may take: `memory` GB, or half of what is free there.

    Raises `SettingsError` for a `memory` that no machine has.
    """
    if memory == "auto":
        return int(SHARE * free(device))
    if not 0 < memory <= MOST:
        raise SettingsError(f"memory={memory}: give a number of GB, more than 0 and at most {MOST:,}, or auto")
    return int(memory * 1e9)


def free(device: str) -> int:
    """Return the bytes that nobody uses on `device`."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(torch.device(device))[0]
    if device == "mps":
        import torch

        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min(_free_here(), _free_in_container())


def _free_here(meminfo: Path = MEMINFO) -> int:
    try:
        return _kilobytes(meminfo, "MemAvailable")
    except UNKNOWN:  # macOS does not say how much is free: half of all there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _free_in_container(cgroup: Path = CGROUP) -> int:
    try:
        return int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or "max"
        return sys.maxsize


def taken(device: str, work: Callable[[], object]) -> int:
    """Run `work` and return the bytes by which memory in use rose at its peak; 0 where that cannot be known."""
    if device != "cpu":
        return _taken_of_gpu(device, work)
    try:
        PEAK_RESET.write_text("5")
        resident = _kilobytes(STATUS, "VmRSS")
    except UNKNOWN:
        work()
        return 0
    work()
    try:
        return max(_kilobytes(STATUS, "VmHWM") - resident, 0)
    except UNKNOWN:  # some sandboxes have what is resident, and not its peak
        return 0


def _taken_of_gpu(device: str, work: Callable[[], object]) -> int:
    import torch  # which the CPU's memory is known without

    if device == "mps":
        before = torch.mps.driver_allocated_memory()
        work()
        return max(torch.mps.driver_allocated_memory() - before, 0)
    place = torch.device(device)
    torch.cuda.reset_peak_memory_stats(place)
    before = torch.cuda.memory_allocated(place)
    work()
    return torch.cuda.max_memory_allocated(place) - before


def _kilobytes(file: Path, name: str) -> int:
    """Read the entry `name` of a file of the kernel, in bytes. Raises one of `UNKNOWN` where there is none."""
    entries = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    return int(entries[name].split()[0]) * 1024
