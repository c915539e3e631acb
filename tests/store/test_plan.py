"""What a run may take over, go on with or replace, and what it is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cheap import (
    LAYERS,
    extract,
    features_of,
    manifest_of,
    open_writer,
    recipe,
    write_images,
)

from pipeline.errors import OutputExistsError, RecipeMismatchError, SettingsError, StoreError, StoreLockedError
from pipeline.sources import Manifest
from pipeline.store import Part, Source, waiting_rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "other"}, "base='cheap', and 'other' is asked for"),
        ({"weights": "1" * 64}, "weights='000"),
        ({"transform": {"crop": 65}}, "transform.crop=[64, 64]"),
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
    with pytest.raises(SettingsError, match="holds a NUL"):
        waiting(tmp_path / "a\0b")
