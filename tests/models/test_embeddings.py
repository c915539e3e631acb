"""A feature file as a table for viewers: each row is that image's, and neighbors are the nearest there are."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import cheap
import numpy as np
import pytest
from PIL import Image

import pipeline
from pipeline.errors import OutputExistsError, SettingsError, StoreError
from pipeline.models import embeddings
from pipeline.models.embeddings import write_embeddings
from pipeline.models.pictures import album_of
from pipeline.sources import Target
from pipeline.store import FeatureStore

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Features of 100 files, of which some are bad and none is an image."""
    cheap.write_images(tmp_path / "images", 100)
    cheap.extract(cheap.manifest_of(tmp_path / "images"), tmp_path / "many.h5")
    return tmp_path / "many.h5"


def written(path: Path, where: Path) -> tuple[embeddings.Written, list[dict[str, Any]]]:
    with FeatureStore.open(path) as store, where.open("wb") as file:
        said = write_embeddings(store, file, album_of(store))
    return said, parquet.read_table(where).to_pylist()


def test_rows_are_those_of_the_file(trained: Any, tmp_path: Path) -> None:
    said = pipeline.export(trained.store, tmp_path / "new" / "f.parquet")
    rows = parquet.read_table(tmp_path / "new" / "f.parquet").to_pylist()
    with FeatureStore.open(trained.store) as store:
        assert [row["id"] for row in rows] == store.ids
        assert [row["split"] for row in rows] == store.splits.tolist()
        classes = store.targets["class"]
        assert [row["class"] for row in rows] == [classes.names[code] for code in classes.values]
        np.testing.assert_array_equal([row["embedding"] for row in rows], store.features())
    assert said.to_json() == {
        "file": str(tmp_path / "new" / "f.parquet"),
        "rows": len(rows),
        "pictures": len(rows),
        "without_neighbors": False,
    }
    assert said.summary().endswith(f"{len(rows)} rows, {len(rows)} with a picture")
    for row in rows:
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            assert (image.format, image.mode, max(image.size) <= embeddings.THUMBNAIL) == ("JPEG", "RGB", True)
        assert row["image"]["path"] == row["id"]


def test_bad_images_have_no_row_and_lost_ones_no_picture(many: Path, tmp_path: Path) -> None:
    said, rows = written(many, tmp_path / "f.parquet")
    with FeatureStore.open(many) as store:
        good = store.select()
        assert 0 < len(good) < len(store)
        assert [row["id"] for row in rows] == [store.ids[number] for number in good]
        both = [store.features(layer, good).reshape(len(good), -1) for layer in store.layers]
    assert (said.rows, said.pictures) == (len(good), 0)
    assert {row["image"] for row in rows} == {None}
    np.testing.assert_array_equal([row["embedding"] for row in rows], np.concatenate(both, axis=1))


def test_neighbors_are_the_nearest(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "BLOCK", 7)
    _, rows = written(many, tmp_path / "f.parquet")
    features = np.array([row["embedding"] for row in rows], np.float64)
    features -= features.mean(axis=0)
    for layer in (slice(24), slice(24, None)):  # of like size
        features[:, layer] /= np.sqrt(np.square(features[:, layer]).sum())
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    distances = 1 - features @ features.T
    np.fill_diagonal(distances, np.inf)
    for number, row in enumerate(rows):
        wanted = np.sort(distances[number])[: embeddings.NEIGHBORS]
        np.testing.assert_allclose(distances[number, row["neighbors"]["ids"]], wanted, atol=1e-6)
        np.testing.assert_allclose(row["neighbors"]["distances"], wanted, atol=1e-6)


def test_what_does_not_fit_has_no_neighbors_and_a_map_by_components(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "HELD", 1000)
    monkeypatch.setattr(embeddings, "MAPPED", 40)
    said, rows = written(many, tmp_path / "f.parquet")
    assert said.without_neighbors
    assert {row["neighbors"] for row in rows} == {None}
    places = np.array([(row["x"], row["y"]) for row in rows])
    assert np.isfinite(places).all()
    assert (places.std(axis=0) > 0).all()


def test_near_images_are_near_on_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two heaps of features, far from one another, are two heaps on the map."""
    random = np.random.default_rng(0)
    heap = np.repeat([0.0, 30.0], 40)
    monkeypatch.setattr(cheap, "features_of", lambda content: of(int(content)))

    def of(number: int) -> dict[str, Any]:
        layer = random.normal(size=24) + heap[number]
        return {"avgpool": layer.astype(np.float32), "conv": np.zeros((2, 3), np.float16)}

    (tmp_path / "images").mkdir()
    for number in range(80):
        (tmp_path / "images" / f"{number:05}.jpg").write_bytes(b"%d" % number)
    cheap.extract(cheap.manifest_of(tmp_path / "images"), tmp_path / "f.h5")
    _, rows = written(tmp_path / "f.h5", tmp_path / "f.parquet")
    places = np.array([(row["x"], row["y"]) for row in rows])
    centres = np.array([places[heap == 0].mean(axis=0), places[heap > 0].mean(axis=0)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == (heap > 0)).all()


@pytest.mark.parametrize("count", [1, 2])
def test_few_images(count: int, tmp_path: Path) -> None:
    cheap.write_images(tmp_path / "images", count)
    cheap.extract(cheap.manifest_of(tmp_path / "images"), tmp_path / "f.h5")
    _, rows = written(tmp_path / "f.h5", tmp_path / "f.parquet")
    assert [row["neighbors"]["ids"] for row in rows] == [[1], [0]] if count == 2 else [[]]


def test_a_target_called_as_a_column_of_ours_keeps_its_own(tmp_path: Path) -> None:
    cheap.write_images(tmp_path / "images", 3)
    manifest = cheap.manifest_of(tmp_path / "images")
    targets = {"x": Target("x", np.array([9.0, 9.0, np.nan]))}
    cheap.extract(type(manifest)("images", manifest.records, targets), tmp_path / "f.h5")
    _, rows = written(tmp_path / "f.h5", tmp_path / "f.parquet")
    assert [row["target x"] for row in rows] == [9.0, 9.0, None]


def test_what_cannot_be_exported_says_so(trained: Any, many: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"f.onnx is no name of a Parquet file; give one that ends in .parquet"):
        pipeline.export(many, tmp_path / "f.onnx")
    with pytest.raises(SettingsError, match=r"m.parquet is no name of an ONNX file; give one that ends in .onnx"):
        pipeline.export(trained.ridge, tmp_path / "m.parquet")
    (tmp_path / "f.parquet").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"f.parquet exists already; give --force"):
        pipeline.export(many, tmp_path / "f.parquet")
    assert (tmp_path / "f.parquet").read_bytes() == b"mine"
    pipeline.export(many, tmp_path / "f.parquet", force=True)
    assert parquet.read_table(tmp_path / "f.parquet").num_rows > 80


def test_no_good_image_and_no_pyarrow(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"bad 1")
    cheap.extract(cheap.manifest_of(tmp_path / "bad"), tmp_path / "bad.h5")
    with pytest.raises(StoreError, match=r"bad.h5 has no image with features; nothing is there to export"):
        pipeline.export(tmp_path / "bad.h5", tmp_path / "f.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StoreError, match="a Parquet file needs pyarrow; install it with"):
        pipeline.export(many, tmp_path / "f.parquet")
    assert list(tmp_path.glob("*.parquet*")) == list(tmp_path.glob(".*")) == []
