"""Devices of the forward pass, and cores for all other work."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import EngineError, SettingsError
from pipeline.registry import unknown

if TYPE_CHECKING:
    import torch

CPUINFO = Path("/proc/cpuinfo")
#: Flags of CPUs, as Linux names them, that multiply and add in less than single precision.
INSTRUCTIONS = {
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    "int8": {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"},
}
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
KINDS = ("cpu", "cuda", "mps")


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called `name`: cpu, cuda, cuda:1, mps, or auto, the fastest kind there is.

    Raises `SettingsError` for an unknown name, `EngineError` for a device that this machine does not have.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in KINDS or (number and not number.isdecimal()):
        raise SettingsError(unknown("device", name, ["auto", *KINDS, "cuda:NUMBER"]))
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(_has_mps())}[kind]
    if int(number or 0) >= count:
        raise EngineError(f"no device {name!r} here: there are {count} of kind {kind}; --device cpu always works")
    return torch.device(name)


def is_cpu(name: str) -> bool:
    """Return True where `pick_device` would surely pick the CPU; torch is not imported to find out.

    Raises nothing: a name that is none is not the CPU.
    """
    if name == "auto":
        return not _may_have_gpu()
    return name == "cpu"


def _may_have_gpu() -> bool:
    if "torch" in sys.modules:
        return pick_device().type != "cpu"
    if sys.platform != "linux":  # a Mac has one
        return True
    try:
        if "rocm" in metadata.version("torch"):
            return True
        ctypes.CDLL("libcuda.so.1")  # NVIDIA's driver, without which CUDA has no device
    except (metadata.PackageNotFoundError, OSError):
        return False
    return True


def _has_mps() -> bool:
    import torch

    return torch.backends.mps.is_available()


def computes(precision: Literal["bf16", "int8"], cpuinfo: Path = CPUINFO) -> bool:
    """Return False where the system says that the CPU has no instructions for it; macOS is not asked."""
    try:
        flags = set(cpuinfo.read_text().split())
    except OSError:
        return True
    return not flags.isdisjoint(INSTRUCTIONS[precision])


def devices_of_kind(kind: str) -> list[str]:
    """List the devices of one kind by name, for one process each."""
    if kind == "cuda":
        import torch

        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [kind]


def cores(quota: Path = CGROUP_QUOTA) -> int:
    """Count the cores that this process may use: its affinity, or less where a container has a quota.

    macOS knows neither: there it is all cores of the machine.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        granted, period = quota.read_text().split()
        return max(1, min(allowed, math.ceil(int(granted) / int(period))))
    except (OSError, ValueError):  # no container, another system, or "max"
        return allowed


class CoreThreads(ThreadPoolExecutor):
    """A pool of `count` threads, one a core, which decoding and forward share: neither takes a core from the other.

    Raises `SettingsError` for a count below one.
    """

    def __init__(self, count: int | Literal["auto"] = "auto") -> None:
        self.count = cores() if count == "auto" else count
        if self.count < 1:
            raise SettingsError(f"workers={count}: at least one thread is needed; auto is one a core")
        super().__init__(self.count, thread_name_prefix="core")
