"""Near-twins: found among photographs and among few features, and grouped without chains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.errors import HeadError
from pipeline.heads import twins as module
from pipeline.heads.twins import FARTHEST, Twins


class Table:
    """Features in memory, as a `FeatureTable` gives them."""

    def __init__(self, features: Any, widths: tuple[int, ...] = ()) -> None:
        self.widths = widths or (features.shape[1],)
        self.dimensions = features.shape[1]
        self._features = features.astype(np.float32)

    def images(self, rows: Any) -> Any:
        return self._features[rows][:, None]


def among(features: Any, **options: Any) -> Twins:
    return Twins.among(Table(features, **options), np.arange(len(features)), seed=0)  # type: ignore[arg-type]


def planted(rows: int = 300, dimensions: int = 64, copies: int = 10) -> Any:
    random = np.random.default_rng(0)
    X = random.normal(size=(rows, dimensions))
    X[-copies:] = X[:copies] + 0.2 * random.normal(size=(copies, dimensions))
    return X


@pytest.mark.parametrize("block", [37, 1024])
def test_copies_are_found_and_nothing_else_whatever_the_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    found = among(planted())
    assert sorted(map(tuple, found.pairs.tolist())) == [(row, 290 + row) for row in range(10)]
    assert found.threshold == FARTHEST > found.distances.max()


@pytest.mark.parametrize("dimensions", [3, 5, 12])
def test_of_few_features_one_row_in_a_hundred_has_a_twin_by_chance(dimensions: int) -> None:
    found = among(np.random.default_rng(1).normal(size=(1000, dimensions)))
    assert found.threshold < FARTHEST / 2
    assert len(np.unique(found.pairs)) < 40


def test_classes_that_are_far_apart_are_no_twins() -> None:
    random = np.random.default_rng(2)
    X = 20 * random.normal(size=(5, 64))[random.integers(0, 5, 400)] + random.normal(size=(400, 64))
    assert len(np.unique(among(X).pairs)) < 20


def test_where_all_rows_are_of_bursts_they_are_found() -> None:
    random = np.random.default_rng(3)
    X = np.repeat(random.normal(size=(50, 64)), 4, axis=0) + 0.05 * random.normal(size=(200, 64))
    found = among(X)
    assert len(found.pairs) == 50 * 6
    assert (found.groups(200) == np.repeat(np.arange(50), 4)).all()


def test_layers_count_alike_whatever_their_unit() -> None:
    X = np.concatenate([planted(), 1e4 * np.random.default_rng(5).normal(size=(300, 64))], axis=1)
    assert len(among(X, widths=(64, 64)).pairs) == 0  # alike in one layer, strangers in the other
    assert len(among(np.tile(planted(), 2) * np.repeat([1, 1e4], 64), widths=(64, 64)).pairs) == 10


def test_a_chain_is_no_group() -> None:
    pairs = np.array([[0, 1], [1, 2], [2, 3], [5, 6], [6, 7], [5, 7]])
    found = Twins(pairs, np.array([0.1, 0.15, 0.1, 0.01, 0.01, 0.01], np.float32), 0.2).groups(9)
    assert [np.flatnonzero(found == code).tolist() for code in np.unique(found)] == [
        [4],
        [8],
        [0, 1],
        [2, 3],
        [5, 6, 7],
    ]


def test_few_rows_and_equal_rows_have_none() -> None:
    assert len(among(np.ones((10, 4))).pairs) == 0
    assert len(among(np.ones((100, 4))).pairs) == 0
    assert len(among(np.zeros((0, 4))).pairs) == 0


def test_more_than_can_be_linked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 2)
    with pytest.raises(HeadError, match="3 images are linked by pairs"):
        Twins(np.array([[0, 1], [1, 2]]), np.array([0.1, 0.1], np.float32), 0.2).groups(3)
