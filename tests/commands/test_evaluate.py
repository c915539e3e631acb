"""Scores of a saved model: the same from images, from features and from its training."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from conftest import Trained
from pictures import write_photos

from pipeline.commands.evaluate import evaluate
from pipeline.commands.extract import extract
from pipeline.errors import OutputExistsError, RecipeMismatchError, SourceError


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
    with pytest.raises(SourceError, match="the model knows no class 'wasps' with 1 row; it knows ants, bees"):
        evaluate(trained.linear, tmp_path)


def test_a_class_in_other_letters_is_told_with_the_name_that_is_meant(trained: Trained, tmp_path: Path) -> None:
    write_photos(tmp_path / "BEES", 4, first_seed=900, colour=(40, 60, 200))
    write_photos(tmp_path / "ants", 1, first_seed=901)
    with pytest.raises(
        SourceError, match=r"no class 'BEES' \(did you mean 'bees'\?\) with 4 rows; it knows ants, bees"
    ):
        evaluate(trained.linear, tmp_path)


def test_an_evaluation_is_kept_in_a_folder(trained: Trained, tmp_path: Path) -> None:
    saved = {}
    for name, source in (("store", trained.store), ("photos", trained.photos)):
        result = evaluate(trained.linear, source, output=tmp_path / name)
        assert result.to_json()["output"] == str(tmp_path / name)
        assert f"saved to {tmp_path / name}" in result.summary()
        assert json.loads((tmp_path / name / "metrics.json").read_text()) == result.metrics
        with (tmp_path / name / "predictions.csv").open(newline="") as file:
            saved[name] = list(csv.DictReader(file))
        assert (tmp_path / name / "plots" / "confusion.png").stat().st_size > 5000
    with (trained.linear / "predictions.csv").open(newline="") as file:
        of_training = list(csv.DictReader(file))
    for rows in saved.values():
        assert [(row["id"], row["true"], row["label"]) for row in rows] == [
            (row["id"], row["true"], row["label"]) for row in of_training
        ]


def test_an_evaluation_of_numbers_keeps_their_intervals(trained: Trained, tmp_path: Path) -> None:
    evaluate(trained.ridge, trained.numbers, output=tmp_path / "e")
    with (tmp_path / "e" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert float(rows[0]["low"]) < float(rows[0]["value"]) < float(rows[0]["high"])
    assert (tmp_path / "e" / "plots" / "predicted.png").is_file()


def test_an_evaluation_replaces_only_another_one(trained: Trained, tmp_path: Path) -> None:
    evaluate(trained.linear, trained.store, output=tmp_path / "e")
    with pytest.raises(OutputExistsError, match="exists already"):
        evaluate(trained.linear, trained.store, output=tmp_path / "e")
    evaluate(trained.linear, trained.store, output=tmp_path / "e", force=True, split="train")
    assert len((tmp_path / "e" / "predictions.csv").read_text().splitlines()) == 25
    model = tmp_path / "model"
    shutil.copytree(trained.linear, model)
    with pytest.raises(OutputExistsError, match="is a model folder"):
        evaluate(model, trained.store, output=model, force=True)
    assert (model / "model.json").is_file()


def test_few_rows_and_absent_classes_are_said(trained: Trained, tmp_path: Path) -> None:
    write_photos(tmp_path / "bees", 4, first_seed=900, colour=(40, 60, 200))
    result = evaluate(trained.linear, tmp_path)
    assert "accuracy 1.0000 (95 %: 0.40 to 1.00; majority 1.00)" in result.summary()
    assert [notice.split(";")[0] for notice in result.to_json()["notices"]] == [
        "all rows: only 4 rows",
        "all rows: no row of ants",
    ]


def test_what_is_left_out_of_a_folder_is_told(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_photos(tmp_path / "ants", 2)
    (tmp_path / "ants/a.heic").touch()
    (tmp_path / "bees").mkdir()
    evaluate(trained.linear, tmp_path)
    assert "left out 1 file: 1 .heic" in caplog.text
    assert "left out 1 class folder without images: 'bees'" in caplog.text


def test_images_without_labels_cannot_be_scored(trained: Trained, tmp_path: Path) -> None:
    write_photos(tmp_path / "flat", 3)
    with pytest.raises(SourceError, match="no target 'class'"):
        evaluate(trained.linear, tmp_path / "flat")


def test_bad_images_are_counted_and_left_out(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.photos / "val", tmp_path / "p")
    (tmp_path / "p" / "ants" / "text.jpg").write_text("text")
    result = evaluate(trained.linear, tmp_path / "p")
    assert (result.rows, result.bad) == (12, 1)
    assert "1 bad image left out" in result.summary()
    for image in (tmp_path / "p").rglob("*.jpg"):
        image.write_text("text")
    with pytest.raises(SourceError, match="not one of 13 images could be read"):
        evaluate(trained.linear, tmp_path / "p")


def test_features_of_another_recipe_are_refused(trained: Trained, tmp_path: Path) -> None:
    other = extract(trained.photos, tmp_path / "o.h5", base="squeezenet1_1", weights="none").store
    with pytest.raises(RecipeMismatchError, match="was made with weights="):
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
