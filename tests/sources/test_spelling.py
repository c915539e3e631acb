"""Tables that spell the images in another way than their files are called."""

from __future__ import annotations

import logging
import unicodedata
from pathlib import Path

import pytest
from listing import ids, listed, refusal, table, touch


def write_table(folder: Path, names: list[str]) -> Path:
    return table(folder, "image,y\n" + "".join(f"{name},{row % 2}\n" for row, name in enumerate(names)))


def test_backslashes_are_read_as_slashes(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "x/y/b.jpg")
    manifest = listed(write_table(tmp_path, ["x\\a.jpg", "x\\y\\b.jpg"]))
    assert ids(manifest) == ["x/a.jpg", "x/y/b.jpg"]
    assert manifest.records[0].image.stat()[0] == 0
    assert "names images with backslashes: x\\a.jpg is taken for x/a.jpg" in manifest.notices[0]
    assert ids(listed(table(tmp_path, "x\\a.jpg\n", "photos.txt"))) == ["x/a.jpg"]


def test_a_path_with_backslashes_does_not_leave_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "in/t", "a.jpg")
    assert "'../a.jpg' is outside of" in refusal(write_table(tmp_path / "in", ["..\\a.jpg"]))


def test_a_file_whose_name_has_a_backslash_is_itself(tmp_path: Path) -> None:
    touch(tmp_path, "x\\a.jpg", "x/a.jpg")
    assert ids(listed(write_table(tmp_path, ["x\\a.jpg"]))) == ["x\\a.jpg"]


def test_names_without_suffix_are_those_of_the_only_image_of_that_name(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.1.jpg", "b.PNG", "b.txt")
    csv = table(tmp_path, "image_id,y\nx/a.1,0\nb,1\n")
    manifest = listed(csv, image_column="image_id")
    assert ids(manifest) == ["b.PNG", "x/a.1.jpg"]
    assert "without suffix: x/a.1 is taken for x/a.1.jpg" in manifest.notices[0]
    touch(tmp_path, "b.jpg")
    assert ids(listed(csv, image_column="image_id")) == ["b", "x/a.1"]  # which b is meant, nobody knows


@pytest.mark.parametrize(("in_table", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_that_are_written_in_another_way(in_table: str, on_disk: str, tmp_path: Path) -> None:
    name = "café/ü.jpg"
    touch(tmp_path, unicodedata.normalize(on_disk, name))
    manifest = listed(write_table(tmp_path, [unicodedata.normalize(in_table, name)]))
    manifest.records[0].image.stat()
    assert manifest.notices


def test_where_it_was_looked_is_told_if_nothing_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        listed(write_table(tmp_path, ["a.jpg", "b.jpg"]))
    assert f"the images are not there; the first was looked for at {tmp_path}/a.jpg (see --image-root)" in caplog.text
    caplog.clear()
    touch(tmp_path, "b.jpg")
    listed(write_table(tmp_path, ["a.jpg", "b.jpg"]))
    assert caplog.text == ""


def test_a_path_is_refused_as_it_stands_in_the_file(tmp_path: Path) -> None:
    assert "line 2: '/elsewhere/a.jpg' is outside of" in refusal(write_table(tmp_path, ["/elsewhere/a.jpg"]))
