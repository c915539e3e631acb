"""A class that is answered from a probability on, with the precision and recall of rows out of fold."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from cheap import write_store
from conftest import Trained

from pipeline.commands.evaluate import evaluate
from pipeline.commands.fit_head import fit_head
from pipeline.commands.predict import predict
from pipeline.errors import ModelError, SettingsError
from pipeline.models.model import load_model
from pipeline.models.predictions import plain_text
from pipeline.models.threshold import Threshold, best_f1, precision_recall

OLD = Path(__file__).parents[1] / "data" / "0.1.0"


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Features of which one row in ten is of the second class, and a head on half of them."""
    folder = tmp_path_factory.mktemp("rare")
    random = np.random.default_rng(0)
    y = (np.arange(600) % 10 == 0).astype(np.int64)
    features = (random.normal(size=(600, 8)) + y[:, None] * 0.6).astype(np.float32)
    splits = np.where(np.arange(600) % 20 < 10, "train", "val")
    store = write_store(folder / "f.h5", {"avgpool": features}, splits=splits, names=("common", "rare"), kind=y)
    return store, fit_head(store, folder / "model").model


def test_a_threshold_tells_what_it_gives_out_of_fold(rare: tuple[Path, Path]) -> None:
    model = load_model(rare[1])
    with (rare[1] / "out_of_fold.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    name = model.record.classes[1]
    is_it = np.array([plain_text(row["true"]) == name for row in rows])
    scores = np.array([float(row[f"p:{name}"]) for row in rows])
    found = Threshold.of(f"{name}=0.2", model.classes, model.seen, where="m")
    said = scores >= 0.2
    assert found.found["n"] == 300
    assert found.found["precision"] == pytest.approx(is_it[said].mean())
    assert found.found["recall"] == pytest.approx(said[is_it].mean())
    low, high = found.found["recall_interval"]
    assert low < found.found["recall"] < high
    best = Threshold.of(name, model.classes, model.seen, where="m")
    f1 = [2 * (is_it & (scores >= at)).sum() / (is_it.sum() + (scores >= at).sum()) for at in scores]
    assert best.at == pytest.approx(scores[int(np.argmax(f1))], abs=1e-6)
    assert "which it was chosen by for the best F1" in best.notice()


def test_rows_are_scored_as_they_are_answered(rare: tuple[Path, Path], tmp_path: Path) -> None:
    store, model = rare
    name = load_model(model).record.classes[1]
    plain = evaluate(model, store).metrics["per_class"][name]
    result = evaluate(model, store, threshold=f"{name}=0.1", output=tmp_path / "e")
    found = result.metrics["per_class"][name]
    assert found["recall"] > plain["recall"] + 0.1
    assert result.to_json()["threshold"]["class"] == name
    assert f"note: {name} from a probability of 0." in result.summary()
    with (tmp_path / "e/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    at = result.threshold["at"]
    assert [row["label"] == name for row in rows] == [float(row[f"p:{name}"]) >= at for row in rows]
    assert all(float(row["score"]) == float(row[f"p:{row['label']}"]) for row in rows)


def test_images_are_answered_by_it(trained: Trained) -> None:
    image = trained.photos / "val/bees/001.jpg"
    sure = predict(trained.linear, image, top=1).predictions[0]
    assert (sure["label"], len(sure["top"])) == ("bees", 1)
    result = predict(trained.linear, image, top=1, threshold="ants=0.0001")
    (answer,) = result.predictions
    assert (answer["label"], answer["top"]) == ("ants", sure["top"])
    assert answer["score"] == pytest.approx(1 - sure["score"])
    assert "ants: bees" in result.summary().splitlines()[0]
    assert result.to_json()["threshold"]["at"] == 0.0001
    assert predict(trained.linear, image, threshold="bees=1").predictions[0]["label"] == "ants"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wasps", "no class 'wasps'|unknown class 'wasps'"),
        ("ants=2", "'2' is no probability"),
        ("ants=few", "'few' is no probability"),
        ("ants=nan", "'nan' is no probability"),
    ],
)
def test_what_is_no_threshold_is_refused(trained: Trained, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        evaluate(trained.linear, trained.store, threshold=text)
    with pytest.raises(SettingsError, match="predicts numbers"):
        evaluate(trained.ridge, trained.numbers, threshold=text)


def test_a_model_without_rows_out_of_fold_takes_a_given_one_alone() -> None:
    model = OLD / "classes-linear"
    assert "no rows out of fold" in evaluate(model, OLD / "classes.h5", threshold="ants=0.4").notices[0]
    with pytest.raises(ModelError, match="has no rows out of fold to choose a threshold by"):
        evaluate(model, OLD / "classes.h5", threshold="ants")


def test_precision_and_recall_of_nothing() -> None:
    nothing = precision_recall(np.array([False, False]), np.array([0.1, 0.2]), 0.5)
    assert (nothing["precision"], nothing["recall"]) == (0, 0)
    assert nothing["recall_interval"] == [0.0, 1.0]
    assert best_f1(np.array([True, False, True]), np.array([0.9, 0.8, 0.7])) == 0.7
