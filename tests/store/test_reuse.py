"""What a later run computes again: new content alone."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cheap import (
    assert_rows_right,
    extract,
    manifest_of,
    open_writer,
    write_images,
)

from pipeline.errors import OutputExistsError
from pipeline.sources import Manifest, Target
from pipeline.store import FeatureStore, Source


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


def test_an_unfinished_file_that_is_not_wanted_any_more_goes(path: Path, images: Path) -> None:
    manifest = manifest_of(images)
    (images / "added.jpg").write_bytes(b"added")
    with open_writer(manifest_of(images), path):
        pass
    assert path.with_name("F.h5.partial").exists()
    assert extract(manifest, path) == []
    assert not path.with_name("F.h5.partial").exists()


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
