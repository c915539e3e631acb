"""The model folder: whole or absent, readable without pickle, and never with the wrong base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cheap import recipe
from conftest import Trained
from pictures import write_photos

from pipeline.bases import load_base
from pipeline.bases.weights import digest
from pipeline.commands.evaluate import evaluate
from pipeline.commands.fit_head import fit_head
from pipeline.commands.predict import predict
from pipeline.errors import ModelError, OutputExistsError
from pipeline.heads import LinearHead
from pipeline.metrics import classification
from pipeline.models.folder import BaseRecord, DataRecord, ModelRecord, checksum, save_model
from pipeline.models.model import load_model
from pipeline.sources import Target
from pipeline.training.network import write_base


def change(model: Path, **changes: Any) -> None:
    """Forge: what is changed has the checksum that belongs to it."""
    content = {**json.loads((model / "model.json").read_text()), **changes}
    (model / "model.json").write_text(json.dumps({**content, "checksum": checksum(content)}))


def test_the_folder_holds_what_the_format_names(model: Path) -> None:
    files = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
    assert files == [
        "README.md",
        "head.safetensors",
        "metrics.json",
        "model.json",
        "out_of_fold.csv",
        "plots/confusion.png",
        "plots/predictions.png",
        "predictions.csv",
        "rows.safetensors",
        "unlikeness.safetensors",
    ]
    record = load_model(model).record
    assert record.classes == ("ants", "bees")
    assert record.base.weights == "embedded"
    assert record.data.rows == 24
    assert json.loads((model / "metrics.json").read_text())["val"] == record.metrics["val"]
    rows = (model / "predictions.csv").read_text().splitlines()
    assert len(rows) == 1 + 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, "has format version 3, this program reads up to 2; update the program or train again"),
        ({"format": "other"}, "does not describe a model of this program"),
        ({"task": "poems"}, "is damaged: task"),
        ({"stranger": 1}, "is damaged: stranger"),
        ({"head": {"name": "telepathy"}}, "the description of its head is damaged"),
    ],
)
def test_a_folder_that_is_not_ours_says_why(model: Path, changes: dict[str, Any], message: str) -> None:
    change(model, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(model)


def test_json_that_is_not_json_and_heads_that_are_gone(model: Path) -> None:
    (model / "head.safetensors").unlink()
    with pytest.raises(ModelError, match=r"head\.safetensors"):
        load_model(model)
    (model / "model.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(model)


def test_another_pixel_policy_is_refused(model: Path) -> None:
    recipe = json.loads((model / "model.json").read_text())["recipe"]
    change(model, recipe={**recipe, "pixels": 99})
    with pytest.raises(ModelError, match="was trained under pixel policy 99, this version reads pixels under policy 1"):
        load_model(model)


def test_answers_that_are_no_numbers_are_told(trained: Trained, model: Path) -> None:
    head = json.loads((model / "model.json").read_text())["head"]
    change(model, head={**head, "sharpness": 1.7e308})
    for ask in (lambda: predict(model, trained.photos / "val/ants/001.jpg"), lambda: evaluate(model, trained.store)):
        with pytest.raises(ModelError, match="head 'linear' answers with NaN or infinity; train it again"):
            ask()


def test_an_image_whose_features_are_no_numbers_has_no_answer(trained: Trained, model: Path) -> None:
    base = load_base("squeezenet1_1", "embedded")
    with torch.no_grad():
        next(base.module.parameters())[:] = torch.nan
    write_base(base, model / "base.safetensors")
    content = json.loads((model / "model.json").read_text())
    recipe = {**content["recipe"], "weights": digest(base.module)}
    change(model, base={**content["base"], "fine_tuned": True}, recipe=recipe)
    image = trained.photos / "val/ants/001.jpg"
    (answer,) = load_model(model, engine="torch").predict(image)
    assert answer == {"id": str(image), "error": "non-finite: the base gives NaN or infinity for it"}


def test_what_is_there_is_not_replaced_unasked(trained: Trained, model: Path, tmp_path: Path) -> None:
    before = (model / "model.json").read_bytes()
    with pytest.raises(OutputExistsError, match="--force"):
        fit_head(trained.store, model, head="ridge")
    assert (model / "model.json").read_bytes() == before
    fit_head(trained.store, model, head="ridge", force=True)
    assert load_model(model).head.name == "ridge"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExistsError):
        fit_head(trained.store, tmp_path / "mine", head="ridge", force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def save(folder: Path, classes: list[str], *, replace: bool = False) -> Path:
    """A model of a head that nobody trained, with metrics of four parts."""
    random = np.random.default_rng(0)
    truth, scores = random.integers(0, len(classes), 50), random.random((50, len(classes)))
    found = classification(truth, scores, classes)
    weight = random.random((len(classes), 3))
    head = LinearHead.from_weights(weight, weight[:, 0], task="classes")
    record = ModelRecord.of(
        head,
        Target("class", truth, tuple(classes)),
        base=BaseRecord(name="cheap", weights="none", seed=1),
        recipe=recipe(),
        metrics=dict.fromkeys(("val", "test", "cv", "train"), found),
        data=DataRecord(source="nowhere", rows=50, fingerprint="0"),
    )
    return save_model(folder, head, record=record, replace=replace)


@pytest.mark.parametrize("length", [20, 140])
def test_a_model_of_thousands_of_classes_opens(tmp_path: Path, length: int) -> None:
    """With long names, model.json has to be written close together."""
    model = load_model(save(tmp_path / "m", [f"{number:0{length}}" for number in range(20_000)]))
    assert model.head.outputs == len(model.record.classes or ()) == 20_000
    (answer,) = model.answers(np.ones((1, 3), np.float32), top=1)
    assert len(answer["label"]) == length


def test_a_model_that_could_not_be_opened_is_not_saved(tmp_path: Path) -> None:
    before = save(tmp_path / "m", ["ants", "bees"])
    with pytest.raises(ModelError, match=r"a model\.json of \d+ MB could not be opened again.*shorter names$"):
        save(tmp_path / "m", [f"{number:01000}" for number in range(4000)], replace=True)
    assert load_model(before).record.classes == ("ants", "bees")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


# --- of version 0.1.0, and of any later one
OLD = Path(__file__).parents[1] / "data" / "0.1.0"
EXPECTED: dict[str, list[dict[str, Any]]] = json.loads((OLD / "expected.json").read_text())


@pytest.fixture(scope="module")
def old_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures that the models in tests/data/0.1.0 were trained on."""
    root = tmp_path_factory.mktemp("old")
    write_photos(root / "photos/ants", 6, first_seed=0, colour=(200, 60, 40))
    write_photos(root / "photos/bees", 6, first_seed=100, colour=(40, 60, 200))
    return root


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_model_of_the_first_version_opens_with_a_note_and_answers_the_same(
    old_photos: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(OLD / name)
    (said,) = caplog.messages
    assert said.startswith(f"{OLD / name} was saved by version 0.1.0, without checksums")
    answers = model.predict([old_photos / entry["id"] for entry in EXPECTED[name]])
    for answer, expected in zip(answers, EXPECTED[name], strict=True):
        if "value" in expected:
            assert answer["value"] == pytest.approx(expected["value"], rel=1e-5)
            assert answer["interval"] == pytest.approx(expected["interval"], rel=1e-5)
        else:
            assert answer["label"] == expected["label"]
            for (label, score), (known, wanted) in zip(answer["top"], expected["top"], strict=True):
                assert label == known
                assert score == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("store", "model"), [("classes", "classes-svm"), ("numbers", "numbers-ridge")])
def test_a_feature_file_of_the_first_version_scores_models_old_and_new(store: str, model: str, tmp_path: Path) -> None:
    before = evaluate(OLD / model, OLD / f"{store}.h5").metrics
    fresh = fit_head(OLD / f"{store}.h5", tmp_path / "m", head=model.split("-")[1]).model
    assert evaluate(fresh, OLD / f"{store}.h5", split="all").metrics["n"] == before["n"] == 12
