from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pictures import photo, write_photos
from PIL import Image

from pipeline.errors import SourceError
from pipeline.images.augment import build_view
from pipeline.images.transform import InputTransform
from pipeline.progress import progress
from pipeline.sources import Manifest, read_manifest
from pipeline.training.batches import Feeder, Images, Indices, groups

TRANSFORM = InputTransform(resize=(40, 40), crop=(32, 32))
VIEW = build_view(["crop", "flip"], size=(32, 32), plain=np.asarray)
PLAIN_VIEW = build_view(["flip"], size=(32, 32), plain=np.asarray)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Ten files, of which 004 is no image."""
    write_photos(tmp_path, 10)
    (tmp_path / "004.jpg").write_bytes(b"not an image")
    return read_manifest(tmp_path)


def read(manifest: Manifest, *, room: int = 2**30, workers: int = 2) -> Images:
    images = Images(manifest.records, TRANSFORM, room=room)
    with progress(len(manifest), "reading", show=False) as bar:
        images.read(bar, workers=workers)
    return images


def good(images: Images) -> Indices:
    return np.array(sorted(images.sha256))


def epoch(
    images: Images, number: int, *, batch_size: int = 4, threads: int = 2, crops: bool = True
) -> dict[int, bytes]:
    """Pixels of every row of one epoch; targets are the row numbers themselves."""
    with Feeder(images, np.arange(10), batch_size=batch_size, seed=13, threads=threads) as feeder:
        passed = feeder.random(good(images), VIEW if crops else PLAIN_VIEW, number, crops=crops)
        return {
            row: image.tobytes() for images, rows in passed for row, image in zip(rows.tolist(), images, strict=True)
        }


def test_bad_images_are_named_and_never_replaced(manifest: Manifest) -> None:
    images = read(manifest)
    assert {index: error.reason for index, error in images.bad.items()} == {4: "not-an-image"}
    assert good(images).tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert list(epoch(images, 1)) != sorted(epoch(images, 1))
    assert sorted(epoch(images, 1)) == good(images).tolist()


def test_plain_pictures_are_what_the_base_sees_in_order(manifest: Manifest) -> None:
    images = read(manifest)
    with Feeder(images, np.arange(10) * 2, batch_size=4, seed=13, threads=2) as feeder:
        batches = list(feeder.plain(good(images), batch_size=5))
    assert [len(images) for images, _ in batches] == [5, 4]
    assert np.concatenate([rows for _, rows in batches]).tolist() == [0, 2, 4, 6, 10, 12, 14, 16, 18]
    with Image.open(manifest.records[5].image.where) as image:
        assert np.array_equal(batches[0][0][4], TRANSFORM.preprocess(image))


def test_an_epoch_depends_on_seed_and_number_alone(manifest: Manifest) -> None:
    first = epoch(read(manifest), 1)
    assert epoch(read(manifest, workers=1), 1, batch_size=2, threads=1) == first
    assert epoch(read(manifest, room=0), 1) == first
    second = epoch(read(manifest), 2)
    assert list(second) != list(first)
    assert all(second[row] != first[row] for row in first)


def test_the_first_images_are_those_of_the_first_batch_and_their_views(manifest: Manifest) -> None:
    images = read(manifest)
    with Feeder(images, np.arange(10), batch_size=4, seed=13, threads=2) as feeder:
        pixels, rows = next(feeder.random(good(images), VIEW, 3, crops=True))
        first = list(feeder.first(good(images), VIEW, 3, crops=True, most=3))
    assert [row for row, _ in first] == rows.tolist()[:3]
    assert all(np.array_equal(mine, theirs) for (_, mine), theirs in zip(first, pixels, strict=False))


def test_without_crops_a_view_is_made_of_what_the_base_sees(manifest: Manifest) -> None:
    images = read(manifest)
    found = epoch(images, 1, crops=False)
    straight = {row: images.preprocessed(row) for row in found}
    flipped = [row for row in found if found[row] == straight[row][:, ::-1].tobytes()]
    assert 0 < len(flipped) < 9
    assert all(found[row] == straight[row].tobytes() for row in found if row not in flipped)


def test_what_is_kept_is_bounded_by_the_room_there_is(manifest: Manifest) -> None:
    size = 64 * 48 * 3
    images = read(manifest, room=3 * size + 10)
    assert len(images._whole) == 3
    before = [images.preprocessed(row) for row in good(images).tolist()]
    with progress(len(good(images)), "preprocessing", show=False) as bar:
        images.keep_preprocessed(good(images), bar)
    assert not images._whole
    assert len(images._preprocessed) == 3, "those that are not held wait until they are asked for"
    for row, image in zip(good(images).tolist(), before, strict=True):
        assert np.array_equal(images.preprocessed(row), image)
    assert len(images._preprocessed) == min(9, (3 * size + 10) // (32 * 32 * 3))
    assert not images._whole


def test_what_another_process_read_is_kept_when_it_is_decoded(manifest: Manifest) -> None:
    images = Images(manifest.records, TRANSFORM, room=2**20)
    images.know(read(manifest).sha256, {})
    first = epoch(images, 1)
    assert len(images._whole) == 9
    for row in good(images).tolist():
        Path(manifest.records[row].image.where).unlink()
    assert epoch(images, 1) == first


def test_a_file_that_changes_while_training_is_an_error(manifest: Manifest) -> None:
    images = read(manifest, room=0)
    path = Path(manifest.records[0].image.where)
    photo(99).save(path)
    with pytest.raises(SourceError, match=r"000\.jpg was changed during training"):
        images.whole(0)
    path.unlink()
    with pytest.raises(SourceError, match=r"000\.jpg was deleted during training \(missing"):
        epoch(images, 1)


@pytest.mark.parametrize(
    ("rows", "size", "lengths"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1]), (4, 9, [4])],
)
def test_no_batch_of_one_row_is_left_at_the_end(rows: int, size: int, lengths: list[int]) -> None:
    parts = groups(np.arange(rows), size)
    assert [len(part) for part in parts] == lengths
    assert np.concatenate(parts).tolist() == list(range(rows))
