from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import photo
from PIL import Image
from safetensors.torch import load_file

import pipeline
from pipeline.bases import load_base
from pipeline.bases.weights import digest
from pipeline.commands.evaluate import evaluate
from pipeline.commands.extract import extract
from pipeline.commands.finetune import FinetuneResult, finetune
from pipeline.commands.fit_head import fit_head
from pipeline.commands.predict import predict
from pipeline.commands.verify import verify
from pipeline.errors import (
    BaseError,
    HeadError,
    ModelError,
    OutputExistsError,
    PipelineError,
    RecipeMismatchError,
    SettingsError,
    SourceError,
)
from pipeline.models.model import load_model
from pipeline.store import FeatureStore

EMBEDDED = {"base": "squeezenet1_1", "weights": "embedded"}
QUICK = {"recipe": "tutorial", "epochs": 1, "train": ("features.12",), "workers": 2}
# Losses and scores of the training and of an engine agree to a tolerance, and so their accuracies are equal: no picture
# of these tests is nearer to a tie than 0.007, and engines differ by 1e-4.


def tinted(number: int, *, warm: bool) -> Image.Image:
    """A picture with a tint that shows most of the time."""
    tint = (200, 120, 40) if warm else (40, 120, 200)
    return Image.blend(photo(number + 1000 * warm, (80, 64)), Image.new("RGB", (80, 64), tint), 0.25)


def write(folder: Path, count: int, *, first: int = 0) -> None:
    """Class folders `cold` and `warm` with `count` pictures each."""
    for name in ("cold", "warm"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            tinted(number, warm=name == "warm").save(folder / name / f"{number:03}.png")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures to train on and twelve to judge by."""
    folder = tmp_path_factory.mktemp("tinted")
    write(folder / "train", 8)
    write(folder / "val", 6, first=50)
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six and four, where only the way matters."""
    folder = tmp_path_factory.mktemp("few")
    write(folder / "train", 3)
    write(folder / "val", 2, first=50)
    return folder


@pytest.fixture(scope="module")
def store(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("store") / "tinted.h5"
    return extract(source, output, **EMBEDDED).store


@pytest.fixture(scope="module")
def fitted(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_head(store, tmp_path_factory.mktemp("heads") / "linear", head="linear").model


@pytest.fixture(scope="module")
def tuned(source: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """Two epochs of the last fire module with a fresh head."""
    output = tmp_path_factory.mktemp("models") / "tuned"
    return finetune(source, output, **EMBEDDED, **{**QUICK, "epochs": 2})


def numbers(source: Path, table: Path) -> dict[str, Any]:
    """A table of the same pictures, with a target of about 100 for cold pictures and 40 for warm ones."""
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "length", "split"])
        for number, path in enumerate(sorted(source.rglob("*.png"))):
            length = (100 if path.parent.name == "cold" else 40) + number % 5 / 2 + 0.25
            rows.writerow([path.relative_to(source).as_posix(), length, path.parents[1].name])
    return {"source": table, "image_root": str(source)}


def test_from_a_fitted_head_it_starts_there_and_ends_no_worse(source: Path, fitted: Path, tmp_path: Path) -> None:
    head = json.loads((fitted / "metrics.json").read_text())["val"]
    found = finetune(source, tmp_path / "model", head=str(fitted), **QUICK)
    first = found.epochs[0]
    assert first.number == 0
    assert first.lr == 0.0001, "a tenth of the rate of a fresh head"
    assert 0.5 < head["accuracy"] < 1, "so that equality says something"
    assert first.val["accuracy"] == head["accuracy"]
    assert first.val["loss"] == pytest.approx(head["log_loss"], rel=1e-3)
    assert found.metrics["val"]["accuracy"] >= head["accuracy"]
    assert found.metrics["val"]["accuracy"] == found.epochs[found.best_epoch].val["accuracy"]


def test_the_result_has_what_json_promises(tuned: FinetuneResult) -> None:
    found = json.loads(json.dumps(tuned.to_json()))
    assert found["model"] == str(tuned.model)
    assert (found["head"], found["target"], found["layers"]) == ("linear", "class", ["avgpool"])
    assert found["metrics"].keys() == {"val", "train"}
    assert [epoch["epoch"] for epoch in found["epochs"]] == [0, 1, 2]
    measured = {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds"}
    assert found["epochs"][1].keys() == measured
    assert found["best_epoch"] == tuned.best_epoch
    assert found["cached"] is False
    assert found["rows"] == {"val": 12, "train": 16}
    assert found["bad_images"] == {}
    assert found["chosen"]["lr"] == 0.001
    assert found["chosen"]["train"] == ["features.12"]
    lines = tuned.summary().splitlines()
    assert lines[0].startswith("class from avgpool: 12 val, 16 train images")
    assert sum("<- kept" in line for line in lines) == 1
    assert lines[-1] == f"saved to {tuned.model}"


def test_the_folder_is_like_any_other(tuned: FinetuneResult) -> None:
    files = {str(path.relative_to(tuned.model)) for path in tuned.model.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "model.json",
        "head.safetensors",
        "base.safetensors",
        "rows.safetensors",
        "metrics.json",
        "predictions.csv",
        "plots/learning.png",
        "plots/confusion.png",
        "plots/predictions.png",
        "plots/batch.png",
    }
    with (tuned.model / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    right = sum(row["true"] == row["label"] for row in rows) / 12
    assert right == pytest.approx(tuned.metrics["val"]["accuracy"])
    assert {row["split"] for row in rows} == {"val"}


def test_only_what_was_asked_for_has_moved(tuned: FinetuneResult) -> None:
    before = load_base(**_named(EMBEDDED)).module.state_dict()
    after = load_file(tuned.model / "base.safetensors")
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert tuned.best_epoch > 0
    assert moved == {name for name in before if name.startswith("features.12.")}


def _named(options: dict[str, str]) -> dict[str, str]:
    return {"name": options["base"], "weights": options["weights"]}


def test_predict_and_evaluate_do_not_know_the_difference(source: Path, tuned: FinetuneResult) -> None:
    model = load_model(tuned.model)
    assert model.record.base.fine_tuned
    assert digest(model.base.module) == model.record.recipe.weights
    found = evaluate(tuned.model, source)
    assert found.metrics["accuracy"] == tuned.metrics["val"]["accuracy"]
    assert found.metrics["log_loss"] == pytest.approx(tuned.metrics["val"]["log_loss"], rel=1e-2, abs=1e-4)
    pictures = sorted((source / "val").rglob("*.png"))
    with (tuned.model / "predictions.csv").open(newline="") as file:
        expected = {row["id"]: (row["label"], float(row["score"])) for row in csv.DictReader(file)}
    for path, entry in zip(pictures, predict(tuned.model, pictures).predictions, strict=True):
        label, score = expected[path.relative_to(source).as_posix()]
        assert entry["label"] == label
        assert entry["score"] == pytest.approx(score, abs=2e-3)


def test_what_does_not_beat_its_head_is_the_head(source: Path, fitted: Path, tmp_path: Path) -> None:
    found = finetune(source, tmp_path / "m", head=str(fitted), beat_head=True, lr=1.0, **QUICK)
    verdict = found.to_json()["verdict"]
    assert (verdict["kept"], verdict["rows"], verdict["split"]) == ("head", 12, "val")
    assert verdict["gain"] <= 0
    assert verdict["looks"] == found.looks == 12
    assert verdict["time_ratio"] > 0
    assert found.best_epoch == 0
    assert "fine-tuning does not beat the head it came from: the head is kept" in found.summary()
    model = load_model(found.model)
    assert not model.record.base.fine_tuned
    assert not (found.model / "base.safetensors").exists()
    assert found.metrics["val"]["accuracy"] == json.loads((fitted / "metrics.json").read_text())["val"]["accuracy"]


def test_a_tuned_model_is_the_base_of_stage_one(
    source: Path, tuned: FinetuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(tuned.model, tmp_path / "tuned"))
    recipe = load_model(model).record.recipe
    stores = [
        extract(source, tmp_path / f"{engine}.h5", base=str(model), engine=engine).store
        for engine in ("torch", "onnxruntime")
    ]
    rows = []
    for path in stores:
        with FeatureStore.open(path) as store:
            assert store.recipe == recipe, "base, digest of the weights, layers and transform are those of the model"
            assert store.base_origin[0] == str(model.resolve() / "base.safetensors")
            rows.append(store.features("avgpool"))
    np.testing.assert_allclose(rows[0], rows[1], atol=2e-4 * np.abs(rows[0]).max())
    again = evaluate(model, stores[0])
    assert (again.metrics["n"], again.metrics["accuracy"]) == (12, tuned.metrics["val"]["accuracy"])
    head = fit_head(stores[0], tmp_path / "svm", head="svm").model
    images = [source / "val/warm/050.png", source / "val/cold/051.png"]
    known = predict(head, images, no_unknown=True).predictions
    assert [one["label"] for one in known] == ["warm", "cold"]
    assert verify(stores[0], recompute=2).ok
    model.rename(tmp_path / "moved")
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "empty"))  # a graph at hand needs no weights
    for act in (lambda: predict(head, images), lambda: verify(stores[0], recompute=2)):
        with pytest.raises(PipelineError, match=r"tuned/base\.safetensors does not exist.*give --weights FILE"):
            act()
    found = predict(head, images, weights=str(tmp_path / "moved"), no_unknown=True).predictions
    assert [one["label"] for one in found] == ["warm", "cold"]
    assert verify(stores[0], recompute=2, weights=str(tmp_path / "moved" / "base.safetensors")).ok
    with pytest.raises(BaseError, match=r"tuned' is no name, nor the folder of a fine-tuned model"):
        extract(source, tmp_path / "no.h5", base=str(model))
    other = finetune(source, tmp_path / "tuned", base=str(tmp_path / "moved"), **{**QUICK, "lr": 0.003}).model
    assert load_model(other).base.transform == load_model(tuned.model).base.transform
    assert load_model(other).base.digest != recipe.weights
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "as empty"))
    with pytest.raises(ModelError, match=r"holds [0-9a-f]{12}; give the right file with --weights FILE"):
        predict(head, images)
    with pytest.raises(RecipeMismatchError, match=r"was made with weights='[0-9a-f]+'"):
        extract(source, stores[0], base=str(other))


def test_what_a_tuned_model_answers_as_a_base_is_not_asked_for(
    few: Path, fitted: Path, tuned: FinetuneResult, tmp_path: Path
) -> None:
    for name, value in (("weights", "embedded"), ("size", 128), ("fit", "longest")):
        with pytest.raises(SettingsError, match=f"{name} comes from the model folder .* that base names"):
            extract(few, tmp_path / "f.h5", base=str(tuned.model), **{name: value})
    with pytest.raises(SettingsError, match=r"no base of its own.*give --base squeezenet1_1 --weights embedded"):
        extract(few, tmp_path / "f.h5", base=str(fitted))


def test_left_to_itself_it_starts_from_a_head_that_it_fits(
    source: Path, store: Path, fitted: Path, tmp_path: Path
) -> None:
    head = fit_head(store, tmp_path / "head", power="none")
    found = finetune(source, tmp_path / "m", **EMBEDDED, epochs=1, train="head", lr=1e-9, workers=2)
    assert found.epochs[0].val["accuracy"] == head.metrics["val"]["accuracy"]
    assert found.epochs[0].val["loss"] == pytest.approx(head.metrics["val"]["log_loss"], rel=1e-3)
    assert (found.chosen["recipe"], found.chosen["optimizer"], found.chosen["step"]) == ("default", "adamw", None)
    assert found.verdict is not None
    assert (found.verdict.kept, found.best_epoch) == ("head", 0), "a step of nothing gains nothing"
    assert found.recipe.startswith("default recipe: 1 epoch of 4 images a step, training head, AdamW 1e-09")
    assert found.recipe in found.summary()
    assert found.metrics["val"]["accuracy"] == head.metrics["val"]["accuracy"]


def test_numbers_start_from_a_ridge_head_that_it_fits(source: Path, tmp_path: Path) -> None:
    table = numbers(source, tmp_path / "lengths.csv")
    head = fit_head(extract(output=tmp_path / "f.h5", **table, **EMBEDDED).store, tmp_path / "h", head="ridge")
    found = finetune(output=tmp_path / "m", **table, **EMBEDDED, epochs=1, train="head", lr=1e-9, workers=2)
    assert found.epochs[0].val["rmse"] == pytest.approx(head.metrics["val"]["rmse"], rel=1e-3)
    assert found.metrics["val"]["rmse"] == pytest.approx(head.metrics["val"]["rmse"], rel=1e-3)


def test_by_default_the_last_blocks_move_and_their_norms_do_not_see_the_batch(few: Path, tmp_path: Path) -> None:
    found = finetune(few, tmp_path / "m", **EMBEDDED, size=64, epochs=1, beat_head=False, lr=0.001, workers=2)
    assert found.verdict is None
    assert found.chosen["train"] == ["last:6"]
    assert found.chosen["freeze_norm"] is True
    before, after = load_base(**_named(EMBEDDED)).module.state_dict(), load_model(found.model).base.module.state_dict()
    moved = {".".join(name.split(".")[:2]) for name in before if not torch.equal(before[name], after[name])}
    assert moved <= {f"features.{number}" for number in (6, 7, 9, 10, 11, 12)}


def test_a_tuned_model_can_be_tuned_on(source: Path, tuned: FinetuneResult, tmp_path: Path) -> None:
    again = finetune(source, tmp_path / "again", head=str(tuned.model), **{**QUICK, "train": ("head",)})
    assert again.epochs[0].val["loss"] == pytest.approx(tuned.metrics["val"]["log_loss"], rel=1e-3, abs=1e-5)
    base = load_file(tuned.model / "base.safetensors")
    kept = load_file(tmp_path / "again" / "base.safetensors")
    assert all(torch.equal(base[name], kept[name]) for name in base)


def test_the_same_seed_gives_the_same_bits(few: Path, tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> FinetuneResult:
        return finetune(few, tmp_path / name, **EMBEDDED, **{**QUICK, **options})

    first, second, other = run("first"), run("second", workers=1), run("other", seed=14)
    for file in ("base.safetensors", "head.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    assert first.epochs[1].val == second.epochs[1].val
    assert first.epochs[1].val != other.epochs[1].val


def test_a_head_alone_leaves_the_base_as_it_is_published(few: Path, tmp_path: Path) -> None:
    options = {**QUICK, "train": ("head",), "augment": ("none",), "size": 96}
    found = finetune(few, tmp_path / "head", **EMBEDDED, **options)
    assert not (found.model / "base.safetensors").exists()
    model = load_model(found.model)
    assert not model.record.base.fine_tuned
    assert model.base.digest == load_base(**_named(EMBEDDED)).digest
    assert model.base.transform.size == (96, 96)
    assert evaluate(found.model, few).metrics["accuracy"] == found.metrics["val"]["accuracy"]


def test_batch_norm_outside_of_what_moves_keeps_its_buffers(few: Path, tmp_path: Path) -> None:
    found = finetune(few, tmp_path / "model", base="resnet18", weights="none", **{**QUICK, "train": ("layer4.1",)})
    before = load_base("resnet18", "none").module.state_dict()
    after = load_file(found.model / "base.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved <= {name for name in before if name.startswith("layer4.1.")}
    assert found.best_epoch == 0 or "layer4.1.bn2.running_mean" in moved


def test_from_scratch_everything_moves(few: Path, tmp_path: Path) -> None:
    options = {"base": "scratch:cnn", "weights": "none", "layer": ("pool5",), "epochs": 3, "optimizer": "adam"}
    found = finetune(few, tmp_path / "scratch", augment=("flip", "brightness"), **options)
    losses = [epoch.train["loss"] for epoch in found.epochs if epoch.train]
    assert losses[2] < losses[0]
    assert load_model(found.model).record.base.weights == "none"
    assert evaluate(found.model, few).metrics["accuracy"] == found.metrics["val"]["accuracy"]


def test_numbers_are_learned_in_their_own_unit(source: Path, tmp_path: Path) -> None:
    table = numbers(source, tmp_path / "lengths.csv")
    found = finetune(output=tmp_path / "model", **table, **EMBEDDED, **{**QUICK, "epochs": 6}, augment=("flip",))
    first, best = found.epochs[0].val, found.epochs[found.best_epoch].val
    assert best["rmse"] < 0.8 * first["rmse"]
    assert found.metrics["val"]["rmse"] == pytest.approx(best["rmse"], rel=1e-3)
    assert found.metrics["val"]["r2"] > 0.3
    assert (found.model / "plots" / "predicted.png").is_file()
    model = load_model(found.model)
    assert model.record.task == "numbers"
    assert evaluate(found.model, **table).metrics["rmse"] == pytest.approx(best["rmse"], rel=1e-2)
    entry = predict(found.model, [next(source.rglob("*.png"))]).predictions[0]
    assert 20 < entry["value"] < 120
    low, high = entry["interval"]
    assert low < entry["value"] < high
    with (found.model / "predictions.csv").open(newline="") as file:
        rows = [(float(row["low"]), float(row["true"]), float(row["high"])) for row in csv.DictReader(file)]
    assert len(rows) == 12
    assert {round(top - bottom, 6) for bottom, _, top in rows} == {round(high - low, 6)}
    assert sum(bottom <= true <= top for bottom, true, top in rows) >= 0.9 * len(rows)


def test_numbers_start_from_a_fitted_regressor(source: Path, tmp_path: Path) -> None:
    table = numbers(source, tmp_path / "lengths.csv")
    store = extract(output=tmp_path / "lengths.h5", **table, **EMBEDDED).store
    head = fit_head(store, tmp_path / "ridge", head="ridge")
    found = finetune(output=tmp_path / "model", head=str(head.model), **table, **QUICK)
    assert found.epochs[0].val["rmse"] == pytest.approx(head.metrics["val"]["rmse"], rel=1e-3)
    assert found.metrics["val"]["rmse"] <= found.epochs[0].val["rmse"] * 1.001


def test_bad_images_have_no_part_and_are_listed(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    write(folder / "train", 4)
    write(folder / "val", 2, first=50)
    (folder / "train" / "cold" / "001.png").write_bytes(b"no image")
    (folder / "val" / "warm" / "050.png").write_bytes(b"")
    found = finetune(folder, tmp_path / "model", **EMBEDDED, **QUICK)
    assert found.rows == {"val": 3, "train": 7}
    assert set(found.bad) == {"train/cold/001.png", "val/warm/050.png"}
    assert found.bad["val/warm/050.png"].startswith("empty")
    assert "2 bad images left out:" in found.summary()
    assert json.loads((found.model / "model.json").read_text())["data"]["rows"] == 7


def test_a_source_without_a_split_is_held_out_as_for_a_head(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    write(folder, 10)
    store = extract(folder, tmp_path / "photos.h5", **EMBEDDED).store
    head = fit_head(store, tmp_path / "head", val=0.2)
    found = finetune(folder, tmp_path / "model", head=str(head.model), val=0.2, **QUICK)

    def held_out(model: Path) -> list[str]:
        with (model / "predictions.csv").open(newline="") as file:
            return sorted(row["id"] for row in csv.DictReader(file))

    assert held_out(found.model) == held_out(head.model)
    assert found.epochs[0].val["accuracy"] == head.metrics["val"]["accuracy"]


def test_the_last_word_is_on_rows_that_chose_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    write(folder, 10)
    store = extract(folder, tmp_path / "photos.h5", **EMBEDDED).store
    head = fit_head(store, tmp_path / "head", val=0.2, test=0.2)
    found = finetune(folder, tmp_path / "model", head=str(head.model), val=0.2, test=0.2, **QUICK)
    assert found.rows == {"val": 3, "test": 4, "train": 13}
    assert set(found.metrics["val"]) == set(found.metrics["test"])
    assert "accuracy_interval" in found.metrics["test"]
    assert not [notice for notice in found.notices if "trained the head" in notice]
    assert "\ntest rows (which chose nothing): accuracy" in found.summary()
    assert found.looks == found.to_json()["looks"] == 2
    assert "\nheld-out rows (the best of 2 looks at them): accuracy" in found.summary()
    for model in (head.model, found.model):
        with (model / "predictions.csv").open(newline="") as file:
            rows = {row["id"]: row["split"] for row in csv.DictReader(file)}
        assert sorted(rows.values()) == ["test"] * 4 + ["val"] * 3
        again = evaluate(model, folder)
        assert (again.rows, again.split, again.seen) == (4, "test", 0)
        saved = json.loads((model / "metrics.json").read_text())["test"]
        assert again.metrics["accuracy"] == saved["accuracy"]
    assert (evaluate(head.model, store).rows, evaluate(head.model, store).split) == (4, "test")


def test_a_head_that_knows_the_test_rows_is_told(source: Path, fitted: Path, tmp_path: Path) -> None:
    found = finetune(source, tmp_path / "model", head=str(fitted), test=0.25, **QUICK)
    assert found.rows == {"val": 12, "test": 4, "train": 12}
    told = "4 of 4 test rows trained the head that this starts from, whose figures on them flatter"
    assert [notice for notice in found.notices if notice.startswith(told)]
    again = evaluate(found.model, source)
    assert (again.rows, again.split) == (4, "test"), "the val rows of the source chose the epoch"


def test_a_group_is_never_on_both_sides(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    write(folder, 10)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    table = tmp_path / "cameras.csv"
    table.write_text("image,camera\n" + "".join(f"{name},c{row // 3}\n" for row, name in enumerate(names)))
    options = {"labels": str(table), "target": ["camera"], "group": "camera", "val": 0.3, "train": "head"}
    found = finetune(folder, tmp_path / "model", **{**EMBEDDED, **QUICK, **options})
    assert found.target == "class"
    assert "groups by camera: none is on both sides of a split or of a fold" in found.notices[0]
    assert found.metrics["val"]["groups"] * 3 >= found.metrics["val"]["n"] > found.metrics["val"]["groups"]
    with (found.model / "predictions.csv").open(newline="") as file:
        held = {names.index(row["id"]) for row in csv.DictReader(file)}
    assert len({row // 3 for row in held}) == found.metrics["val"]["groups"]


def test_a_tuned_base_keeps_the_transform_of_the_weights_it_came_from(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second weights of MobileNet resize to 232 pixels, the first to 256."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    random = load_base("mobilenet_v2", "none").module.state_dict()
    torch.save(random, tmp_path / "checkpoints" / "mobilenet_v2-b0353104.pth")
    options = {**QUICK, "train": ("features.18",), "base": "mobilenet_v2", "weights": "IMAGENET1K_V1"}
    found = finetune(few, tmp_path / "model", **options)
    model = load_model(found.model)
    assert model.base.transform.resize == (256, 256)
    assert model.base.transform.describe() == model.record.recipe.transform
    assert evaluate(found.model, few).metrics["accuracy"] == found.metrics["val"]["accuracy"]


def test_several_layers_and_class_weights(few: Path, tmp_path: Path) -> None:
    options = {**QUICK, "layer": ("avgpool", "features.5"), "pool": "avg", "class_weight": "balanced"}
    found = finetune(few, tmp_path / "model", **EMBEDDED, **options)
    assert found.layers == ("avgpool", "features.5")
    assert load_model(found.model).head.weight.shape == (2, 512 + 128)  # type: ignore[attr-defined]
    assert evaluate(found.model, few).metrics["accuracy"] == found.metrics["val"]["accuracy"]


def test_an_existing_output_is_refused_before_any_work_and_replaced_by_force(fitted: Path, few: Path) -> None:
    with pytest.raises(OutputExistsError, match="exists"):
        finetune("nowhere", fitted, **EMBEDDED)
    output = fitted.with_name("other")
    shutil.copytree(fitted, output)
    finetune(few, output, force=True, **EMBEDDED, **{**QUICK, "train": ("head",)})
    assert json.loads((output / "model.json").read_text())["chosen"]["train"] == ["head"]
    assert {path.name for path in fitted.parent.iterdir()} == {"linear", "other"}


WRONG: list[tuple[dict[str, Any], type[PipelineError], str]] = [
    ({"epoch": 3}, SettingsError, r"unknown option 'epoch' \(did you mean 'epochs'\?\)"),
    ({"epochs": 0}, SettingsError, "epochs=0"),
    ({"recipe": "tutorial", "beat_head": True}, SettingsError, "beat_head needs head"),
    ({"lr": -1}, SettingsError, "lr=-1"),
    ({"optimizer": "sgdm"}, SettingsError, "optimizer='sgdm'"),
    ({"augment": ("crop", "filp")}, SettingsError, r"unknown augmentation 'filp' \(did you mean 'flip'\?\)"),
    ({"augment": ("none", "flip")}, SettingsError, "augment=none stands alone"),
    ({"train": ("head", "features.12")}, SettingsError, "train=head stands alone"),
    ({"train": ("feature.12",)}, SettingsError, r"no module 'feature.12' \(did you mean 'features.12'\?\)"),
    ({"train": ("classifier",)}, SettingsError, "'classifier' of the base comes after the layers of the head"),
    ({"layer": ("avgpol",)}, BaseError, r"no layer 'avgpol' \(did you mean 'avgpool'\?\)"),
    ({"base": "resnet19", "weights": "none"}, BaseError, r"unknown base 'resnet19' \(did you mean"),
    ({"base": "scratch:cnn", "weights": "DEFAULT"}, BaseError, "scratch:cnn has no published weights; train it"),
    ({"device": "cuda:77"}, PipelineError, "cuda:77"),
    ({"head": "nowhere"}, ModelError, "nowhere does not exist; train a model"),
    ({"head": "anything", "layer": ("avgpool",)}, SettingsError, "layer comes from the model folder"),
    ({"head": "anything", "size": 96}, SettingsError, "size comes from the model folder"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_wrong_calls_are_one_line(
    source: Path, tmp_path: Path, options: dict[str, Any], error: type[PipelineError], message: str
) -> None:
    named = {} if "head" in options else EMBEDDED
    with pytest.raises(error, match=message) as caught:
        finetune(source, tmp_path / "model", **{**named, **options})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_wrong_sources_are_one_line(source: Path, fitted: Path, tmp_path: Path) -> None:
    table = numbers(source, tmp_path / "lengths.csv")
    with pytest.raises(SourceError, match="nowhere"):
        finetune("nowhere", tmp_path / "model", **EMBEDDED)
    with pytest.raises(SourceError, match="has no labels"):
        finetune(source / "train" / "cold", tmp_path / "model", **EMBEDDED)
    with pytest.raises(SourceError, match="has no target 'class'; known: length; the model predicts"):
        finetune(output=tmp_path / "model", head=str(fitted), **table)
    with pytest.raises(SettingsError, match="class_weight=balanced is for classes"):
        finetune(output=tmp_path / "model", class_weight="balanced", **table, **EMBEDDED)
    assert [path.name for path in tmp_path.iterdir()] == ["lengths.csv"]


def test_a_head_that_is_no_linear_layer_cannot_be_trained_on(source: Path, store: Path, tmp_path: Path) -> None:
    knn = fit_head(store, tmp_path / "knn", head="knn").model
    with pytest.raises(HeadError, match="holds a head 'knn', and only a linear layer"):
        finetune(source, tmp_path / "model", head=str(knn))


def test_a_head_on_the_root_of_features_cannot_be_trained_on(source: Path, store: Path, tmp_path: Path) -> None:
    root = fit_head(store, tmp_path / "root", head="linear", power="sqrt").model
    with pytest.raises(HeadError, match=r"square root of features.*fit it with --power none"):
        finetune(source, tmp_path / "model", head=str(root))


def test_a_kill_leaves_no_half_written_model(source: Path, tmp_path: Path) -> None:
    """Killed while it trains, and again at moments while it writes: nothing, or all of it, is there."""
    program = (
        "import sys; from pipeline.commands.finetune import finetune\n"
        "finetune(sys.argv[1], sys.argv[2], base='squeezenet1_1', weights='embedded', recipe='tutorial', train='head',"
        " epochs=1, force=True)\n"
        "print('done', flush=True)\n"
    )
    output = tmp_path / "model"
    for seen in (lambda: any(tmp_path.iterdir()), None):
        with subprocess.Popen([sys.executable, "-c", program, source, output], stdout=subprocess.PIPE) as child:
            if seen is None:
                time.sleep(3)
            while seen is not None and not seen() and child.poll() is None:
                time.sleep(0.001)
            os.kill(child.pid, signal.SIGKILL)
        if output.exists():
            assert load_model(output).record.target == "class"
    leftovers = [path.name for path in tmp_path.iterdir() if path != output]
    assert all(name.startswith((".model.", "model.training", "model.lock")) for name in leftovers)


@pytest.mark.slow
def test_ants_and_bees_from_the_fitted_head(real_data: Path, tmp_path: Path) -> None:
    photos = real_data / "data" / "hymenoptera"
    store = extract(photos, tmp_path / "photos.h5", **EMBEDDED).store
    head = fit_head(store, tmp_path / "linear", head="linear")
    found = finetune(photos, tmp_path / "tuned", head=str(head.model), train=("features.11", "features.12"), epochs=3)
    assert found.epochs[0].val["accuracy"] == head.metrics["val"]["accuracy"]
    assert found.epochs[0].val["loss"] == pytest.approx(head.metrics["val"]["log_loss"], rel=1e-3)
    assert found.metrics["val"]["accuracy"] >= 0.90
    assert evaluate(found.model, photos).metrics["accuracy"] == found.metrics["val"]["accuracy"]


# --- what is told


def test_a_class_like_a_formula_costs_no_training(few: Path, tmp_path: Path) -> None:
    shutil.copytree(few, tmp_path / "photos")
    for split in ("train", "val"):
        folder = next(path for path in sorted((tmp_path / "photos" / split).iterdir()))
        folder.rename(folder.with_name("$x^$"))
    result = finetune(tmp_path / "photos", tmp_path / "m", **EMBEDDED, **{**QUICK, "train": ("head",), "epochs": 1})
    assert (tmp_path / "m" / "model.json").is_file()
    assert (tmp_path / "m" / "plots" / "confusion.png").is_file()
    notices = [notice.split(";")[0] for notice in result.to_json()["notices"]]
    assert "held-out rows: only 4 rows" in notices
    assert not any("plot" in notice for notice in notices)
    assert "(95 %: " in result.summary()
    assert len(result.metrics["val"]["accuracy_interval"]) == 2


def test_every_epoch_is_said_as_it_ends_but_not_where_quiet_is_asked_for(
    few: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {**EMBEDDED, **QUICK, "train": ("head",), "epochs": 2, "cache": "never"}
    finetune(few, tmp_path / "m", progress=True, **options)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("fine-tuning squeezenet1_1 on 6 images, judged by 4; epoch 0 is before the first step")
    assert (
        lines[1] == "tutorial recipe: 2 epochs of 4 images a step, training head, SGD 0.001, times 0.1 every 7 epochs"
    )
    assert [line.split(":")[0] for line in lines[2:]] == ["epoch 0", "epoch 1", "epoch 2"]
    finetune(few, tmp_path / "q", **options)
    assert capfd.readouterr().err == ""


def test_without_rows_to_judge_by_nothing_is_trained(few: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="val=0: held-out rows decide which epoch is kept"):
        finetune(few, tmp_path / "m", **EMBEDDED, **QUICK, val=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_without_room_for_the_base_is_told_before_the_training(few: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no permission to mount")
    try:
        old = disk / "m"
        old.mkdir()
        (old / "model.json").write_text("old")
        command = [sys.executable, "-m", "pipeline", "finetune", str(few), "-o", str(old), "--force"]
        options = ["--base", "squeezenet1_1", "--weights", "embedded", "--epochs", "100000"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert done.stdout == ""
        assert re.fullmatch(
            rf"error: {re.escape(str(old))}: [\d.]+ MB are needed and [\d.]+ MB are left on its disk.*\n",
            done.stderr,
        )
        assert [path.name for path in disk.iterdir()] == ["m"]
        assert (old / "model.json").read_text() == "old"
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")
def test_models_made_in_a_folder_whose_name_is_no_text_can_be_opened(photo_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"photos\xff")
    folder.mkdir()
    photos = photo_folder.rename(folder / "photos")
    base = {"base": "squeezenet1_1", "weights": "embedded"}
    pipeline.extract(photos, folder / "f.h5", **base)
    fitted = pipeline.fit_head(folder / "f.h5", folder / "fitted", head="ridge", val=0.25).model
    options = {"head": str(fitted), "train": ("head",), "epochs": 1, "val": 0.25}
    tuned = pipeline.finetune(photos, folder / "tuned", **options).model
    for model in (fitted, tuned):
        assert pipeline.load_model(model).record.data.source.startswith(str(tmp_path) + "/photos\\udcff/")
