"""What every kind of source keeps, and how the kind is told."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from listing import ids, listed, make_parquet, make_torchvision, refusal, table
from pictures import encoded, photo, write_photos

from pipeline.errors import ImageError, SourceError
from pipeline.images.decoding import decode
from pipeline.sources import SOURCES, from_paths


def make_folder(root: Path) -> str:
    write_photos(root / "photos" / "ants", 2)
    write_photos(root / "photos" / "bees", 2, first_seed=9)
    return str(root / "photos")


def make_csv(root: Path) -> str:
    make_folder(root)
    rows = "".join(f"photos/{name}/00{n}.jpg,{name}\n" for name in ("bees", "ants") for n in (1, 0))
    return str(table(root, "image,class\n" + rows))


def make_list(root: Path) -> str:
    make_folder(root)
    return str(table(root, "photos/bees/000.jpg\nphotos/ants/001.jpg\n", "photos.txt"))


def make_tar(root: Path) -> str:
    make_folder(root)
    with tarfile.open(root / "photos.tar", "w") as tar:
        tar.add(root / "photos", "photos")
    return str(root / "photos.tar")


def make_zip(root: Path) -> str:
    return shutil.make_archive(make_folder(root), "zip", root, "photos")


MAKERS = {
    "folder": make_folder,
    "csv": make_csv,
    "list": make_list,
    "tar": make_tar,
    "zip": make_zip,
    "parquet": make_parquet,
    "torchvision": make_torchvision,
}


def test_every_kind_has_a_maker() -> None:
    assert set(MAKERS) == set(SOURCES)


@pytest.fixture(params=MAKERS)
def any_source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torchvision":
        from torchvision import datasets

        monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
        monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    return MAKERS[request.param](tmp_path)


def test_the_contract_of_sources(any_source: str) -> None:
    options = {"id_column": "name"} if any_source.endswith("parquet") else {}
    manifest = listed(any_source, **options)
    assert len(manifest) >= 2
    assert ids(manifest) == sorted(set(ids(manifest)))
    assert ids(manifest) == ids(listed(any_source, **options))
    assert [record.index for record in manifest.records] == list(range(len(manifest)))
    for record in manifest.records:
        size, mtime_ns = record.image.stat()
        data = record.image.read(10**6)
        assert decode(data).mode == "RGB"
        assert size > 0
        assert mtime_ns > 0
        assert record.image.where.isprintable()
        assert record.split in ("", "train", "val", "test")
        with pytest.raises(ImageError, match="too-large"):
            record.image.read(len(data) - 1)
    for name, target in manifest.targets.items():
        assert target.name == name
        assert len(target.values) == len(manifest)


def test_a_part_of_any_source(any_source: str) -> None:
    manifest = listed(any_source)
    part = manifest.rows(1, len(manifest))
    assert ids(part) == ids(manifest)[1:]
    assert [record.index for record in part.records] == list(range(len(manifest) - 1))
    for name, target in part.targets.items():
        assert np.array_equal(target.values, manifest.targets[name].values[1:])
        assert target.names == manifest.targets[name].names
    for start, stop in ((-1, 1), (0, len(manifest) + 1), (1, 1)):
        with pytest.raises(SourceError, match=f"rows {start}:{stop} are not in"):
            manifest.rows(start, stop)


def test_what_is_not_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(tmp_path / "nowhere") == f"there is no {tmp_path}/nowhere"
    monkeypatch.chdir(tmp_path)
    assert refusal("nowhere") == f"there is no nowhere in {tmp_path}"
    for name in ("a.7z", "a.tar.gz", "a.TGZ"):
        (tmp_path / name).touch()
        assert refusal(name) == f"{name} is an archive: unpack it first, and give the folder"
    assert "File name too long" in refusal(tmp_path / ("a" * 300))
    assert "Not a directory" in refusal(Path(__file__) / "photos")
    assert "null byte" in refusal("photos\0")
    (tmp_path / "one.jpg").write_bytes(encoded(photo()))
    assert "is one image; a source is a folder" in refusal(tmp_path / "one.jpg")
    (tmp_path / "notes.docx").touch()
    assert "is not a source that can be read; one is: a folder (flat" in refusal(tmp_path / "notes.docx")


def test_options_of_tables_are_refused_elsewhere(photo_folder: Path) -> None:
    assert refusal(photo_folder, target=("length",)) == (
        "--target does not apply to a source of kind folder (give a table with --labels)"
    )
    csv = table(photo_folder.parent, "image\nphotos/ants/000.jpg")
    assert refusal(csv, labels=str(csv)) == "--labels does not apply to a source of kind csv"


def test_paths_one_by_one_keep_their_order_and_names(photo_folder: Path) -> None:
    names = [photo_folder / "bees/001.jpg", "nowhere.jpg", photo_folder / "ants/000.jpg", "nowhere.jpg"]
    manifest = from_paths(names)
    assert ids(manifest) == [str(name) for name in names]
    assert [record.index for record in manifest.records] == [0, 1, 2, 3]
    with pytest.raises(SourceError, match="no image is named"):
        from_paths([])


def test_a_folder_among_paths_is_its_images_whatever_its_layout(photo_folder: Path) -> None:
    odd = os.fsdecode(b"\xe9.jpg")
    (photo_folder / odd).write_bytes(encoded(photo()))
    manifest = from_paths(["z.jpg", photo_folder])
    expected = ["z.jpg", *(f"{photo_folder}/{kind}/00{n}.jpg" for kind in ("ants", "bees") for n in range(6))]
    assert ids(manifest) == [*expected, f"{photo_folder}/\\xe9.jpg"]
    assert decode(manifest.records[-1].image.read(10**6)).size == (64, 48)
    (photo_folder / "empty").mkdir()
    with pytest.raises(SourceError, match="empty holds no images"):
        from_paths([photo_folder / "empty"])
