"""Scores of a saved model: the same from images, from features and from its training."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from conftest import Trained
from pictures import write_photos

from pipeline import metrics
from pipeline.commands.evaluate import evaluate
from pipeline.commands.extract import extract
from pipeline.commands.fit_head import fit_head
from pipeline.errors import OutputExistsError, RecipeMismatchError, SourceError
from pipeline.models.model import load_model

OLD = Path(__file__).parents[1] / "data" / "0.1.0"


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
    (tmp_path / "ants/a.jxl").touch()
    (tmp_path / "bees").mkdir()
    evaluate(trained.linear, tmp_path)
    assert "left out 1 file: 1 .jxl" in caplog.text
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


@pytest.fixture
def unsplit(trained: Trained, tmp_path: Path) -> tuple[Path, Path, Path]:
    """The photos without splits, their features, and a head that held some of them out."""
    photos = tmp_path / "photos"
    for split in ("train", "val"):
        for kind in ("ants", "bees"):
            for image in (trained.photos / split / kind).iterdir():
                (photos / kind).mkdir(parents=True, exist_ok=True)
                shutil.copy(image, photos / kind / f"{split}-{image.name}")
    store = extract(photos, tmp_path / "photos.h5", base="squeezenet1_1", weights="embedded").store
    return photos, store, fit_head(store, tmp_path / "model", val=0.2).model


def test_rows_that_trained_the_model_are_left_out_where_there_is_no_split(unsplit: tuple[Path, Path, Path]) -> None:
    photos, store, model = unsplit
    saved = json.loads((model / "metrics.json").read_text())["val"]
    for source in (store, photos):
        result = evaluate(model, source)
        assert (result.rows, result.split, result.seen) == (saved["n"], "unseen", 0)
        assert result.metrics["accuracy"] == saved["accuracy"]
        assert result.metrics["log_loss"] == pytest.approx(saved["log_loss"], abs=1e-4)
        whole = evaluate(model, source, split="all")
        assert (whole.rows, whole.to_json()["seen"]) == (36, 36 - saved["n"])
        assert f"36 rows (all, {whole.seen} of them trained the model)" in whole.summary()
        assert f"note: {whole.seen} of these 36 rows trained the model: the scores flatter it" in whole.summary()


def test_rows_that_trained_the_model_are_scored_and_counted_where_there_are_no_others(
    unsplit: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    photos, store, _ = unsplit
    model = fit_head(store, tmp_path / "all", val=0).model
    for source in (store, photos):
        result = evaluate(model, source)
        assert (result.rows, result.split, result.seen) == (36, "all", 36)


def test_known_content_under_another_name_counts_as_seen(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "p" / "bees").mkdir(parents=True)
    shutil.copy(trained.photos / "train/bees/001.jpg", tmp_path / "p/bees/other.jpg")
    assert evaluate(trained.linear, tmp_path / "p").seen == 1
    write_photos(tmp_path / "p" / "bees", 2, first_seed=900, colour=(40, 60, 200))
    result = evaluate(trained.linear, tmp_path / "p")
    assert (result.rows, result.split, result.seen, result.bad) == (2, "unseen", 0, 0)


def test_a_model_that_does_not_say_what_trained_it_is_no_proof() -> None:
    result = evaluate(OLD / "classes-linear", OLD / "classes.h5")
    assert (result.rows, result.to_json()["seen"]) == (12, None)
    assert "does not say which images it was trained on" in result.notices[0]


def test_probabilities_under_balanced_weights_are_called_so(trained: Trained, tmp_path: Path) -> None:
    model = fit_head(trained.store, tmp_path / "m", class_weight="balanced").model
    assert metrics.BALANCED in evaluate(model, trained.store).notices
    assert metrics.BALANCED not in evaluate(trained.linear, trained.store).notices


def test_copies_of_an_image_are_one_observation(trained: Trained, tmp_path: Path) -> None:
    write_photos(tmp_path / "p" / "bees", 4, first_seed=900, colour=(40, 60, 200))
    for copy in range(3):
        shutil.copy(tmp_path / "p/bees/000.jpg", tmp_path / f"p/bees/copy{copy}.jpg")
    found = evaluate(trained.linear, tmp_path / "p").metrics
    assert (found["n"], found["groups"]) == (7, 4)
    alone = metrics.share_interval(49 / 19, 49 / 19)
    assert found["accuracy_interval"] == pytest.approx(alone)


def test_images_of_a_group_are_one_observation(trained: Trained, tmp_path: Path) -> None:
    write_photos(tmp_path / "p" / "bees", 6, first_seed=900, colour=(40, 60, 200))
    source = tmp_path / "p"
    for given in (source, extract(source, tmp_path / "p.h5", base="squeezenet1_1", weights="embedded").store):
        found = evaluate(trained.linear, given, group=r"regex:/00([0-2])?").metrics
        assert (found["n"], found["groups"]) == (6, 4)


def test_the_mean_over_views_is_served_where_it_was_scored(trained: Trained, tmp_path: Path) -> None:
    options = {"base": "squeezenet1_1", "weights": "embedded", "layer": ("features.3.squeeze",), "pool": "avg"}
    views = extract(trained.photos, tmp_path / "v.h5", **options, views=2, augment=("crop", "mirror")).store
    model = fit_head(views, tmp_path / "m", score_views="mean").model
    saved = json.loads((model / "metrics.json").read_text())["val"]
    plain = fit_head(views, tmp_path / "plain").metrics["val"]
    assert abs(saved["log_loss"] - plain["log_loss"]) > 1e-4
    for source in (views, trained.photos):
        assert evaluate(model, source).metrics["log_loss"] == pytest.approx(saved["log_loss"], abs=1e-5)
    with (model / "predictions.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    (answer,) = load_model(model).predict(trained.photos / row["id"])
    assert answer["score"] == pytest.approx(float(row["score"]), abs=1e-5)
    with pytest.raises(RecipeMismatchError, match="was made with views=0, and 2 is asked for"):
        evaluate(model, extract(trained.photos, tmp_path / "plain.h5", **options).store)
