"""Heads that end up as one matrix and one vector on raw features, kept in head.safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.heads.contract import Head, Task

FILE = "head.safetensors"


class AffineHead(Head):
    """Scores are features (n, D) times `weight` (C, D) plus `bias` (C,); one output for numbers.

    Standardisation is folded into both, so that they take features as the base gives them.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def from_weights(cls, weight: NDArray[np.float32], bias: NDArray[np.float32], *, task: Task) -> Self:
        """A head that was trained elsewhere."""
        head = cls(task)
        head.weight = np.ascontiguousarray(weight, dtype=np.float32)
        head.bias = np.ascontiguousarray(bias, dtype=np.float32)
        return head

    def decision(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logits (n, C), or values (n,)."""
        out = features.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        return out[:, 0] if self.task == "numbers" else out

    def save(self, folder: Path) -> dict[str, Any]:
        """Weight and bias in head.safetensors."""
        write_tensors(folder, {"weight": self.weight, "bias": self.bias})
        return self.config()

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """What `save` wrote."""
        head = cls.restore(config)
        tensors = read_tensors(folder, ("weight", "bias"))
        head.weight, head.bias = tensors["weight"], tensors["bias"]
        if head.weight.ndim != 2 or head.bias.shape != head.weight.shape[:1]:
            raise ModelError(f"{folder / FILE}: weight {head.weight.shape} and bias {head.bias.shape} do not fit")
        return head


def write_tensors(folder: Path, tensors: Mapping[str, NDArray[np.generic]]) -> None:
    """Write head.safetensors."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / FILE)


def read_tensors(folder: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Read head.safetensors; raises `ModelError` where it is missing, damaged or of other content."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / FILE
    try:
        tensors: dict[str, NDArray[Any]] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}; train the head again") from None
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ModelError(f"{path} holds no {missing[0]!r}; train the head again")
    return tensors
