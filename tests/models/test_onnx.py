"""What cannot be a file, and what a file says of itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import Trained

import pipeline
from pipeline.errors import ModelError
from pipeline.models import onnx as onnx_model
from pipeline.models.model import load_model
from pipeline.models.onnx import export_model


def test_the_file_says_what_it_is(trained: Trained) -> None:
    content, difference = export_model(load_model(trained.linear))
    graph = onnx.load_from_string(content)
    onnx.checker.check_model(graph)
    said = {one.key: one.value for one in graph.metadata_props}
    assert said["format"] == "pipeline-onnx"
    assert json.loads(said["classes"]) == ["ants", "bees"]
    assert json.loads(said["recipe"])["base"] == load_model(trained.linear).record.recipe.base
    assert [(one.name, len(one.type.tensor_type.shape.dim)) for one in graph.graph.input] == [("image", 3)]
    assert difference < 1e-5


def test_pixels_are_taken_as_a_batch(trained: Trained) -> None:
    model = load_model(trained.linear)
    content, _ = export_model(model, takes="pixels")
    session = onnxruntime.InferenceSession(content)
    pixels = np.zeros((5, *model.base.transform.size, 3), np.uint8)
    (found,) = session.run(None, {"pixels": pixels})
    assert found.shape == (5, 2)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-6)


def test_a_graph_that_answers_otherwise_is_refused(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(onnx_model.HeadModule):
        def forward(self, features):  # type: ignore[no-untyped-def]
            return tuple(0.9 * answer for answer in super().forward(features))

    monkeypatch.setattr(onnx_model, "HeadModule", Wrong)
    with pytest.raises(ModelError, match="its graph answers otherwise, by 0"):
        export_model(load_model(trained.linear))


def test_random_views_are_in_no_file(trained: Trained, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(trained.photos / "train", photos)
    base = {"base": "squeezenet1_1", "weights": "embedded", "size": 64}
    pipeline.extract(photos, tmp_path / "a.h5", views=2, augment="flip", **base)
    pipeline.fit_head(tmp_path / "a.h5", tmp_path / "m", score_views="mean")
    with pytest.raises(ModelError, match="the mean over random views"):
        export_model(load_model(tmp_path / "m"))


def test_int8_is_in_no_file(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(trained.linear)
    recipe = model.record.recipe.model_copy(update={"precision": "int8"})
    monkeypatch.setattr(model, "record", model.record.model_copy(update={"recipe": recipe}))
    with pytest.raises(ModelError, match="trained on int8 features, and a file would answer from those in fp32"):
        export_model(model)
