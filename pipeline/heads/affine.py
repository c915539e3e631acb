"""Heads that end up as one matrix and one vector on raw features, kept in head.safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.contract import Head, Task
from pipeline.heads.tensors import Tensors, write_tensors


class AffineHead(Head):
    """Scores are features (n, D) times `weight` (C, D) plus `bias` (C,); one output for numbers.

    Standardisation is folded into both, so that they take features as the base gives them. The bias is in double
    precision: that of numbers which vary little around a large one would otherwise lose what varies.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float64]

    @classmethod
    def from_weights(cls, weight: NDArray[np.floating], bias: NDArray[np.floating], *, task: Task) -> Self:
        """Make a head of what was trained elsewhere."""
        head = cls(task)
        head.place(Tensors.trained({"weight": weight, "bias": bias}))
        return head

    def place(self, tensors: Tensors) -> None:
        """Take weight and bias, trained or loaded."""
        self.weight = tensors.take("weight", (1 if self.task == "numbers" else None, None), np.float32)
        self.bias = tensors.take("bias", (len(self.weight),), np.float64)

    @property
    def dimensions(self) -> int:
        """Features of a row."""
        return int(self.weight.shape[1])

    @property
    def outputs(self) -> int:
        """Classes, or 1."""
        return len(self.weight)

    def _decide(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logits (n, C), or values (n,)."""
        out = features.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        return out[:, 0] if self.task == "numbers" else out

    def save(self, folder: Path) -> dict[str, Any]:
        """Weight and bias in head.safetensors."""
        write_tensors(folder, {"weight": self.weight, "bias": self.bias})
        return self.config()

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """Open what `save` wrote."""
        head = cls.restore(config)
        head.place(Tensors.read(folder))
        return head
