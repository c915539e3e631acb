"""Say what decides the last bit of a number here: processor, kernels, versions. Sets nothing."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from threadpoolctl import threadpool_info

PROJECT = "cached-feature-pipeline"
#: Instruction sets that BLAS, torch and ONNX Runtime choose their kernels by.
TELLING = re.compile(r"avx|fma|amx|f16c|asimd|sve|bf16|i8mm")
SETTINGS = ("OPENBLAS_", "OMP_", "MKL_", "ATEN_", "ONEDNN_", "BLIS_", "VECLIB_")


def processor() -> tuple[str, list[str]]:
    """Its name and the instruction sets that matter; the kernel's list is there on Linux only."""
    try:
        entries = dict(re.findall(r"^([^\t:]+?)\s*:[ ]*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    except OSError:
        entries = {}
    name = entries.get("model name") or platform.processor() or platform.machine()
    features = (entries.get("flags") or entries.get("Features") or "").split()
    return name, sorted(feature for feature in features if TELLING.search(feature))


def kernels() -> list[str]:
    """The BLAS of NumPy and of SciPy, with the kernels they chose."""
    np.ones((2, 2)) @ np.ones((2, 2))
    scipy.linalg.inv(np.eye(2))
    return sorted(
        f"{Path(blas['filepath']).parent.name}: {blas['internal_api']} {blas['version']}"
        f" {blas.get('architecture', 'unknown kernels')}, {blas['num_threads']} threads"
        for blas in threadpool_info()
        if blas["user_api"] == "blas"
    )


def versions() -> list[str]:
    """Name and version of every direct dependency that is installed, extras included."""
    names = {re.split(r"[^\w.-]", line)[0] for line in metadata.requires(PROJECT) or ()}
    installed = {
        distribution.metadata["Name"].lower(): distribution.version for distribution in metadata.distributions()
    }
    return [f"{name} {installed[name.lower()]}" for name in sorted(names, key=str.lower) if name.lower() in installed]


def main() -> None:
    name, features = processor()
    settings = {key: value for key, value in os.environ.items() if key.startswith(SETTINGS)}
    print(f"processor: {name}, {os.cpu_count()} cores; {' '.join(features) or 'features not told'}")
    print(f"kernels: {'; '.join(kernels())}; torch {torch.backends.cpu.get_cpu_capability()}")
    print(f"settings: {' '.join(f'{key}={value}' for key, value in sorted(settings.items())) or 'none'}")
    print(f"versions: {platform.platform()}, python {platform.python_version()}, {', '.join(versions())}")


if __name__ == "__main__":
    main()
