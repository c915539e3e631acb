"""A store as a dataset of PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SettingsError
from pipeline.store import FeatureStore


def test_items_of_a_dataset_are_indices_or_a_mask(path: Path) -> None:
    from pipeline.store.dataset import FeatureDataset

    with FeatureStore.open(path) as store:
        chosen = np.arange(30) % 3 == 1
        values = store.targets["class"].values
        by_mask, by_index = (FeatureDataset(store, "conv", rows, values) for rows in (chosen, np.flatnonzero(chosen)))
        assert len(by_mask) == len(by_index) == 10
        for place in range(-1, 10):
            for mine, theirs in zip(by_mask[place], by_index[place], strict=True):
                np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
        with pytest.raises(SettingsError, match="rows of float64"):
            FeatureDataset(store, "conv", chosen / 2, values)
        with pytest.raises(TypeError, match="integer"):
            by_index[0.5]  # type: ignore[index]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_rows(path: Path, method: str) -> None:
    import torch
    from torch.utils.data import DataLoader

    with FeatureStore.open(path) as store:
        dataset = store.torch_dataset("avgpool", target="class")
        X, y = store.arrays("avgpool", target="class")
        assert len(dataset) == len(y)
        np.testing.assert_array_equal(dataset[3][0].numpy(), X[3])
        assert dataset[3][1].dtype == torch.int64
        assert store.torch_dataset("conv", target="length")[0][1].dtype == torch.float32
        loader = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context=method)
        seen = list(loader)
    np.testing.assert_array_equal(torch.cat([features for features, _ in seen]).numpy(), X)
    np.testing.assert_array_equal(torch.cat([labels for _, labels in seen]).numpy(), y)
