"""The writer takes rows that there are, each once, and says what is missing."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from cheap import (
    extract,
    features_of,
    manifest_of,
    open_writer,
    recipe,
    write_images,
)

from pipeline.errors import SettingsError, StoreError
from pipeline.sources import FileImage, Manifest, Record, Target
from pipeline.store import Environment, FeatureStore, LayerSpec, Part, Source, StoreWriter


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
            StoreWriter.open(
                tmp_path / "E.h5", manifest=manifest, layers=[spec], recipe=recipe(), environment=Environment()
            ),
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
    opened = {"manifest": manifest, "layers": layers, "recipe": recipe(), "environment": Environment()}
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
