"""Reading: selections, threads, descriptors, stores that are replaced, frames."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from cheap import (
    extract,
    features_of,
    manifest_of,
)

from pipeline.errors import SettingsError, StoreError
from pipeline.store import FeatureStore, Part, part_range
from pipeline.store.rows import RowFile


def test_arrays_and_selections(path: Path, images: Path) -> None:
    manifest = manifest_of(images)
    with FeatureStore.open(path) as store:
        assert len(store) == 30
        assert repr(store).endswith("30 rows of avgpool, conv)")
        assert store.layers == {"avgpool": (24,), "conv": (2, 3)}
        good = [row for row, reason in enumerate(store.reasons) if not reason]
        assert store.select().tolist() == good
        X, y = store.arrays("conv", target="class")
        np.testing.assert_array_equal(y, manifest.targets["class"].values[good])
        for row, features in zip(good, X, strict=True):
            content = manifest.records[row].image.read(100)
            np.testing.assert_array_equal(features, features_of(content)["conv"])
        blocks = list(store.iter_blocks("conv", rows=4))
        assert [len(rows) for rows, _ in blocks] == [4] * (len(good) // 4) + [len(good) % 4] * bool(len(good) % 4)
        np.testing.assert_array_equal(np.concatenate([rows for rows, _ in blocks]), good)
        np.testing.assert_array_equal(np.concatenate([values for _, values in blocks]), X)
        shuffled = np.random.default_rng(0).permutation(good)
        np.testing.assert_array_equal(store.features("conv", shuffled), store.features("conv")[shuffled])
        assert store.features("avgpool", np.array([], np.int64)).shape == (0, 24)
        assert store.select(split="train").tolist() == store.select().tolist()


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/dev/fd"))  # noqa: PTH208


def parts_of(images: Path, folder: Path, count: int) -> Path:
    manifest = manifest_of(images)
    ids = [record.id for record in manifest.records]
    for number in range(count):
        start, stop = part_range(len(ids), part=f"{number + 1}/{count}")
        extract(manifest.rows(start, stop), folder / f"{number:02}.h5", part=Part.of(ids, start, stop))
    return folder


@pytest.mark.parametrize("count", [1, 12])
def test_threads_read_a_store_together(images: Path, tmp_path: Path, count: int) -> None:
    before = descriptors()
    with FeatureStore.open(parts_of(images, tmp_path / "parts", count)) as store:
        expected = store.features("conv")
        errors: list[Exception] = []

        def read(seed: int) -> None:
            dice = np.random.default_rng(seed)
            try:
                for _ in range(25):
                    rows = dice.integers(0, 30, 3)
                    np.testing.assert_array_equal(store.features("conv", rows), expected[rows])
            except Exception as error:  # noqa: BLE001 - collected and compared with nothing
                errors.append(error)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(16)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            store.close()  # closes nothing that somebody reads from
            time.sleep(0.01)
        for thread in threads:
            thread.join()
        assert errors == []
        assert descriptors() <= before + 8
    assert descriptors() == before


def test_no_descriptor_is_left_by_stores_that_nobody_closes(path: Path, images: Path, tmp_path: Path) -> None:
    parts = parts_of(images, tmp_path / "parts", 10)
    before = descriptors()
    for store_path in path, parts:
        packed = pickle.dumps(FeatureStore.open(store_path))
        for _ in range(3):
            FeatureStore.open(store_path).features("conv")
            pickle.loads(packed).features("conv")  # noqa: S301
    assert descriptors() == before


def test_no_descriptor_is_left_by_a_file_that_is_refused(path: Path, images: Path, tmp_path: Path) -> None:
    parts = parts_of(images, tmp_path / "parts", 10)
    with RowFile.open(parts / "03.h5") as file:
        place = file.header.columns["status"].offset
    for damaged, offset in (path, path.stat().st_size // 2), (parts / "03.h5", place):
        with damaged.open("r+b") as content:
            content.seek(offset)
            byte = content.read(1)[0]
            content.seek(offset)
            content.write(bytes([byte ^ 255]))
    with RowFile.open(path) as file, path.open("r+b") as content:
        content.seek(file.header.columns["status"].offset)
        content.write(b"\xff")
    before, refused = descriptors(), []
    for store_path in (path, parts) * 3:
        with pytest.raises(StoreError) as error:
            FeatureStore.open(store_path)
        refused.append(error)  # whoever keeps the error keeps no file open
    assert descriptors() == before


def test_a_store_that_is_replaced_all_the_time_always_opens(path: Path, images: Path, tmp_path: Path) -> None:
    with FeatureStore.open(path) as store:
        expected = store.features("conv").tobytes()
    extract(manifest_of(images), tmp_path / "other.h5")
    versions, stop = [path.read_bytes(), (tmp_path / "other.h5").read_bytes()], threading.Event()

    def replace() -> None:
        for number in itertools.count():
            (tmp_path / "next").write_bytes(versions[number % 2])
            (tmp_path / "next").replace(path)
            if stop.is_set():
                return

    replacing = threading.Thread(target=replace)
    replacing.start()
    try:
        for _ in range(50):
            with FeatureStore.open(path) as store:
                assert store.features("conv").tobytes() == expected
    finally:
        stop.set()
        replacing.join()


def test_unknown_names_are_told_the_nearest(path: Path, images: Path, tmp_path: Path) -> None:
    with FeatureStore.open(path) as store:
        for call, message in [
            (lambda: store.features("avgpol"), "no layer 'avgpol' (did you mean 'avgpool'?); known: avgpool, conv"),
            (lambda: store.features(), "has the layers avgpool, conv; say which one"),
            (lambda: store.arrays("conv"), "has the targets class, length; say which one"),
            (lambda: store.arrays("conv", target="clas"), "no target 'clas' (did you mean 'class'?)"),
            (lambda: store.select(split="trains"), "no split 'trains' (did you mean 'train'?); known: train"),
            (lambda: list(store.iter_blocks("conv", rows=0)), "rows=0"),
        ]:
            with pytest.raises(SettingsError) as refused:
                call()
            assert message in str(refused.value)
        for rows in [30], [-1]:
            with pytest.raises(IndexError, match="of a store of 30"):
                store.features("conv", np.array(rows))
    unlabelled = manifest_of(images)
    unlabelled.targets.clear()
    extract(unlabelled, tmp_path / "U.h5")
    with FeatureStore.open(tmp_path / "U.h5") as store:
        with pytest.raises(SettingsError, match="has no target; extract again with --labels"):
            store.arrays("conv")
        with pytest.raises(SettingsError, match="known: none"):
            store.arrays("conv", target="class")


def test_fingerprints_tell_what_was_learned_from(path: Path, images: Path, tmp_path: Path) -> None:
    with FeatureStore.open(path) as store:
        first = store.fingerprint
    extract(manifest_of(images), tmp_path / "again.h5")
    with FeatureStore.open(tmp_path / "again.h5") as store:
        assert store.fingerprint == first
    extract(manifest_of(images, flipped=frozenset(["00003.jpg"])), path)
    with FeatureStore.open(path) as store:
        assert store.fingerprint != first


def test_a_frame_has_everything(path: Path) -> None:
    with FeatureStore.open(path) as store:
        frame = store.frame("avgpool")
        assert frame.index.tolist() == store.ids
        assert frame["class"].cat.categories.tolist() == ["even", "odd"]
        assert frame["reason"].tolist() == store.reasons
        assert frame["sha256"].iloc[0] == store.sha256[0].tobytes().hex()
        features = frame[[f"avgpool.{number}" for number in range(24)]].to_numpy()
        np.testing.assert_array_equal(features, store.features("avgpool"))
        assert "avgpool.0" not in store.frame()


def test_a_frame_without_pandas_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with FeatureStore.open(path) as store, pytest.raises(StoreError, match="pip install pandas"):
        store.frame()


def test_a_store_that_was_replaced_is_not_mixed_with_the_new_one(path: Path, images: Path) -> None:
    store = FeatureStore.open(path)
    before = store.features("conv").tobytes()
    packed = pickle.dumps(store)
    assert pickle.loads(packed).features("conv").tobytes() == before  # noqa: S301
    store.close()
    extract(manifest_of(images, flipped=frozenset(["00003.jpg"])), path)
    with pytest.raises(StoreError, match="was replaced while it was being read; open the store again"):
        store.features("conv")
    with pytest.raises(StoreError, match="was replaced since this store was opened"):
        pickle.loads(packed)  # noqa: S301


def test_a_store_that_is_open_keeps_reading_the_file_that_it_opened(path: Path, images: Path) -> None:
    with FeatureStore.open(path) as store:
        classes = store.targets["class"].values
        extract(manifest_of(images, flipped=frozenset(["00003.jpg"])), path)
        np.testing.assert_array_equal(store.column("target/class"), classes)
