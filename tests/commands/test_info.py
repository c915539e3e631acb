"""What a path holds: a feature file, a folder of parts, a model, or nothing of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cheap import extract, manifest_of, write_images
from conftest import Trained

from pipeline.commands.info import info
from pipeline.errors import StoreError
from pipeline.store import Part


def test_a_store_counts_its_rows_by_what_became_of_them(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 30)
    extract(manifest_of(tmp_path / "images"), tmp_path / "F.h5")
    said = info(tmp_path / "F.h5").to_json()
    assert (said["rows"], said["good"], said["bad"]) == (30, 27, {"corrupt": 3})
    assert said["layers"] == {"avgpool": [24], "conv": [2, 3]}
    assert said["distinct_images"] == 26
    counts = said["targets"]["class"]["counts"]
    assert sum(count for split in counts.values() for count in split.values()) == 30
    assert json.loads(json.dumps(said)) == said


def test_a_folder_of_parts_is_told_as_the_whole(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 8)
    manifest = manifest_of(tmp_path / "images")
    ids = [record.id for record in manifest.records]
    for start in 0, 4:
        part = Part.of(ids, start, start + 4)
        extract(manifest.rows(start, start + 4), tmp_path / f"parts/{start}.h5", part=part)
    said = info(tmp_path / "parts").to_json()
    assert (said["rows"], said["parts"]) == (8, 2)


def test_a_model_is_told_by_its_record(trained: Trained) -> None:
    said = info(trained.linear)
    assert said.to_json()["classes"] == ["ants", "bees"]
    assert f"model: {trained.linear}" in said.summary().splitlines()
    assert "head:" in said.summary().splitlines()


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        info(tmp_path / "nowhere.h5")
