"""What a model was asked to be: equal requests for equal trainings, and inputs that are told apart without reading."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cheap import manifest_of, write_images
from conftest import Trained

from pipeline.config import FinetuneSettings, FitSettings
from pipeline.models.provenance import chosen_settings, fingerprint_images, recorded_request, request_of, start_files


def test_a_setting_at_its_default_changes_no_request() -> None:
    assert chosen_settings(FitSettings.of({})) == {}
    plain = request_of("fit-head", FitSettings.of({"head": "svm"}), "0" * 64)
    assert plain == request_of("fit-head", FitSettings.of({"head": "svm", "seed": FitSettings.of({}).seed}), "0" * 64)
    assert plain != request_of("fit-head", FitSettings.of({"head": "svm", "seed": 99}), "0" * 64)


def test_a_request_with_a_path_that_is_no_utf_8_is_json() -> None:
    settings = FinetuneSettings.of({"base": "resnet18", "weights": os.fsdecode(b"caf\xe9.pt")})
    weights = json.loads(json.dumps(chosen_settings(settings)))["weights"]
    assert weights.startswith("caf")
    assert weights.isprintable()


def test_the_request_of_a_model_is_read_back(trained: Trained, tmp_path: Path) -> None:
    request = recorded_request(trained.linear)
    assert request is not None
    assert request["command"] == "fit-head"
    assert recorded_request(tmp_path) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"request": 3}', "[" * 10**5])
def test_what_is_no_record_has_no_request(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text)
    assert recorded_request(tmp_path) is None


def test_images_are_told_apart_by_name_label_size_and_time(tmp_path: Path) -> None:
    write_images(tmp_path, 4)
    before = fingerprint_images(manifest_of(tmp_path))
    assert fingerprint_images(manifest_of(tmp_path)) == before
    assert fingerprint_images(manifest_of(tmp_path, flipped=frozenset({"00001.jpg"}))) != before
    assert fingerprint_images(manifest_of(tmp_path), [tmp_path / "00000.jpg"]) != before
    os.utime(tmp_path / "00002.jpg", ns=(1, 1))
    assert fingerprint_images(manifest_of(tmp_path)) != before


def test_a_training_starts_from_a_model_or_from_weights() -> None:
    assert start_files(FinetuneSettings.of({"head": "artifacts/svm"})) == [Path("artifacts/svm/model.json")]
    assert start_files(FinetuneSettings.of({"weights": "w.pt"})) == [Path("w.pt")]
