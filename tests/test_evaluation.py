"""Scores of a saved model: the same from images, from features and from its training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Trained
from pictures import write_photos

from pipeline.errors import RecipeMismatchError, SourceError
from pipeline.evaluation import evaluate
from pipeline.extraction import extract


def test_features_and_images_give_the_score_of_the_training(trained: Trained) -> None:
    saved = json.loads((trained.linear / "metrics.json").read_text())["val"]
    for source in (trained.store, trained.photos):
        result = evaluate(trained.linear, source)
        assert (result.rows, result.split, result.bad) == (12, "val", 0)
        assert result.metrics["accuracy"] == saved["accuracy"]
        assert result.metrics["confusion"] == saved["confusion"]
        assert result.metrics["log_loss"] == pytest.approx(saved["log_loss"], abs=1e-4)


def test_splits_are_chosen_and_named(trained: Trained) -> None:
    assert evaluate(trained.linear, trained.store, split="train").rows == 24
    assert evaluate(trained.linear, trained.store, split="all").rows == 36
    with pytest.raises(SourceError, match="has no split 'test'; it has train, val"):
        evaluate(trained.linear, trained.store, split="test")


def test_numbers_are_scored_from_both(trained: Trained) -> None:
    features = evaluate(trained.ridge, trained.numbers)
    images = evaluate(trained.ridge, trained.table, target=("length:number",))
    assert features.rows == images.rows == 12
    assert images.metrics["mae"] == pytest.approx(features.metrics["mae"], abs=1e-3)
    assert "mae" in images.summary().lower()


def test_classes_are_matched_by_name_not_by_position(trained: Trained, tmp_path: Path) -> None:
    write_photos(tmp_path / "bees", 4, first_seed=900, colour=(40, 60, 200))
    assert evaluate(trained.linear, tmp_path).metrics["accuracy"] == 1.0
    write_photos(tmp_path / "wasps", 1, first_seed=901)
    with pytest.raises(SourceError, match="the model knows no class 'wasps'; it knows ants, bees"):
        evaluate(trained.linear, tmp_path)


def test_images_without_labels_cannot_be_scored(trained: Trained, tmp_path: Path) -> None:
    write_photos(tmp_path / "flat", 3)
    with pytest.raises(SourceError, match="no target 'class'"):
        evaluate(trained.linear, tmp_path / "flat")


def test_bad_images_are_counted_and_left_out(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.photos / "val", tmp_path / "p")
    (tmp_path / "p" / "ants" / "text.jpg").write_text("text")
    result = evaluate(trained.linear, tmp_path / "p")
    assert (result.rows, result.bad) == (12, 1)
    assert "1 bad images left out" in result.summary()
    for image in (tmp_path / "p").rglob("*.jpg"):
        image.write_text("text")
    with pytest.raises(SourceError, match="not one of 13 images could be read"):
        evaluate(trained.linear, tmp_path / "p")


def test_features_of_another_recipe_are_refused(trained: Trained, tmp_path: Path) -> None:
    other = extract(trained.photos, tmp_path / "o.h5", base="squeezenet1_1", weights="none").store
    with pytest.raises(RecipeMismatchError, match="was extracted with weights="):
        evaluate(trained.linear, other)
    other = extract(
        trained.photos, tmp_path / "l.h5", base="squeezenet1_1", weights="embedded", layer=("features.5",), pool="avg"
    ).store
    with pytest.raises(RecipeMismatchError, match="extract with --layer avgpool"):
        evaluate(trained.linear, other)


def test_views_are_scored_on_the_plain_one(trained: Trained, tmp_path: Path) -> None:
    options = {"base": "squeezenet1_1", "weights": "embedded", "views": 2, "augment": ("crop",)}
    views = extract(trained.photos, tmp_path / "v.h5", **options).store
    plain = evaluate(trained.linear, trained.store).metrics["log_loss"]
    assert evaluate(trained.linear, views).metrics["log_loss"] == pytest.approx(plain, abs=1e-4)
