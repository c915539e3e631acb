"""What a model answers, wherever its folder and its weights are."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from conftest import Trained
from safetensors.torch import save_file

from pipeline.bases import load_base
from pipeline.commands.evaluate import evaluate
from pipeline.commands.export import export
from pipeline.commands.extract import extract
from pipeline.commands.finetune import finetune
from pipeline.commands.fit_head import fit_head
from pipeline.commands.predict import predict
from pipeline.errors import HeadError, ModelError, SettingsError
from pipeline.models.model import load_model
from pipeline.sources import from_paths


def test_a_model_answers_wherever_its_folder_is(model: Path, trained: Trained) -> None:
    image = [trained.photos / "val/bees/001.jpg"]
    here, there = predict(model, image).predictions[0], predict(trained.linear, image).predictions[0]
    assert here == there


def test_the_wrong_weights_are_an_error_and_the_right_ones_are_accepted(
    trained: Trained, model: Path, tmp_path: Path
) -> None:
    image = [trained.photos / "val/ants/001.jpg"]
    state = load_base("squeezenet1_1", "embedded").module.state_dict()
    right, wrong = tmp_path / "right.safetensors", tmp_path / "wrong.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, right)
    save_file({name: tensor.contiguous() + 1e-3 for name, tensor in state.items()}, wrong)
    assert predict(model, image, weights=str(right)).predictions[0]["label"] == "ants"
    with pytest.raises(ModelError, match="give the right file with --weights FILE"):
        predict(model, image, weights=str(wrong))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ModelError, match=r"wrong\.safetensors holds"):  # before any image is looked for
        predict(model, tmp_path / "nothing", weights=str(wrong))


def test_weights_that_have_moved_are_asked_for_where_the_graph_is_not_at_hand(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_base("squeezenet1_1", "embedded").module.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "w.safetensors")
    store = extract(
        trained.photos, tmp_path / "f.h5", base="squeezenet1_1", weights=str(tmp_path / "w.safetensors")
    ).store
    model = fit_head(store, tmp_path / "m", head="ridge").model
    image = [trained.photos / "val/ants/001.jpg"]
    before = predict(model, image).predictions
    (tmp_path / "w.safetensors").rename(tmp_path / "moved.safetensors")
    assert predict(model, image).predictions == before
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match=r"its base cannot be loaded: .*w\.safetensors.*give --weights FILE"):
        predict(model, image)
    assert predict(model, image, weights=str(tmp_path / "moved.safetensors")).predictions == before


def test_random_weights_come_back_from_their_seed(trained: Trained, tmp_path: Path) -> None:
    store = extract(trained.photos, tmp_path / "f.h5", base="squeezenet1_1", weights="none", seed=4).store
    model = fit_head(store, tmp_path / "m", head="ridge").model
    torch.manual_seed(99)
    assert "label" in predict(model, [trained.photos / "val/ants/001.jpg"]).predictions[0]


def test_features_and_answers_are_of_the_head(trained: Trained) -> None:
    model = load_model(trained.linear)
    records = from_paths(trained.photos / "val").records[:3]
    (batch,) = model.embed(records)
    assert batch.indices == [0, 1, 2]
    features = batch.layers[0]
    assert features.shape == (3, 512) == (3, model.embedder.dimensions)
    answers = model.answers(features, top=1)
    assert [len(answer["top"]) for answer in answers] == [1, 1, 1]


def test_a_model_answers_for_paths_and_says_what_it_is(trained: Trained) -> None:
    model = load_model(trained.linear)
    image = trained.photos / "val/ants/000.jpg"
    (alone,) = model.predict(image)
    assert model.predict(str(image)) == [alone] == predict(trained.linear, [image]).predictions
    assert alone["id"] == str(image)
    both = model.predict([trained.photos / "gone.jpg", image], top=1)
    assert [sorted(entry) for entry in both] == [["error", "id"], sorted(alone)]
    assert set(alone) == {"id", "label", "score", "top", "set", "unknown", "unlikeness", "nearest"}
    assert repr(model) == (
        f"Model('{trained.linear}': head linear, classes ants, bees, base squeezenet1_1 with weights embedded)"
    )
    assert "head ridge, numbers of 'length'" in repr(load_model(trained.ridge))


def test_a_model_of_two_bases_runs_both(trained: Trained, tmp_path: Path) -> None:
    base = {"base": "squeezenet1_1", "weights": "embedded"}
    other = extract(trained.photos, tmp_path / "o.h5", size=96, **base).store
    found = fit_head([trained.store, other], tmp_path / "m", head="linear")
    photos = trained.photos / "val"
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    *answers, refused = load_model(found.model).predict([*sorted(photos.rglob("*.jpg")), bad], top=2)
    assert "error" in refused
    with (tmp_path / "m" / "predictions.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    assert [answer["label"] for answer in answers] == [row["label"] for row in kept]
    for answer, row in zip(answers, kept, strict=True):
        assert answer["score"] == pytest.approx(float(row["score"]), abs=1e-5)
    assert all(answer["unlikeness"] > 0 for answer in answers)
    by_images = evaluate(found.model, trained.photos)
    assert by_images.metrics["accuracy"] == found.metrics["val"]["accuracy"]
    assert by_images.rows == evaluate(found.model, [trained.store, other]).rows == 12
    with pytest.raises(SettingsError, match="has 2 bases, and weights"):
        predict(found.model, bad, weights="DEFAULT")
    with pytest.raises(HeadError, match="asks several bases"):
        finetune(trained.photos, tmp_path / "tuned", head=str(found.model))
    with pytest.raises(ModelError, match="asks several bases"):
        export(found.model, tmp_path / "m.onnx")
