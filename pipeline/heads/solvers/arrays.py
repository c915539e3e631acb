"""The arrays of the solvers: numpy's on a CPU, torch's on a GPU.

Nearly all that a solver does with them both libraries spell alike; here is the rest. So a head that is trained on a CPU
needs no torch, whose import takes longer than most searches.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.devices import is_cpu, pick_device

if TYPE_CHECKING:
    import torch

#: A numpy array, or a torch tensor on a GPU.
Array: TypeAlias = Any


def solver_device(name: str) -> torch.device | None:
    """Pick the GPU called `name`; None for the CPU, which also stands in for MPS: that has no double precision."""
    if is_cpu(name) or (name == "auto" and sys.platform == "darwin"):
        return None
    device = pick_device(name)
    return None if device.type in ("cpu", "mps") else device


def put(array: NDArray[Any], device: torch.device | None) -> Array:
    """Return `array` on a device; itself where that is the CPU."""
    if device is None:
        return array
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def take_home(array: Array) -> NDArray[Any]:
    """Return an array of either library as one of numpy."""
    return array if isinstance(array, np.ndarray) else np.asarray(array.cpu().numpy())


def device_of(array: Array) -> torch.device | None:
    """Return where `array` is, None where it is numpy's."""
    return None if isinstance(array, np.ndarray) else array.device


def library(array: Array) -> Any:
    """Return the library whose `array` it is."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def cast(array: Array, like: Array) -> Array:
    """Return `array` in the precision of another, itself where it has it."""
    return array.astype(like.dtype, copy=False) if isinstance(array, np.ndarray) else array.to(like.dtype)


def double(array: Array) -> Array:
    """Return `array` in double precision."""
    return array.astype(np.float64) if isinstance(array, np.ndarray) else array.double()


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Return zeros of the library, precision and device of another array."""
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_zeros(shape)


def places(mask: Array) -> Array:
    """Return where a mask (n,) holds, (k,)."""
    return library(mask).argwhere(mask)[:, 0]
