"""`verify` on real images: everything right, and each thing that can be wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cheap import extract as cheap_extract
from cheap import manifest_of, open_writer, write_images
from pictures import write_photos
from PIL import Image

from pipeline.commands.extract import extract
from pipeline.commands.verify import relative_difference, verify
from pipeline.errors import BaseError, RecipeMismatchError, SourceError, StoreError
from pipeline.sources import FileImage, Manifest, Record, Target
from pipeline.store import FeatureStore, LayerSpec, Part, Source

OPTIONS: dict[str, Any] = {"base": "squeezenet1_1", "weights": "embedded", "layer": ("avgpool",)}
LAYER = LayerSpec("avgpool", (512,))


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
    from pipeline.sources import read_manifest
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
        "row 2 (and 1 more) is of a class of class that has no name",
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
        "row 0 (and 2 more) is good, and the content of its image is not known",
        "the ids do not match the digest in the header",
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


# --- bad rows, and what a file says of itself


def store_with_a_bad_row(root: Path, reason: str) -> Path:
    """Four good photos of which the store keeps the second as bad, as one moment without memory makes it."""
    from pipeline.sources import read_manifest
    from pipeline.store import StoreWriter

    write_photos(root / "photos" / "a", 4)
    path = extract(root / "photos", root / "F.h5", **OPTIONS).store
    with FeatureStore.open(path) as store:
        features, recipe, environment, layers = store.features("avgpool"), store.recipe, store.environment, [LAYER]
        sources = [
            Source(int(size), int(mtime_ns), digest.tobytes())
            for size, mtime_ns, digest in zip(store.sizes, store.mtimes_ns, store.sha256, strict=True)
        ]
    path.unlink()
    manifest = read_manifest(root / "photos")
    with StoreWriter.open(path, manifest=manifest, layers=layers, recipe=recipe, environment=environment) as writer:
        writer.write([0, 2, 3], {"avgpool": features[[0, 2, 3]]}, [sources[0], *sources[2:]])
        writer.fail(1, reason, sources[1])
        writer.publish()
    return path


def test_a_bad_row_whose_image_is_good_today_is_named_and_rehash_mends_it(tmp_path: Path) -> None:
    path = store_with_a_bad_row(tmp_path, "too-large")
    assert verify(path).ok
    problems = verify(path, recompute=4).problems
    assert len(problems) == 1
    assert "a/001.jpg" in problems[0]
    assert "is kept as too-large and is good today; extract again with --rehash" in problems[0]
    assert extract(tmp_path / "photos", path, rehash=True, **OPTIONS).bad == {}
    assert verify(path, recompute=4).ok


@pytest.mark.parametrize("change", ["touch", "copy"])
def test_a_content_that_was_bad_once_is_looked_at_again(tmp_path: Path, change: str) -> None:
    path = store_with_a_bad_row(tmp_path, "too-large")
    photo = tmp_path / "photos" / "a" / "001.jpg"
    if change == "touch":
        os.utime(photo, ns=(1, 1))
    else:
        shutil.copy(photo, photo.with_name("copy.jpg"))
    bad = extract(tmp_path / "photos", path, **OPTIONS).bad
    assert bad == ({} if change == "touch" else {"a/001.jpg": "too-large"})


def test_one_moment_without_memory_is_tried_again(tmp_path: Path) -> None:
    path = store_with_a_bad_row(tmp_path, "unreadable")
    assert extract(tmp_path / "photos", path, **OPTIONS).bad == {}


def test_copies_of_a_bad_image_are_bad_in_the_same_run(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos" / "a", 2)
    for name in ("x.jpg", "y.jpg", "z.jpg"):
        (tmp_path / "photos" / "a" / name).write_bytes(b"no photo")
    result = extract(tmp_path / "photos", tmp_path / "F.h5", max_bad=1.0, **OPTIONS)
    assert result.bad == dict.fromkeys(("a/x.jpg", "a/y.jpg", "a/z.jpg"), "not-an-image")


def test_another_limit_of_pixels_looks_at_too_large_images_again(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos" / "a", 3)
    Image.new("RGB", (300, 200), "red").save(tmp_path / "photos" / "a" / "large.png")
    store = tmp_path / "F.h5"
    assert extract(tmp_path / "photos", store, max_pixels=50_000, **OPTIONS).bad == {"a/large.png": "too-large"}
    assert extract(tmp_path / "photos", store, max_pixels=50_000, **OPTIONS).computed == 0
    again = extract(tmp_path / "photos", store, **OPTIONS)
    assert (again.bad, again.computed) == ({}, 1)
    assert extract(tmp_path / "photos", store, max_pixels=50_000, **OPTIONS).computed == 0
    assert verify(store, recompute=4, max_pixels=50_000).problems[0].endswith("extract again with --rehash")


def test_another_depth_costs_nothing_and_is_verified_as_it_was_read(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos" / "2021" / "cat", 2)
    write_photos(tmp_path / "photos" / "2022" / "home" / "dog", 2, first_seed=5)
    store = tmp_path / "F.h5"
    assert extract(tmp_path / "photos", store, **OPTIONS).computed == 4
    assert extract(tmp_path / "photos", store, depth="any", **OPTIONS).computed == 0
    with FeatureStore.open(store) as opened:
        assert opened.targets["class"].names == ("cat", "dog")
        assert opened.environment.source == {"depth": "any"}
    assert verify(store, recompute=4).ok


def test_an_image_changed_at_equal_size_and_time_is_named_with_what_helps(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos" / "a", 3)
    photo = tmp_path / "photos" / "a" / "001.jpg"
    store = extract(tmp_path / "photos", tmp_path / "F.h5", **OPTIONS).store
    before = photo.stat()
    photo.write_bytes(photo.read_bytes()[:-3] + b"x\xff\xd9")
    os.utime(photo, ns=(before.st_atime_ns, before.st_mtime_ns))
    (problem,) = verify(store, recompute=3).problems
    assert problem.endswith("was changed after it was extracted; extract again with --rehash")
    extract(tmp_path / "photos", store, rehash=True, **OPTIONS)
    assert verify(store, recompute=3).ok


def forged(path: Path, **changes: Any) -> Path:
    """The store with other values in its header, under a right checksum."""
    with FeatureStore.open(path) as store:
        features, recipe, environment = store.features("avgpool"), store.recipe, store.environment
    out = path.with_name("forged.h5")
    recipe = recipe.model_copy(update=changes.pop("recipe", {}))
    manifest = Manifest(changes.pop("source"), [Record(0, "a.jpg", FileImage("a.jpg"), "")], {})
    from pipeline.store import StoreWriter

    with StoreWriter.open(
        out, manifest=manifest, layers=[LayerSpec("avgpool", (512,))], recipe=recipe, environment=environment
    ) as writer:
        writer.write([0], {"avgpool": features[:1]}, [Source(1, 1, b"1" * 32)])
        writer.publish()
    return out


def test_a_source_that_only_the_file_names_is_not_fetched(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "F.h5", tmp_path / "F.h5")
    target = tmp_path / "downloads"
    store = forged(tmp_path / "F.h5", source=f"torchvision:FakeData?root={target}&download=true&size=1")
    with pytest.raises(SourceError, match=r"is not fetched; say where its images are with --source"):
        verify(store, recompute=1)
    assert not target.exists()
    moved = tmp_path / "moved"
    shutil.copytree(made / "photos", moved)
    shutil.rmtree(tmp_path / "gone", ignore_errors=True)
    assert verify(tmp_path / "F.h5", recompute=7, source=str(moved)).ok


def test_what_this_version_cannot_vouch_for_is_a_problem(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "F.h5", tmp_path / "F.h5")
    store = forged(tmp_path / "F.h5", source="photos", recipe={"version": 99, "pixels": 99})
    problems = " ".join(verify(store).problems)
    assert "its recipe is of version 99" in problems
    assert "under policy 99" in problems


def test_a_recipe_of_absurd_size_is_refused(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "F.h5", tmp_path / "F.h5")
    with FeatureStore.open(tmp_path / "F.h5") as opened:
        transform = {**opened.recipe.transform, "crop": [8192, 8192], "resize": [8192, 8192]}
    store = forged(tmp_path / "F.h5", source=str(made / "photos"), recipe={"transform": transform})
    with pytest.raises(BaseError, match="crop of an input transform is at most"):
        verify(store, recompute=1)
