"""Single images of a source by id."""

from __future__ import annotations

import tarfile
from pathlib import Path

from pictures import encoded, photo

from pipeline.config import SourceSettings
from pipeline.files import digest_bytes
from pipeline.images.album import Album

PLAIN = SourceSettings()


def test_images_of_a_folder_and_of_a_table_are_found(photo_folder: Path) -> None:
    image = Album(str(photo_folder), PLAIN)("ants/000.jpg")
    assert image is not None
    assert image.size == (64, 48)
    table = photo_folder.parent / "table.csv"
    table.write_text("image,kind\nphotos/ants/000.jpg,ant\n")
    found = Album(str(table), PLAIN)("photos/ants/000.jpg")
    assert found is not None
    assert found.tobytes() == image.tobytes()


def test_what_is_missing_changed_or_no_image_is_left_out(photo_folder: Path) -> None:
    (photo_folder / "ants/bad.jpg").write_bytes(b"no image")
    same = digest_bytes((photo_folder / "ants/000.jpg").read_bytes())
    album = Album(str(photo_folder), PLAIN, contents={"ants/000.jpg": same, "ants/001.jpg": bytes(32)})
    assert album("ants/000.jpg") is not None
    assert [album(id) for id in ("ants/001.jpg", "ants/bad.jpg", "ants/none.jpg")] == [None, None, None]
    assert Album(str(photo_folder / "gone"), PLAIN)("ants/000.jpg") is None
    assert Album("torchvision:CIFAR10?root=none", PLAIN)("test/0") is None


def test_archives_are_read_only_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photo()))
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(tmp_path / "a.jpg", "ants/a.jpg")
    assert Album(str(tmp_path / "all.tar"), PLAIN)("ants/a.jpg") is None
    assert Album(str(tmp_path / "all.tar"), PLAIN, thorough=True)("ants/a.jpg") is not None


def test_large_photos_are_decoded_small(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photo(size=(2400, 1800))))
    image = Album(str(tmp_path), PLAIN)("a.jpg")
    assert image is not None
    assert image.size == (300, 225)
