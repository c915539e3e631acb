"""`verify` on real images: everything right, and each thing that can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cheap import extract as cheap_extract
from cheap import manifest_of, open_writer, write_images
from pictures import write_photos

from pipeline.errors import BaseError, OutputExistsError, RecipeMismatchError, SourceError, StoreError
from pipeline.extraction import extract
from pipeline.manifest import Target
from pipeline.merging import merge
from pipeline.store import FeatureStore, Part, Source
from pipeline.verification import relative_difference, verify

OPTIONS: dict[str, Any] = {"base": "squeezenet1_1", "weights": "embedded", "layer": ("avgpool",)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos, one of them bad, and their store."""
    root = tmp_path_factory.mktemp("made")
    write_photos(root / "photos" / "a", 4)
    write_photos(root / "photos" / "b", 4, first_seed=10)
    (root / "photos" / "b" / "002.jpg").write_bytes(b"no photo")
    extract(root / "photos", root / "F.h5", **OPTIONS)
    return root


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed; the store still names the first folder."""
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


def test_a_good_store_verifies_and_recomputes_to_itself(made: Path) -> None:
    result = verify(made / "F.h5", recompute=100)
    assert result.problems == []
    assert result.recomputed == 7
    assert result.largest_difference < 1e-5
    assert "nothing is wrong; 7 rows recomputed" in result.summary()
    assert verify(made / "F.h5", recompute=3).recomputed == 3
    assert json.loads(json.dumps(result.to_json()))["ok"] is True


def test_views_and_half_precision_recompute(made: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "views": 2, "augment": ("crop", "flip"), "dtype": "float16"}
    extract(made / "photos", tmp_path / "V.h5", **options)
    with FeatureStore.open(tmp_path / "V.h5") as store:
        assert store.layers["avgpool"] == (3, 512)
    result = verify(tmp_path / "V.h5", recompute=7)
    assert (result.problems, result.recomputed) == ([], 7)
    assert 0 <= result.largest_difference < 2e-3


def test_images_that_are_not_what_they_were_are_named(made: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(made / "photos", photos)
    store = tmp_path / "F.h5"
    extract(photos, store, **OPTIONS)
    shutil.copy(photos / "a" / "001.jpg", photos / "a" / "002.jpg")
    (photos / "b" / "001.jpg").unlink()
    result = verify(store, recompute=7)
    assert result.recomputed == 5
    assert sorted(problem.split(" in ")[0].split(" is ")[0] for problem in result.problems) == [
        "a/002.jpg",
        "b/001.jpg",
    ]
    assert "2 problems; 5 rows recomputed" in result.summary()
    shutil.rmtree(photos)
    with pytest.raises(SourceError):
        verify(store, recompute=7)
    assert verify(store).ok


def test_other_weights_are_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeMismatchError, match="give the right file with --weights FILE"):
        verify(made / "F.h5", recompute=1, weights="none")
    with pytest.raises(BaseError):
        verify(made / "F.h5", recompute=1, weights=str(tmp_path / "gone.safetensors"))


def test_features_that_its_images_do_not_give_are_found(made: Path, tmp_path: Path) -> None:
    """A store whose every checksum is right, with one row that another program computed."""
    from pipeline.manifest import read_manifest
    from pipeline.store import LayerSpec, StoreWriter

    with FeatureStore.open(made / "F.h5") as store:
        features, sources = (
            store.features("avgpool"),
            list(zip(store.sizes, store.mtimes_ns, store.sha256, strict=True)),
        )
        good, recipe, environment = store.select(), store.recipe, store.environment
    features[good[2]] *= 1.001
    out = tmp_path / "F.h5"
    with StoreWriter.open(
        out,
        manifest=read_manifest(made / "photos"),
        layers=[LayerSpec("avgpool", (512,))],
        recipe=recipe,
        environment=environment,
    ) as writer:
        for row in range(8):
            size, mtime_ns, digest = sources[row]
            source = Source(int(size), int(mtime_ns), digest.tobytes())
            if row in good:
                writer.write([row], {"avgpool": features[[row]]}, [source])
            else:
                writer.fail(row, "not-an-image", source)
        writer.publish()
    assert verify(out).ok
    result = verify(out, recompute=7)
    assert len(result.problems) == 1
    assert "avgpool of a/002.jpg is off by 1.0e-03, more than 1e-04" in result.problems[0]
    assert result.largest_difference == pytest.approx(1e-3, rel=0.01)


def test_relative_difference() -> None:
    found = relative_difference(np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[1.0, 4.0], [0.0, 0.0]]))
    assert found.tolist() == [0.5, 0.0]


# --- what no writer gives, with right checksums


def test_rows_and_labels_that_no_writer_gives_are_found(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 10)
    manifest = manifest_of(tmp_path / "images")
    manifest.targets["class"] = Target("class", np.array([0, 1, 2, -2] + [0] * 6), ("even", "odd"))
    manifest.records[5] = type(manifest.records[5])(5, manifest.records[5].id, manifest.records[5].image, "practice")
    cheap_extract(manifest, tmp_path / "F.h5")
    problems = verify(tmp_path / "F.h5").problems
    assert [problem.partition(": ")[2] for problem in problems] == [
        "row 5 is of a split other than train, val and test",
        "row 2 and 1 more is of a class of class that has no name",
    ]


def test_rows_whose_content_is_unknown_or_that_are_another_list_are_found(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3)
    manifest = manifest_of(tmp_path / "images")
    rows = {"avgpool": np.ones((3, 24)), "conv": np.ones((3, 2, 3))}
    part = Part(start=0, stop=3, total=3, ids_sha256="0" * 64)
    with open_writer(manifest, tmp_path / "F.h5", part=part) as writer:
        writer.write(range(3), rows, [Source(1, 1, None)] * 3)
        writer.publish()
    problems = verify(tmp_path / "F.h5").problems
    assert [problem.partition(": ")[2] for problem in problems] == [
        "row 0 and 2 more is good, and the content of its image is not known",
        "the ids are not those of the list that the header names",
    ]


def test_an_unfinished_file_is_not_ok(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3)
    with open_writer(manifest_of(tmp_path / "images"), tmp_path / "F.h5") as writer:
        writer.fail(0, "empty")
    result = verify(tmp_path / "F.h5.partial")
    assert not result.ok
    with pytest.raises(StoreError, match="is not finished"):
        verify(tmp_path / "F.h5")
    with pytest.raises(StoreError, match="does not exist"):
        verify(tmp_path / "G.h5")


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_merge_does_not_overwrite(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 4)
    manifest = manifest_of(tmp_path / "images")
    ids = [record.id for record in manifest.records]
    for start in 0, 2:
        part = Part.of(ids, start, start + 2)
        cheap_extract(manifest.rows(start, start + 2), tmp_path / "parts" / f"{start}.h5", part=part)
    (tmp_path / "M.h5").write_text("precious")
    with pytest.raises(OutputExistsError, match="exists already; give --force to replace it"):
        merge([tmp_path / "parts"], tmp_path / "M.h5")
    assert (tmp_path / "M.h5").read_text() == "precious"
    assert merge([tmp_path / "parts"], tmp_path / "M.h5", force=True).rows == 4
    assert listing(tmp_path) == ["M.h5", "images", "parts"]
    assert cheap_extract(manifest, tmp_path / "M.h5") == []
