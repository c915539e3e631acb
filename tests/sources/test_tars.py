"""Tar files and shards of WebDataset, whole and damaged."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from listing import ids, labels, listed, make_shard, refusal
from pictures import encoded, photo


def test_a_tar_of_class_folders_is_like_the_folder(photo_folder: Path) -> None:
    path = photo_folder.parent / "photos.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(photo_folder, "photos")
    manifest = listed(path)
    assert labels(manifest) == ["ants"] * 6 + ["bees"] * 6
    assert manifest.records[0].id == "photos/ants/000.jpg"
    assert manifest.records[0].image.read(10**6) == (photo_folder / "ants/000.jpg").read_bytes()
    assert sorted(photo_folder.parent.iterdir()) == [photo_folder, path]


def test_webdataset_labels(tmp_path: Path) -> None:
    data = encoded(photo())
    members = {"b.jpg": data, "b.cls": b"10", "a.jpg": data, "a.cls": b"9\n", "c.jpg": data, "._c.jpg": b""}
    manifest = listed(make_shard(tmp_path / "a.tar", members))
    assert ids(manifest) == ["a.jpg", "b.jpg", "c.jpg"]
    assert manifest.targets["class"].names == ("9", "10")
    assert labels(manifest) == ["9", "10", None]


def test_webdataset_json(tmp_path: Path) -> None:
    data = encoded(photo())
    first = json.dumps({"label": "cat", "length": 12.5, "boxes": [1, 2]}).encode()
    second = json.dumps({"label": "dog", "length": None}).encode()
    members = {"x/a.json": first, "x/b.json": second}
    members |= dict.fromkeys(("x/a.left.jpg", "x/a.right.jpg", "x/b.jpg"), data)
    shard = make_shard(tmp_path / "a.tar", members)
    assert labels(listed(shard), "label") == ["cat", "cat", "dog"]
    lengths = listed(shard, target=("length",)).targets["length"].values
    assert np.array_equal(lengths, [12.5, 12.5, np.nan], equal_nan=True)
    assert "has no column 'lenght' (did you mean 'length'?)" in refusal(shard, target=("lenght",))


def test_a_folder_of_shards(tmp_path: Path) -> None:
    data = encoded(photo())
    for shard in range(3):
        make_shard(tmp_path / f"shard-{shard}.tar", {"0.jpg": data, "0.cls": str(shard).encode()})
    manifest = listed(tmp_path)
    assert ids(manifest) == ["shard-0/0.jpg", "shard-1/0.jpg", "shard-2/0.jpg"]
    assert labels(manifest) == ["0", "1", "2"]


def test_tars_that_are_refused(tmp_path: Path) -> None:
    data = encoded(photo())
    path = tmp_path / "a.tar"
    for name in ("../x.jpg", "/x.jpg", "a/../../x.jpg"):
        assert "which is not a path inside it" in refusal(make_shard(path, {name: data}))
    assert "holds no images" in refusal(make_shard(path, {"a.txt": b"x"}))
    assert "is there twice" in refusal(make_shard(path, {"a.jpg": data, "./a.jpg": data}))
    assert "is not a label" in refusal(make_shard(path, {"a.jpg": data, "a.json": b"[1]"}))
    assert "is not a label" in refusal(make_shard(path, {"a.jpg": data, "a.json": b"[" * 100_000}))
    assert "is not a label" in refusal(make_shard(path, {"a.jpg": data, "a.cls": b"\xff"}))
    with tarfile.open(path, "w:gz") as tar:
        tar.add(__file__, "a.jpg")
    assert "a compressed one must be unpacked" in refusal(path)
    path.write_bytes(b"")
    assert "is not a whole, plain tar file" in refusal(path)


def test_a_tar_that_was_cut_or_damaged_is_refused_rather_than_listed_in_part(tmp_path: Path) -> None:
    data = encoded(photo())
    path = make_shard(tmp_path / "a.tar", {f"{number}.jpg": data for number in range(4)})
    whole = path.read_bytes()
    step = 512 + -(-len(data) // 512) * 512
    for cut in (step * 4, step * 2, step * 2 + 100, step * 3 - 10):
        path.write_bytes(whole[:cut])
        assert "is not a whole, plain tar file" in refusal(path), cut
    damaged = bytearray(whole)
    damaged[step * 2 + 150] ^= 1  # the checksum of the third header
    path.write_bytes(damaged)
    assert f"damaged at byte {step * 2}" in refusal(path)
    path.write_bytes(whole + whole)
    assert "a second archive begins" in refusal(path)


def test_links_and_devices_in_a_tar_are_no_images(tmp_path: Path) -> None:
    data = encoded(photo())
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (
            ("s.jpg", tarfile.SYMTYPE),
            ("h.jpg", tarfile.LNKTYPE),
            ("f.jpg", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("real.jpg")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    assert ids(listed(tmp_path / "a.tar")) == ["real.jpg"]
