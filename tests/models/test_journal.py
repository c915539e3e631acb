"""What an experiment remembers of its steps, and the fingerprints that it tells them by."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import Trained
from pictures import encoded, photo

from pipeline.config import SourceSettings
from pipeline.errors import SettingsError
from pipeline.models.journal import Contents, Entry, Journal, fingerprint_path, fingerprint_source

ENTRY = Entry("fit-head", {"head": "svm"}, {"store": "1"}, "0.1", product="2", result={"rows": 3})


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.json")
    journal.entries["m"] = ENTRY
    journal.contents.known["/a.jpg"] = (1, 2, "3")
    journal.write()
    again = Journal(tmp_path / "j.json")
    assert (again.entries, again.contents.known) == (journal.entries, journal.contents.known)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', '{"format": 1, "entries": {"a": 3}}', "\xff"])
def test_a_journal_that_cannot_be_read_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "j.json").write_text(text, encoding="latin-1")
    with pytest.raises(SettingsError, match=r"j\.json cannot be read .*; remove it"):
        Journal(tmp_path / "j.json")


@pytest.mark.parametrize(
    ("now", "change"),
    [
        (ENTRY, ""),
        (Entry("fit-head", {"head": "svm"}, {"store": "1"}, "0.1"), ""),
        (Entry("fit-head", {"head": "knn"}, {"store": "1"}, "0.1"), "head is knn, it was svm"),
        (Entry("fit-head", {}, {"store": "1"}, "0.1"), "head is left out, it was svm"),
        (Entry("fit-head", {"head": "svm", "cv": 3}, {"store": "1"}, "0.1"), "cv is 3, it was left out"),
        (Entry("fit-head", {"head": "svm"}, {"store": "9"}, "0.1"), "its store changed"),
        (Entry("fit-head", {"head": "svm"}, {"store": "1"}, "0.2"), "it was made by version 0.1, this is 0.2"),
        (Entry("finetune", {"head": "svm"}, {"store": "1"}, "0.1"), "it was made by fit-head"),
    ],
)
def test_the_first_change_is_told(now: Entry, change: str) -> None:
    assert ENTRY.first_change(now) == change


def test_a_source_is_told_by_content_and_read_once(photo_folder: Path) -> None:
    contents, settings = Contents(), SourceSettings.of({})
    before = fingerprint_source(str(photo_folder), settings, contents)
    image = photo_folder / "ants/000.jpg"
    os.utime(image, (1, 1))
    assert fingerprint_source(str(photo_folder), settings, contents) == before
    known = dict(contents.known)
    assert known[str(image)][:2] == (image.stat().st_size, 10**9)
    contents.known[str(image)] = (*known[str(image)][:2], "what was read before")
    assert fingerprint_source(str(photo_folder), settings, contents) != before, "it is not read again"
    contents.known = known
    image.write_bytes(encoded(photo(99)))
    changed = fingerprint_source(str(photo_folder), settings, contents)
    assert changed != before
    image.rename(photo_folder / "bees/new.jpg")
    assert fingerprint_source(str(photo_folder), settings, contents) not in (before, changed)


def test_a_model_is_told_by_its_answers_and_not_by_its_seconds(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("model.json", "predictions.csv", "metrics.json"):
        (folder / name).write_bytes((trained.linear / name).read_bytes())
    before = fingerprint_path(folder)
    assert before == fingerprint_path(trained.linear)
    record, metrics = (json.loads((folder / name).read_text()) for name in ("model.json", "metrics.json"))
    (folder / "model.json").write_text(json.dumps({**record, "created": "today"}))
    (folder / "metrics.json").write_text(json.dumps({**metrics, "seconds": 99.0}))
    assert fingerprint_path(folder) == before
    (folder / "metrics.json").write_text(json.dumps({**metrics, "val": {}}))
    assert fingerprint_path(folder) != before
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "model.json").write_text(json.dumps({**record, "classes": ["other", "names"]}))
    assert fingerprint_path(folder) != before


def test_a_table_of_fetch_is_another_one_without_its_images(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "images.csv").write_text(
        "url,status,reason,sha256,path\nhttp://a,kept,,1,a.jpg\nhttp://b,refused,x,,\n"
    )
    before = fingerprint_path(tmp_path / "images.csv")
    (tmp_path / "a.jpg").unlink()
    assert fingerprint_path(tmp_path / "images.csv") != before
    assert fingerprint_path(tmp_path / "none") == ""
