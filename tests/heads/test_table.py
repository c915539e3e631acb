"""Features of a store as rows: layers side by side, in memory or streamed, the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from cheap import extract, manifest_of, write_images

from pipeline.heads.rows import ArrayRows, StreamedRows
from pipeline.heads.table import FeatureTable
from pipeline.store import FeatureStore


@pytest.fixture
def store(tmp_path):
    write_images(tmp_path / "images", 20)
    extract(manifest_of(tmp_path / "images"), tmp_path / "F.h5")
    with FeatureStore.open(tmp_path / "F.h5") as opened:
        yield opened


def test_layers_stand_side_by_side(store):
    table = FeatureTable(store, ["conv", "avgpool"])
    assert (table.views, table.widths, table.dimensions) == (1, (6, 24), 30)
    which = np.array([3, 0, 7])
    images = table.images(which)
    assert (images.shape, images.dtype) == ((3, 1, 30), np.float32)
    np.testing.assert_array_equal(images[:, 0, :6], store.features("conv", which).reshape(3, 6))
    np.testing.assert_array_equal(images[:, 0, 6:], store.features("avgpool", which))


def test_rows_over_the_memory_budget_are_streamed_and_equal(store):
    table = FeatureTable(store, ["avgpool"])
    which = np.array([9, 2, 2, 0])
    held, streamed = table.rows(which, memory=1.0), table.rows(which, memory=1e-9)
    assert isinstance(held, ArrayRows)
    assert isinstance(streamed, StreamedRows)
    (_, block), (_, again) = next(held.blocks()), next(streamed.blocks())
    np.testing.assert_array_equal(block, again)
