"""Answers as CSV: whole or as before, and text that no spreadsheet computes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from cheap import full_disk

from pipeline.models.predictions import plain_text, write_rows


def test_a_table_is_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    rows = [{"id": "caf\udce9,.jpg", "score": 0.25}, {"id": "two\nlines", "score": None}]
    write_rows(tmp_path / "t.csv", rows)
    assert (tmp_path / "t.csv").read_bytes() == b'id,score\r\n"caf\xe9,.jpg",0.25\r\n"two\nlines",\r\n'
    with pytest.raises(OSError, match="File too large") as refused, full_disk(20):
        write_rows(tmp_path / "t.csv", rows * 9)
    assert refused.value.filename == str(tmp_path / "t.csv")
    assert len((tmp_path / "t.csv").read_bytes().splitlines()) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_cells_that_a_spreadsheet_would_compute_are_text(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "+1", "-1.jpg", "@x", "\t=1", "\r=1", "'=1", "''+1", "'tis", "plain", "a=b"]
    write_rows(tmp_path / "t.csv", [{"id": name, "score": -0.5} for name in names])
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [plain_text(row["id"]) for row in rows] == names
    assert not [row["id"] for row in rows if row["id"][0] in "=+-@\t\r"]
    assert {row["score"] for row in rows} == {"-0.5"}
    assert [row["id"] for row in rows][-3:] == ["'tis", "plain", "a=b"]
