"""A text file of paths."""

from __future__ import annotations

from pathlib import Path

from listing import ids, listed, refusal, table


def test_a_list_of_paths(tmp_path: Path) -> None:
    path = table(tmp_path, "\ufeffb.jpg\r\n\n  a b.jpg \n./c/d.jpg", "photos.txt")
    assert ids(listed(path)) == ["a b.jpg", "b.jpg", "c/d.jpg"]
    assert "line 1: '../a.jpg' is outside of" in refusal(table(tmp_path, "../a.jpg", "photos.txt"))
    assert "lists no image" in refusal(table(tmp_path, "\n", "photos.txt"))
    assert "is there twice" in refusal(table(tmp_path, "a.jpg\na.jpg\n", "photos.txt"))
