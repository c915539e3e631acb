"""Rows in memory and streamed are the same rows, block by block."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import HeadError
from pipeline.heads import rows as rows_module
from pipeline.heads.rows import ArrayRows, StreamedRows, block_length

FEATURES = np.arange(1500, dtype=np.float32).reshape(300, 5)


@pytest.fixture(params=["array", "streamed"])
def rows(request, monkeypatch):
    monkeypatch.setattr(rows_module, "BLOCK_FLOATS", 64 * 5)
    if request.param == "array":
        return ArrayRows(FEATURES)
    return StreamedRows(lambda which: FEATURES[which], np.arange(300), 5)


def test_blocks_are_all_rows_in_order(rows):
    assert rows.shape == (300, 5)
    parts = list(rows.blocks())
    assert [which.stop - which.start for which, _ in parts] == [64, 64, 64, 64, 44]
    np.testing.assert_array_equal(np.concatenate([block for _, block in parts]), FEATURES)
    for which, block in parts:
        np.testing.assert_array_equal(block, FEATURES[which])


def test_some_rows_come_in_the_order_asked(rows):
    some = rows.take(np.array([7, 0, 299, 7]))
    assert some.shape == (4, 5)
    np.testing.assert_array_equal(np.concatenate([b for _, b in some.blocks()]), FEATURES[[7, 0, 299, 7]])


def test_streamed_rows_are_never_in_memory_at_once():
    streamed = StreamedRows(lambda which: FEATURES[which], np.arange(300), 5)
    with pytest.raises(HeadError, match="over the memory budget"):
        streamed.array()


def test_rows_are_a_table():
    with pytest.raises(HeadError, match="must be"):
        ArrayRows(np.zeros(3))
    assert block_length(10**9) == 64
