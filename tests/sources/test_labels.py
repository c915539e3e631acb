"""Labels that match few images, or only after a look at how names are written."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
from listing import listed, table, touch


def test_labels_that_match_no_image_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "photos/000.jpg", "photos/001.jpg")
    rows = "".join(f"{number:03}.jpg,{number % 3}\n" for number in range(1, 120))
    manifest = listed(tmp_path / "photos", labels=str(table(tmp_path, "image,y\n" + rows, "t.csv")))
    assert manifest.remarks() == [
        f"{tmp_path}/t.csv labels 1 of 2 images",
        f"118 of 119 labels match no image, first: 002.jpg ({tmp_path}/t.csv, line 3)",
    ]


def test_names_match_however_accents_and_slashes_are_written(tmp_path: Path) -> None:
    apart, together = (unicodedata.normalize(form, "é.jpg") for form in ("NFD", "NFC"))
    touch(tmp_path, f"photos/a/{apart}", "photos/b/ü.jpg")
    csv = table(tmp_path, f"image,y\na\\{together},1.5\n{unicodedata.normalize('NFD', 'ü.jpg')},2.5\n", "t.csv")
    manifest = listed(tmp_path / "photos", labels=str(csv))
    assert np.array_equal(manifest.targets["y"].values, [1.5, 2.5])
    assert manifest.notes == ()


def test_names_that_differ_in_their_accents_alone_keep_their_own_labels(tmp_path: Path) -> None:
    apart, together = (unicodedata.normalize(form, "é.jpg") for form in ("NFD", "NFC"))
    touch(tmp_path, f"photos/{apart}", f"photos/{together}")
    if len(list((tmp_path / "photos").iterdir())) == 2:
        csv = table(tmp_path, f"image,y\n{together},1.5\n{apart},2.5\n", "t.csv")
        manifest = listed(tmp_path / "photos", labels=str(csv))
        values = dict(zip([record.id for record in manifest.records], manifest.targets["y"].values, strict=True))
        assert values == {together: 1.5, apart: 2.5}
