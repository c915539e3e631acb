"""The store's own promises: layout, reuse, reading, names, PyTorch and pandas."""

from __future__ import annotations

import gc
import itertools
import json
import os
import pickle
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cheap import (
    LAYERS,
    assert_rows_right,
    extract,
    features_of,
    manifest_of,
    open_writer,
    recipe,
    write_images,
)

from pipeline.errors import OutputExistsError, RecipeMismatchError, SettingsError, StoreError, StoreLockedError
from pipeline.sources import FileImage, Manifest, Record, Target
from pipeline.store import FeatureStore, LayerSpec, Part, Source, StoreWriter, is_store, part_range, waiting_rows
from pipeline.store.header import dataset_name, decode_texts, encode_texts, escape, unescape
from pipeline.store.rows import RowFile


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 30)
    return tmp_path / "images"


@pytest.fixture
def path(images: Path, tmp_path: Path) -> Path:
    extract(manifest_of(images), tmp_path / "F.h5")
    return tmp_path / "F.h5"


# --- the file


def test_plain_h5py_reads_the_whole_layout(path: Path, images: Path) -> None:
    manifest = manifest_of(images)
    with h5py.File(path, "r") as file:
        assert file.attrs["format"] == "pipeline-features"
        assert file.attrs["format_version"] == 1
        assert json.loads(file.attrs["recipe"])["base"] == "cheap"
        assert file.attrs["recipe_sha256"] == recipe().fingerprint()
        assert json.loads(file.attrs["environment"]) == {"by": "cheap"}
        assert file["id"].asstr()[:].tolist() == [record.id for record in manifest.records]
        assert file["split"].asstr()[:].tolist() == [record.split for record in manifest.records]
        assert file["target/class"].attrs["names"].tolist() == ["even", "odd"]
        np.testing.assert_array_equal(file["target/class"][:], manifest.targets["class"].values)
        np.testing.assert_array_equal(file["target/length"][:], manifest.targets["length"].values)
        assert file["status"].attrs["names"].tolist()[:4] == ["pending", "good", "missing", "unreadable"]
        assert file["features/avgpool"].shape == (30, 24)
        assert file["features/avgpool"].dtype == np.float32
        assert file["features/conv"].shape == (30, 2, 3)
        assert file["features/conv"].dtype == np.float16
        assert file["source/sha256"].shape == (30, 32)
        assert file["source/size"][0] == 1
        assert file["checksum/features/avgpool"].attrs["rows"] == 2730
        assert file["features/avgpool"].chunks is None
    assert assert_rows_right(path, manifest) == 30


def test_a_hundred_thousand_class_names_fit(images: Path, tmp_path: Path) -> None:
    manifest = manifest_of(images)
    names = tuple(f"class number {number}" for number in range(100_000))
    manifest.targets["class"] = Target("class", np.arange(30), names)
    extract(manifest, tmp_path / "F.h5")
    with FeatureStore.open(tmp_path / "F.h5") as store:
        assert store.targets["class"].names == names
    with h5py.File(tmp_path / "F.h5") as file:
        assert file["target/class"].attrs["names"].tolist() == list(names)


@pytest.mark.parametrize(
    "name",
    [
        *("plain", "-n", "a\nb\t", "ünï/çödé.jpg", os.fsdecode(b"caf\xe9.jpg"), "\\", "\\u0041", "\0", "a\0"),
        *("\ud800x", "n" * 255, " ", "..", "\\\\\\u", "𝕏"),
    ],
)
def test_any_name_survives(name: str, tmp_path: Path) -> None:
    assert unescape(escape(name)) == name
    assert decode_texts(encode_texts([name, "other"])) == [name, "other"]
    assert escape(name).encode("utf-8")
    file = tmp_path / "image"
    file.write_bytes(b"x")
    target = Target(name, np.array([0]), (name,))
    manifest = Manifest(name, [Record(0, name, FileImage(str(file)), "")], {name: target})
    out = tmp_path / "F.h5"
    with StoreWriter.open(
        out, manifest=manifest, layers=[LayerSpec(name, (2,))], recipe=recipe(), environment={}
    ) as writer:
        writer.write([0], {name: np.ones((1, 2))}, [Source(1, 1, bytes(31) + b"1")])
        writer.publish()
    with FeatureStore.open(out) as store:
        assert (store.ids, store.layers, store.source) == ([name], {name: (2,)}, name)
        assert store.targets[name].names == (name,)
        assert store.features(name).tolist() == [[1, 1]]
    with h5py.File(out) as written:
        assert unescape(written["id"].asstr()[0]) == name
        assert list(written["features"]) == [dataset_name(name)]


def test_a_name_that_is_a_dot_or_empty() -> None:
    assert dataset_name(".") == "\\u002e"
    assert unescape(dataset_name("a/b")) == "a/b"
    with pytest.raises(SettingsError, match="needs a name"):
        dataset_name("")


# --- what is computed again


def test_a_second_run_computes_and_writes_nothing(path: Path, images: Path) -> None:
    before = (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
    with open_writer(manifest_of(images), path) as writer:
        assert len(writer.pending) == 0
        assert writer.bad() == {"00004.jpg": "corrupt", "00022.jpg": "corrupt", "00027.jpg": "corrupt"}
        assert writer.publish() == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) == before
    assert sorted(left.name for left in path.parent.iterdir()) == ["F.h5", "images"]


def test_equal_content_is_computed_once(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 30)
    computed = extract(manifest_of(tmp_path / "images"), tmp_path / "F.h5")
    assert len(computed) == 30 - 4
    assert assert_rows_right(tmp_path / "F.h5", manifest_of(tmp_path / "images")) == 30


def test_only_new_content_is_computed(path: Path, images: Path) -> None:
    (images / "00001.jpg").rename(images / "renamed.jpg")
    (images / "00002.jpg").unlink()
    (images / "00003.jpg").write_bytes(b"changed")
    (images / "added.jpg").write_bytes(b"added")
    shutil.copy(images / "00005.jpg", images / "copied.jpg")
    os.utime(images / "00007.jpg", ns=(5, 5))
    manifest = manifest_of(images)
    assert extract(manifest, path) == ["00003.jpg", "added.jpg"]
    assert assert_rows_right(path, manifest) == len(manifest) == 31
    assert extract(manifest, path) == []


def test_two_files_that_swap_names_are_not_computed(path: Path, images: Path) -> None:
    (images / "00001.jpg").rename(images / "away")
    (images / "00002.jpg").rename(images / "00001.jpg")
    (images / "away").rename(images / "00002.jpg")
    os.utime(images / "00001.jpg", ns=(5, 5))
    os.utime(images / "00002.jpg", ns=(6, 6))
    assert extract(manifest_of(images), path) == []
    assert assert_rows_right(path, manifest_of(images)) == 30


def test_labels_change_without_computing(path: Path, images: Path) -> None:
    manifest = manifest_of(images, flipped=frozenset(["00003.jpg"]))
    assert extract(manifest, path) == []
    with FeatureStore.open(path) as store:
        np.testing.assert_array_equal(store.targets["class"].values, manifest.targets["class"].values)
    manifest.targets["weight"] = Target("weight", np.arange(30.0), None)
    del manifest.targets["length"]
    assert extract(manifest, path) == []
    with FeatureStore.open(path) as store:
        assert list(store.targets) == ["class", "weight"]


def test_rehash_reads_every_image_and_computes_only_what_changed(path: Path, images: Path) -> None:
    stat = (images / "00003.jpg").stat()
    (images / "00003.jpg").write_bytes(b"Y")  # as long as before, and made to look as old
    os.utime(images / "00003.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert extract(manifest_of(images), path) == []
    bad = ["00004.jpg", "00022.jpg"]  # content that was bad once is not believed to be so for ever
    assert extract(manifest_of(images), path, rehash=True) == ["00003.jpg", *bad]
    assert assert_rows_right(path, manifest_of(images)) == 30


def test_force_computes_everything(path: Path, images: Path) -> None:
    assert len(extract(manifest_of(images), path, force=True)) == 26


def test_an_unfinished_update_goes_on_in_place(path: Path, images: Path) -> None:
    write_images(images, 20, first=50)
    manifest = manifest_of(images)
    with open_writer(manifest, path) as writer:
        assert len(writer.pending) == 20
        index = int(writer.pending[0])
        content = manifest.records[index].image.read(100)
        layers = {name: value[None] for name, value in features_of(content).items()}
        writer.write([index], layers, [Source(*manifest.records[index].image.stat(), b"1" * 32)])
    inode = path.with_name("F.h5.partial").stat().st_ino
    with open_writer(manifest, path) as writer:
        assert len(writer.pending) == 19
        assert path.with_name("F.h5.partial").stat().st_ino == inode
    (images / "00055.jpg").unlink()
    with open_writer(manifest_of(images), path) as writer:
        assert len(writer.pending) == 18
        assert path.with_name("F.h5.partial").stat().st_ino != inode


def test_an_unfinished_file_that_is_not_wanted_any_more_goes(path: Path, images: Path) -> None:
    manifest = manifest_of(images)
    (images / "added.jpg").write_bytes(b"added")
    with open_writer(manifest_of(images), path):
        pass
    assert path.with_name("F.h5.partial").exists()
    assert extract(manifest, path) == []
    assert not path.with_name("F.h5.partial").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "other"}, "base='cheap', and 'other' is asked for"),
        ({"weights": "1" * 64}, "weights='000"),
        ({"transform": {"crop": 65}}, "transform.crop=64"),
        ({"precision": "bf16"}, "precision='fp32'"),
        ({"views": 2}, "views=0, and 2"),
        ({"pixels": 2}, "pixels=1, and 2"),
        ({"pool": "avg"}, "pool='none'"),
    ],
)
def test_another_recipe_is_refused_with_the_first_difference(
    path: Path, images: Path, change: dict[str, Any], message: str
) -> None:
    before = path.read_bytes()
    with pytest.raises(RecipeMismatchError) as refused:
        extract(manifest_of(images), path, recipe=recipe(**change))
    assert message in str(refused.value)
    assert str(refused.value).endswith("; give --force to start anew, or another -o")
    assert path.read_bytes() == before
    assert extract(manifest_of(images), path) == []


def test_a_forced_run_that_was_killed_goes_on_without_force(path: Path, images: Path) -> None:
    manifest, other = manifest_of(images), recipe(base="other")
    with open_writer(manifest, path, recipe=other, force=True) as writer:
        writer.fail(0, "corrupt", Source(*manifest.records[0].image.stat(), None))
    with open_writer(manifest, path, recipe=other) as writer:
        assert len(writer.pending) == len(manifest) - 1
    with pytest.raises(RecipeMismatchError, match=r"F\.h5\.partial was made with base='other'"):
        extract(manifest, path)


def start(path: Path, manifest: Manifest, **options: Any) -> int:
    """Begin and compute one row; returns how many were known. As a kill would, it leaves an unfinished file."""
    with open_writer(manifest, path, **options) as writer:
        known = len(manifest) - len(writer.pending)
        index = int(writer.pending[-1])
        source = Source(*manifest.records[index].image.stat(), bytes([index] * 32))
        content = manifest.records[index].image.read(100)
        writer.write([index], {name: value[None] for name, value in features_of(content).items()}, [source])
        return known


def test_a_forced_run_that_was_killed_goes_on_with_force(path: Path, images: Path) -> None:
    manifest, other = manifest_of(images), recipe(base="other")
    assert start(path, manifest, force=True) == 0
    assert start(path, manifest, force=True) == 1
    (images / "00007.jpg").write_bytes(b"changed")  # a new file is begun with what the forced run had
    changed = manifest_of(images)
    assert start(path, changed, force=True) == 2
    assert waiting_rows(path, manifest=changed, layers=LAYERS, recipe=recipe(), force=True).size == 27
    assert start(path, changed, force=True, recipe=other) == 0, "of another recipe: anew"
    once = len(extract(changed, path, force=True, recipe=other))
    assert len(extract(changed, path, force=True, recipe=other)) == once + 1, "that run is over; this is the next"


def test_what_a_run_without_force_began_is_not_gone_on_with_by_force(path: Path, images: Path) -> None:
    write_images(images, 5, first=90)
    assert start(path, manifest_of(images)) == 30
    assert start(path, manifest_of(images), force=True) == 0


def test_most_rows_of_other_images_go_only_by_force(path: Path, images: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "others", 4, first=200)
    others = replace(manifest_of(tmp_path / "others"), source="others")
    before = path.read_bytes()
    message = r"F\.h5 has 27 images of images, and 27 of them are not among the 4 of others; give --force .* another -o"
    options: dict[str, Any] = {"layers": LAYERS, "recipe": recipe()}
    with pytest.raises(OutputExistsError, match=message):
        extract(others, path)
    with pytest.raises(OutputExistsError, match=message):
        waiting_rows(path, manifest=others, **options)
    assert path.read_bytes() == before
    assert sorted(left.name for left in tmp_path.iterdir()) == ["F.h5", "images", "others"]
    assert waiting_rows(path, manifest=others, force=True, **options).tolist() == [0, 1, 2, 3]
    assert start(path, others, force=True) == 0
    assert start(path, others) == 1, "it was asked for once"
    with open_writer(manifest_of(images), path) as writer:  # and back: the finished file is as it was
        assert (writer.pending.size, writer.dropped) == (0, 2)
        writer.publish()
    assert path.read_bytes() == before
    assert len(extract(others, path, force=True)) == 4


def test_rows_that_go_are_counted(path: Path, images: Path, tmp_path: Path) -> None:
    def dropped(manifest: Manifest) -> int:
        with open_writer(manifest, path) as writer:
            return int(writer.dropped)

    manifest = manifest_of(images)
    ids = [record.id for record in manifest.records]
    assert dropped(manifest) == 0
    assert dropped(manifest_of(images, flipped=frozenset(ids[:3]))) == 0, "labels only"
    write_images(images, 5, first=90)
    assert dropped(manifest_of(images)) == 0, "a folder that grows"
    assert dropped(manifest.rows(0, 10)) == 17, "part of it away for a moment: 20 rows, of which 3 are bad"
    (images / "00001.jpg").rename(images / "renamed.jpg")
    assert extract(manifest_of(images), path) == [f"000{number}.jpg" for number in (90, 91, 92, 93, 94)]
    with open_writer(manifest_of(images), path) as writer:
        assert writer.dropped == 0


def test_the_same_images_from_elsewhere_are_no_others(path: Path, images: Path, tmp_path: Path) -> None:
    """Moved, renamed, listed by a table: the ids differ, and the files are the same."""
    images.rename(tmp_path / "moved")
    manifest = replace(manifest_of(tmp_path / "moved"), source="moved")

    def renamed(stop: int, source: str) -> Manifest:
        part = manifest.rows(0, stop)
        records = [replace(record, id=f"{source}/{record.id}") for record in part.records]
        return replace(part, records=records, source=source)

    assert extract(renamed(30, "moved"), path) == ["moved/00004.jpg", "moved/00022.jpg"], "bad ones are looked at again"
    assert extract(renamed(16, "half"), path) == ["half/00004.jpg"]
    with pytest.raises(OutputExistsError, match="has 15 images of half, and 13 of them are not among the 2 of few"):
        extract(renamed(2, "few"), path)


def test_another_part_does_not_take_the_place_of_one(images: Path, tmp_path: Path) -> None:
    manifest = manifest_of(images)
    ids = [record.id for record in manifest.records]
    path = tmp_path / "F.h5"
    extract(manifest.rows(0, 15), path, part=Part.of(ids, 0, 15))
    with pytest.raises(OutputExistsError, match="and 14 of them are not among the 15 of images"):
        extract(manifest.rows(15, 30), path, part=Part.of(ids, 15, 30))
    assert extract(manifest, path) != []


def test_what_would_be_read_is_known_without_writing(path: Path, images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"layers": LAYERS, "recipe": recipe()}

    def waiting(output: Path = path, **changes: Any) -> list[int]:
        before = {left: left.stat().st_mtime_ns for left in tmp_path.rglob("*")}
        found = waiting_rows(output, **{"manifest": manifest_of(images), **options, **changes}).tolist()
        assert {left: left.stat().st_mtime_ns for left in tmp_path.rglob("*")} == before
        return found

    assert waiting() == []
    assert waiting(rehash=True) == waiting(force=True) == waiting(tmp_path / "deep" / "G.h5") == list(range(30))
    write_images(images, 5, first=90)
    (images / "00003.jpg").write_bytes(b"changed")
    expected = [3, *range(30, 35)]
    assert waiting() == expected
    with open_writer(manifest_of(images), path) as writer:
        assert writer.pending.tolist() == expected
        with pytest.raises(StoreLockedError, match=f"process {os.getpid()} "):
            waiting()
    assert waiting() == expected, "an unfinished file"
    with pytest.raises(RecipeMismatchError, match="base='cheap'"):
        waiting(recipe=recipe(base="other"))
    with pytest.raises(OutputExistsError, match="images is a folder"):
        waiting(images)
    with pytest.raises(StoreError, match=r"cannot be written: Not a directory \(.*00001\.jpg\)"):
        waiting(images / "00001.jpg" / "G.h5")
    with pytest.raises(SettingsError, match="has a NUL in it"):
        waiting(tmp_path / "a\0b")


def test_rows_that_could_not_be_read_are_tried_again(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "F.h5"
    manifest = manifest_of(images, missing=["gone.jpg"])
    assert "gone.jpg" not in extract(manifest, path)
    with FeatureStore.open(path) as store:
        assert store.reasons[store.ids.index("gone.jpg")] == "missing"
        assert store.sizes[store.ids.index("gone.jpg")] == -1
    assert extract(manifest, path) == []
    (images / "gone.jpg").write_bytes(b"found")
    assert extract(manifest_of(images), path) == ["gone.jpg"]


def test_a_file_that_was_unreadable_is_tried_again_though_it_looks_the_same(images: Path, tmp_path: Path) -> None:
    manifest = manifest_of(images).rows(0, 2)
    with open_writer(manifest, tmp_path / "F.h5") as writer:
        writer.fail(0, "unreadable", Source(*manifest.records[0].image.stat(), None))
        writer.fail(1, "corrupt", Source(*manifest.records[1].image.stat(), None))
        writer.publish()
    assert extract(manifest, tmp_path / "F.h5") == ["00000.jpg"]


def test_what_is_not_finite_is_a_bad_row(images: Path, tmp_path: Path) -> None:
    manifest = manifest_of(images).rows(0, 4)
    values = np.ones((4, 24), np.float32)
    maps = np.ones((4, 2, 3), np.float32)
    values[1, 3], maps[2, 1, 1] = np.nan, 70_000  # more than float16 holds
    sources = [Source(1, 1, bytes([number] * 32)) for number in range(1, 5)]
    with open_writer(manifest, tmp_path / "F.h5") as writer:
        writer.write(range(4), {"avgpool": values, "conv": maps}, sources)
        writer.publish()
    with FeatureStore.open(tmp_path / "F.h5") as store:
        assert store.reasons == ["", "non-finite", "non-finite", ""]
        assert np.isnan(store.features("avgpool", np.array([1, 2]))).all()
        assert store.select().tolist() == [0, 3]


def test_misuse_is_refused(images: Path, tmp_path: Path) -> None:
    manifest = manifest_of(images)
    rows = {"avgpool": np.zeros((1, 24)), "conv": np.zeros((1, 2, 3))}
    source = [Source(1, 1, None)]
    with open_writer(manifest, tmp_path / "F.h5") as writer:
        with pytest.raises(SettingsError, match=r"layer avgpool: \(1, 25\) given"):
            writer.write([0], {**rows, "avgpool": np.zeros((1, 25))}, source)
        with pytest.raises(SettingsError, match="holds the layers"):
            writer.write([0], {"avgpool": rows["avgpool"]}, source)
        with pytest.raises(KeyError, match="no row has the content of row 3"):
            writer.adopt(3, Source(1, 1, b"?" * 32))
        writer.write([0], rows, source)
        with pytest.raises(ValueError, match="never written again"):
            writer.write([0], rows, source)
        with pytest.raises(StoreError, match=r"29 rows of .* are not computed yet"):
            writer.publish()
    empty = Manifest("nothing", [], {})
    with pytest.raises(StoreError, match="at least one image"):
        extract(empty, tmp_path / "E.h5")
    twice = Manifest("twice", [manifest.records[0]] * 2, {})
    with pytest.raises(StoreError, match=r"the id '00000.jpg' stands for two images"):
        extract(twice, tmp_path / "E.h5")
    with pytest.raises(SettingsError, match=r"30 rows are not rows 0 to 10"):
        extract(manifest, tmp_path / "E.h5", part=Part.of([record.id for record in manifest.records], 0, 10))
    for spec in LayerSpec("a", (0,)), LayerSpec("a", (2,), "float64"):
        with (
            pytest.raises(SettingsError, match="cannot be a row of features"),
            StoreWriter.open(tmp_path / "E.h5", manifest=manifest, layers=[spec], recipe=recipe(), environment={}),
        ):
            pass
    assert sorted(left.name for left in tmp_path.iterdir()) == ["F.h5.partial", "images"]


def test_a_hundred_thousand_rows_with_nothing_to_do_take_seconds(tmp_path: Path) -> None:
    image = tmp_path / "image.jpg"
    image.write_bytes(b"same")
    names = [f"class{number % 10}/{number:06}.jpg" for number in range(100_000)]
    records = [Record(index, name, FileImage(str(image)), "") for index, name in enumerate(names)]
    manifest = Manifest("many", records, {"class": Target("class", np.arange(100_000) % 10, tuple("abcdefghij"))})
    layers = [LayerSpec("avgpool", (8,))]
    opened = {"manifest": manifest, "layers": layers, "recipe": recipe(), "environment": {}}
    size, mtime_ns = records[0].image.stat()
    source = Source(size, mtime_ns, b"x" * 32)
    with StoreWriter.open(tmp_path / "F.h5", **opened) as writer:
        for start in range(0, 100_000, 5000):
            rows = {"avgpool": np.ones((5000, 8))}
            writer.write(range(start, start + 5000), rows, [source] * 5000)
        writer.publish()
    stamp = (tmp_path / "F.h5").stat().st_mtime_ns
    started = time.process_time()
    with StoreWriter.open(tmp_path / "F.h5", **opened) as writer:
        assert len(writer.pending) == 0
        writer.publish()
    assert time.process_time() - started < 5
    assert (tmp_path / "F.h5").stat().st_mtime_ns == stamp


# --- reading


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


def test_a_writer_takes_rows_that_there_are(images: Path, tmp_path: Path) -> None:
    """A row before the first would lie in another column."""
    source = [Source(1, 1, None)]
    with open_writer(manifest_of(images), tmp_path / "F.h5") as writer:
        before = writer.path.with_name("F.h5.partial").read_bytes()
        rows = {"avgpool": np.ones((1, 24)), "conv": np.ones((1, 2, 3))}
        for index in -1, 30:
            with pytest.raises(IndexError, match="of a store of 30"):
                writer.write([index], rows, source)
            with pytest.raises(IndexError, match="of a store of 30"):
                writer.fail(index, "empty")
        with pytest.raises(SettingsError, match="choose nothing"):
            writer.write([0.0], rows, source)  # type: ignore[list-item]
        assert writer.path.with_name("F.h5.partial").read_bytes() == before


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


def test_is_store(path: Path, images: Path, tmp_path: Path) -> None:
    assert is_store(path)
    assert is_store(path.parent)
    assert not is_store(images)
    assert not is_store(images / "00001.jpg")
    assert not is_store(tmp_path / "nowhere")


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


# --- ranges


def test_parts_cover_every_row_once() -> None:
    for total in 1, 7, 100:
        for of in range(1, total + 1):
            ranges = [part_range(total, part=f"{number}/{of}") for number in range(1, of + 1)]
            assert [row for start, stop in ranges for row in range(start, stop)] == list(range(total))
    assert part_range(10) == (0, 10)
    assert part_range(10, rows="2:5") == (2, 5)
    assert part_range(10, rows=":5") == (0, 5)
    assert part_range(10, rows="5:") == (5, 10)


@pytest.mark.parametrize(
    "wrong",
    [{"part": text} for text in ("0/8", "9/8", "1/11", "a/b", "1", "1/0", "-1/8")]
    + [{"rows": text} for text in ("5:5", "6:5", "0:11", "a", "5", "::", "-1:3")]
    + [{"rows": "0:1", "part": "1/2"}],
)
def test_ranges_that_are_none_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(SettingsError):
        part_range(10, **wrong)


def test_layers_of_the_tests_are_those_of_the_recipe() -> None:
    assert tuple(layer.name for layer in LAYERS) == recipe().layers
