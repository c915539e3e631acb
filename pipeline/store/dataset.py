"""Rows of a feature store as a PyTorch dataset."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.store.rows import row_numbers

if TYPE_CHECKING:
    from pipeline.store.reader import FeatureStore


class FeatureDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of (features float32, target int64 code or float32 number), read and checked when they are asked for.

    `rows` are the store's indices of the items, or a mask over all its rows; `targets` are the values of all its rows.
    A batch is read at once, so a `DataLoader` is fastest when neighbours stay together; shuffled, every row costs the
    reading of its block.
    """

    def __init__(self, store: FeatureStore, layer: str | None, rows: NDArray[np.int64], targets: NDArray[Any]) -> None:
        self.store = store
        self.layer = layer
        self.rows = row_numbers(rows, len(store))
        kind = np.float32 if targets.dtype.kind == "f" else np.int64
        self.targets = torch.from_numpy(targets[self.rows].astype(kind))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Return several items at once, as a `DataLoader` asks for them."""
        rows = self.rows[np.array([operator.index(place) for place in indices], np.int64)]
        features = torch.from_numpy(self.store.features(self.layer, rows).astype(np.float32, copy=False))
        return [(features[number], self.targets[place]) for number, place in enumerate(indices)]
