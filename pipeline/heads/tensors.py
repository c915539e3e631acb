"""The arrays of a head: one layout in memory, whether they were trained or loaded, and head.safetensors on disk.

A head takes its arrays from `Tensors` alone. So the head that is scored after training and the one that is loaded later
hold the same types in the same order, the same products are called on them, and their answers are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipeline.errors import HeadError, ModelError, PipelineError

FILE = "head.safetensors"


class Tensors:
    """Named arrays that are checked as they are taken. `where` begins the message of an error of the kind `error`."""

    def __init__(self, found: Mapping[str, Any], where: str, *, error: type[PipelineError] = ModelError) -> None:
        self._found = found
        self._where = where
        self._error = error

    @classmethod
    def trained(cls, found: Mapping[str, Any]) -> Tensors:
        """Take what a training left; an array that cannot be used raises `HeadError`."""
        return cls(found, "what was trained cannot be kept", error=HeadError)

    @classmethod
    def read(cls, folder: Path, file: str = FILE) -> Tensors:
        """Read head.safetensors, or another `file`; raises `ModelError` if it is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = folder / file
        if not path.is_file():  # a pipe would be waited for
            raise ModelError(f"{path} cannot be read: there is no such file; train the head again")
        try:
            return cls(load_file(path), str(path))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError, MemoryError) as error:
            raise ModelError(f"{path} cannot be read: {error}; train the head again") from None

    def has(self, name: str) -> bool:
        """Whether there is one of this name."""
        return name in self._found

    def take(self, name: str, shape: tuple[int | None, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Copy `name` in C order and of `dtype`: of this `shape`, None for any length, and finite.

        Raises where it is otherwise, or where whole numbers are asked for and there are others.
        """
        array = self._any(name, shape, dtype)
        if not np.isfinite(array).all():
            raise self._error(f"{self._where}: {name} holds NaN or infinity; train the head again")
        return array

    def divisors(self, name: str, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
        """Copy an array of positive numbers, among which may be infinity."""
        array = self._any(name, shape, np.float64)
        self.require((array > 0).all(), f"{name} holds what is not positive")
        return array

    def require(self, holds: bool | np.bool_, what: str) -> None:
        """Raise the error, which says `what`, unless it `holds`."""
        if not holds:
            raise self._error(f"{self._where}: {what}; train the head again")

    def _any(self, name: str, shape: tuple[int | None, ...], dtype: DTypeLike) -> NDArray[Any]:
        self.require(name in self._found, f"there is no {name!r}")
        array = np.asarray(self._found[name])
        fits = array.ndim == len(shape) and all(
            want in (None, has) for want, has in zip(shape, array.shape, strict=True)
        )
        wanted = " x ".join("any" if length is None else str(length) for length in shape)
        self.require(fits, f"{name} of shape {array.shape} does not fit, which should be {wanted}")
        kinds = "iu" if np.issubdtype(dtype, np.integer) else "fiu"
        self.require(array.dtype.kind in kinds, f"{name} is of type {array.dtype}")
        with np.errstate(over="ignore"):  # becomes infinity, which is told
            return np.array(array, dtype=dtype, order="C")


def write_tensors(folder: Path, tensors: Mapping[str, NDArray[np.generic]]) -> None:
    """Write head.safetensors."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / FILE)
