"""The demo: offline, from nothing to pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.commands import demo
from pipeline.store import FeatureStore


def test_digits_become_models_and_pictures(tmp_path: Path) -> None:
    result = demo.demo(tmp_path / "demo")
    assert result.images == 1797
    assert result.metrics["linear"]["accuracy"] >= 0.97
    assert result.metrics["svm"]["accuracy"] >= 0.97
    assert result.metrics["ridge"]["r2"] >= 0.8
    for name in ("predictions.png", "confusion.png"):
        picture = np.asarray(Image.open(tmp_path / "demo" / name))
        assert picture.std() > 10, f"{name} is blank"
    with FeatureStore.open(tmp_path / "demo" / "digits.h5") as store:
        assert (store.splits == "val").sum() == len(store.select(split="val")) > 400
    saved = json.loads((tmp_path / "demo/linear/metrics.json").read_text())
    assert saved["val"]["accuracy"] == result.metrics["linear"]["accuracy"]
    said = result.summary()
    assert "pipeline extract photos/" in said
    assert result.to_json()["images"] == 1797


def test_a_digit_is_black_on_white() -> None:
    levels = np.zeros((8, 8))
    levels[3:5, 3:5] = 16
    drawn = np.asarray(demo.draw_digit(levels))
    assert drawn.shape == (64, 64)
    assert drawn[0, 0] == 255
    assert drawn[32, 32] < 20


def test_what_is_planted_in_its_folder_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    folder = tmp_path / "demo/digits"
    folder.mkdir(parents=True)
    for name in ("0000.png", "digits.csv"):
        (folder / name).symlink_to(victim)
    demo.write_digits(folder)
    assert victim.read_bytes() == b"precious"
    with Image.open(folder / "0000.png") as digit:
        assert digit.size == (64, 64)
