"""Labels that match few images, or only after a look at how names are written."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from listing import ids, labels, listed, refusal, table, touch


def test_labels_that_match_no_image_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "photos/000.jpg", "photos/001.jpg")
    rows = "".join(f"{number:03}.jpg,{number % 3}\n" for number in range(1, 120))
    manifest = listed(tmp_path / "photos", labels=str(table(tmp_path, "image,y\n" + rows, "t.csv")))
    assert manifest.all_notices() == [
        f"{tmp_path}/t.csv labels 1 of 2 images",
        f"118 of 119 labels match no image, first: 002.jpg ({tmp_path}/t.csv, line 3)",
    ]


def test_names_match_however_accents_and_slashes_are_written(tmp_path: Path) -> None:
    apart, together = (unicodedata.normalize(form, "é.jpg") for form in ("NFD", "NFC"))
    touch(tmp_path, f"photos/a/{apart}", "photos/b/ü.jpg")
    csv = table(tmp_path, f"image,y\na\\{together},1.5\n{unicodedata.normalize('NFD', 'ü.jpg')},2.5\n", "t.csv")
    manifest = listed(tmp_path / "photos", labels=str(csv))
    assert np.array_equal(manifest.targets["y"].values, [1.5, 2.5])
    assert manifest.notices == ()


def test_names_that_differ_in_their_accents_alone_keep_their_own_labels(tmp_path: Path) -> None:
    apart, together = (unicodedata.normalize(form, "é.jpg") for form in ("NFD", "NFC"))
    touch(tmp_path, f"photos/{apart}", f"photos/{together}")
    if len(list((tmp_path / "photos").iterdir())) == 2:
        csv = table(tmp_path, f"image,y\n{together},1.5\n{apart},2.5\n", "t.csv")
        manifest = listed(tmp_path / "photos", labels=str(csv))
        values = dict(zip([record.id for record in manifest.records], manifest.targets["y"].values, strict=True))
        assert values == {together: 1.5, apart: 2.5}


def test_labels_by_path_by_name_and_by_stem(photo_folder: Path) -> None:
    csv = table(photo_folder.parent, "image,length\nants/000.jpg,1.5\nbees/001.jpg,2.5\n", "labels.csv")
    manifest = listed(photo_folder, labels=str(csv))
    assert set(manifest.targets) == {"class", "length"}
    values = dict(zip(ids(manifest), manifest.targets["length"].values, strict=True))
    assert {name: value for name, value in values.items() if value == value} == {
        "ants/000.jpg": 1.5,
        "bees/001.jpg": 2.5,
    }
    assert "labels 2 of 12 images" in manifest.notices[-1]

    flat = photo_folder / "ants"
    by_stem = table(photo_folder.parent, "id,breed\n003,pug\n001.jpg,beagle\nother,pug\n", "breeds.csv")
    manifest = listed(flat, labels=str(by_stem), image_column="id")
    assert labels(manifest, "breed") == [None, "beagle", None, "pug", None, None]
    assert manifest.notices[-1].endswith("1 of 3 labels match no image, first: other (" + str(by_stem) + ", line 4)")


def test_labels_may_bring_splits_and_replace_classes(photo_folder: Path) -> None:
    text = "image,class,split\nants/000.jpg,worker,train\nbees/000.jpg,queen,val\n"
    manifest = listed(photo_folder, labels=str(table(photo_folder.parent, text, "labels.csv")))
    assert manifest.targets["class"].names == ("queen", "worker")
    assert manifest.records[0].split == "train"
    assert manifest.records[6].split == "val"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,y\n000.jpg,1\n", "several images are called '000.jpg'; name them by their paths"),
        ("image,y\nants/000.jpg,1\nants/000.jpg,2\n", "'ants/000.jpg' is labelled already in line 2"),
        ("image,y\nelsewhere.jpg,1\n", "labels none of the images of"),
        ("image\nants/000.jpg\n", "has no column beside 'image'"),
    ],
)
def test_labels_that_are_refused(photo_folder: Path, text: str, message: str) -> None:
    csv = table(photo_folder.parent, text, "labels.csv")
    assert message in refusal(photo_folder, labels=str(csv))
