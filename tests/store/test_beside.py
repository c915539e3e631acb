"""Several files of the same images: joined by id, refused where they disagree."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cheap import write_store

from pipeline.errors import RecipeMismatchError, SettingsError, StoreError
from pipeline.store import FeatureStore, SideBySide, open_stores

X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
Y = np.arange(12) % 3


def pair(folder: Path, *, rows: int = 12, **changes: Any) -> list[Path]:
    """A file of all rows, and one of the first `rows` with other features, in which something may differ."""
    first = write_store(folder / "a.h5", {"avgpool": X}, kind=Y, length=Y + 0.5)
    given = {"kind": Y[:rows], "length": Y[:rows] + 0.5, **changes}
    return [first, write_store(folder / "b.h5", {"avgpool": 2 * X[:rows, :3], "conv": X[:rows, :2]}, **given)]


def test_one_path_is_the_file_itself(tmp_path: Path) -> None:
    first, _ = pair(tmp_path)
    for given in (first, str(first), [first]):
        with open_stores(given) as store:
            assert type(store) is FeatureStore
    with pytest.raises(SettingsError, match="no feature file is given"):
        open_stores([])


def test_features_of_all_files_stand_side_by_side(tmp_path: Path) -> None:
    with open_stores(pair(tmp_path)) as store:
        assert store.layers == {"cheap:avgpool": (4,), "cheap#2:avgpool": (3,), "cheap#2:conv": (2,)}
        np.testing.assert_array_equal(store.features("cheap:avgpool"), X)
        np.testing.assert_array_equal(store.features("cheap#2:avgpool", np.array([5, 2])), 2 * X[[5, 2], :3])
        features, y = store.arrays("cheap#2:conv", target="kind")
        np.testing.assert_array_equal((features[:, 0], y), (X[:, 0], Y))
        assert isinstance(store, SideBySide)
        assert store.notices == []
        again = pickle.loads(pickle.dumps(store))  # noqa: S301 - of this test
        np.testing.assert_array_equal(again.features("cheap#2:conv"), X[:, :2])
        with pytest.raises(SettingsError, match="have the layers cheap:avgpool, cheap#2:avgpool"):
            store.features()
        with pytest.raises(SettingsError, match=r"no layer of .*b\.h5 is asked for"):
            store.by_store(["cheap:avgpool"])


def test_images_of_one_file_alone_are_left_out_and_counted(tmp_path: Path) -> None:
    paths = pair(tmp_path, rows=9)
    with open_stores(paths) as store:
        assert isinstance(store, SideBySide)
        assert store.select().tolist() == list(range(9))
        assert np.isnan(store.features("cheap#2:conv")[9:]).all()
        assert store.notices == [f"3 images of {paths[0]} alone, and left out"]
        whole = store.fingerprint
    with open_stores(paths[::-1]) as turned:
        assert isinstance(turned, SideBySide)
        assert len(turned) == 9
        assert turned.notices == [f"3 images of {paths[0]} alone, and left out"]
        assert turned.fingerprint != whole


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"contents": np.arange(12) + (np.arange(12) == 7)}, "the content of 1 image, such as 00007.jpg"),
        ({"kind": np.where(np.arange(12) == 4, 0, Y)}, "the 'kind' of 1 image, such as 00004.jpg"),
        ({"names": ("bees", "ants", "wasps")}, "the 'kind' of 8 images, such as 00000.jpg"),
        ({"length": Y + 0.25}, "the 'length' of 12 images"),
        ({"splits": ["val"] * 12}, "the split of 12 images"),
    ],
)
def test_files_that_disagree_about_an_image_are_refused(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(StoreError, match=rf"a\.h5 and .*b\.h5 differ in {what}.*run their extract commands again"):
        open_stores(pair(tmp_path, **changes))


def test_the_same_classes_in_another_order_agree(tmp_path: Path) -> None:
    with open_stores(pair(tmp_path, kind=(Y + 1) % 3, names=("wasps", "ants", "bees"))) as store:
        assert len(store.select(target="kind")) == 12


def test_other_images_and_other_views_are_refused(tmp_path: Path) -> None:
    first, _ = pair(tmp_path)
    seen = write_store(tmp_path / "v.h5", {"avgpool": np.stack([X, X], axis=1)}, views=1, kind=Y)
    with pytest.raises(RecipeMismatchError, match="was made with views=1 and"):
        open_stores([first, seen])
    with pytest.raises(StoreError, match=r"none\.h5 does not exist"):
        open_stores([first, tmp_path / "none.h5"])
