"""Rows of a file: chosen, summed and written where they belong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.errors import SettingsError
from pipeline.store import FeatureStore
from pipeline.store.rows import RowFile, runs


def test_rows_are_indices_or_a_mask(path: Path) -> None:
    with FeatureStore.open(path) as store:
        every = store.features("conv")
        held = store.splits == "val"
        assert 0 <= held.sum() < 30
        for mask in held, ~held, np.ones(30, bool), np.arange(30) % 3 == 1:
            np.testing.assert_array_equal(store.features("conv", mask), every[mask])
        for rows in [3, 1, 3], np.array([29], np.uint8), np.array([], np.int64), []:
            found = store.features("conv", rows)  # type: ignore[arg-type]
            np.testing.assert_array_equal(found, every[np.asarray(rows, np.int64)])
        wrong: list[Any] = [
            [0.5],
            [1.0],
            ["1"],
            [True],
            held[:-1],
            np.append(held, True),
            3,
            [[1, 2]],
            slice(0, 3),
            [None],
        ]
        for rows in wrong:
            with pytest.raises(SettingsError, match=r"^rows of .* choose nothing; give indices, .* or a mask, \(30,\)"):
                store.features("conv", rows)
        for rows in [30], [-1], np.array([2**63], np.uint64):
            with pytest.raises(IndexError, match="of a store of 30"):
                store.features("conv", rows)  # type: ignore[arg-type]
        for size in 0, -1, 2.5, held, "4":
            with pytest.raises(SettingsError, match="how many rows a block has"):
                next(store.iter_blocks("conv", rows=size))  # type: ignore[arg-type]


def test_stretches_of_neighbours_are_written_at_once() -> None:
    assert list(runs(np.array([4, 5, 6, 9, 2, 3]))) == [(0, 3), (3, 4), (4, 6)]
    assert list(runs(np.array([], np.int64))) == []


def test_columns_are_read_in_spans_and_by_any_rows(path: Path) -> None:
    with RowFile.open(path) as file, h5py.File(path) as plain:
        whole = plain["features/avgpool"][:]
        np.testing.assert_array_equal(file.column("features/avgpool"), whole)
        np.testing.assert_array_equal(file.span("features/avgpool", 3, 9), whole[3:9])
        np.testing.assert_array_equal(file.take("features/avgpool", np.array([29, 0, 0])), whole[[29, 0, 0]])
        assert list(file.damaged_blocks("features/avgpool")) == []
        place = file.header.columns["features/avgpool"].offset
    with path.open("r+b") as content:
        content.seek(place)
        content.write(b"\xff")
    with RowFile.open(path) as file:
        assert len(list(file.damaged_blocks("features/avgpool"))) == 1
