"""Zip files that are read in place, whole ones and hostile ones."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from pathlib import Path

import pytest
from listing import ids, listed, refusal
from pictures import encoded, photo

from pipeline.errors import ImageError, SourceError


def make(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def data() -> dict[str, bytes]:
    return {f"{kind}/{n}.png": encoded(photo(n), "PNG") for kind in ("ants", "bees") for n in range(2)}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_images_and_classes_are_those_of_the_folder_that_was_packed(tmp_path: Path, method: int) -> None:
    more = {"__MACOSX/ants/0.png": b"x", "ants/.hidden.png": b"x", "readme.txt": b"x", "empty/": b""}
    manifest = listed(make(tmp_path / "a.zip", {**data(), **more}, method))
    assert ids(manifest) == sorted(data())
    assert manifest.targets["class"].names == ("ants", "bees")
    assert [record.image.read(10**6) for record in manifest.records] == [data()[name] for name in sorted(data())]


def test_splits_below_a_common_folder_and_names_of_windows(tmp_path: Path) -> None:
    split = {f"all/{part}/{name}": one for part in ("train", "val") for name, one in data().items()}
    manifest = listed(make(tmp_path / "a.zip", split))
    assert {record.split for record in manifest.records} == {"train", "val"}
    path = make(tmp_path / "w.zip", data())
    path.write_bytes(path.read_bytes().replace(b"ants/", b"ants\\").replace(b"bees/", b"bees\\"))
    assert ids(listed(path)) == sorted(data())


def test_what_stands_before_a_zip_does_not_matter(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", data())
    path.write_bytes(b"#!/bin/sh\n" * 50 + path.read_bytes())
    assert listed(path).records[0].image.read(10**6) == data()["ants/0.png"]


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "ants/../../a.png", "..\\a.png"])
def test_names_lead_nowhere(tmp_path: Path, name: str) -> None:
    assert "not a path inside it" in refusal(make(tmp_path / "a.zip", {name: encoded(photo())}))


def test_a_bomb_gives_what_it_said_at_most(tmp_path: Path) -> None:
    bomb = bytes(50_000_000)
    path = make(tmp_path / "a.zip", {"a.png": bomb})
    with pytest.raises(ImageError, match="too-large: 50000000 bytes"):
        listed(path).records[0].image.read(10**6)
    said = len(bomb).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(said, (1000).to_bytes(4, "little")))  # it says that it were small
    with pytest.raises(ImageError, match="not the bytes that were packed"):
        listed(path).records[0].image.read(10**6)


def test_members_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    link = zipfile.ZipInfo("link.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("lzma.png", encoded(photo()), zipfile.ZIP_LZMA)
    assert refusal(path).endswith("holds no images: left out members that cannot be read (link 1, lzma 1)")
    locked = make(tmp_path / "b.zip", {"a.png": encoded(photo(1)), "b.png": encoded(photo(2))})
    found = bytearray(locked.read_bytes())
    found[found.index(b"PK\1\2") + 8] |= 1
    locked.write_bytes(found)
    manifest = listed(locked)
    assert (ids(manifest), manifest.notices) == (["b.png"], ("left out members that cannot be read (encrypted 1)",))


def test_damage_is_a_reason_and_never_another_image(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", data())
    whole, wrong, whole_images = path.read_bytes(), 0, set(data().values())
    for at in range(0, len(whole), 997):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            for record in listed(path).records:
                wrong += record.image.read(10**7) not in whole_images
        except (SourceError, ImageError):
            continue
    assert wrong == 0
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "is not a whole zip file" in refusal(path)


def test_a_zip_that_was_replaced_is_an_error(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", data())
    manifest = listed(path)
    shutil.copy(make(tmp_path / "b.zip", data(), zipfile.ZIP_STORED), path)
    with pytest.raises(SourceError, match="was changed or replaced"):
        manifest.records[0].image.read(10**6)
    with pytest.raises(SourceError, match="was changed or replaced"):
        manifest.require_unchanged()


def test_a_stream_that_ends_early_is_damage(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"a.png": encoded(photo())})
    image = listed(path).records[0].image
    assert zlib.crc32(image.read(10**6)) == image.crc  # type: ignore[attr-defined]
