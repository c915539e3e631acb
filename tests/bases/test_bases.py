"""Bases by name: which there are, with which weights, and what is said of one that is none."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from pipeline.bases import load_base
from pipeline.errors import BaseError


def test_embedded_weights_know_a_cat(real_data: Path) -> None:
    from pipeline.images import decoding

    base = load_base("squeezenet1_1", "embedded")
    assert base.classes is not None
    right = 0
    files = sorted((real_data / "data/cats_dogs/cat").glob("*.jpg"))[:20]
    for file in files:
        shaped = base.transform.preprocess(decoding.decode(file.read_bytes()))
        with torch.inference_mode():
            scores = base.module(base.transform.normalize(torch.from_numpy(shaped.copy())[None]))
        right += "cat" in base.classes[int(scores.argmax())] or "tabby" in base.classes[int(scores.argmax())]
    assert right >= 12


def test_random_weights_are_seeded_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    before = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING):
        first = load_base("squeezenet1_1", "none")
    assert "RANDOM" in caplog.text
    assert torch.equal(before, torch.random.get_rng_state())
    assert load_base("squeezenet1_1", "none").digest == first.digest
    assert load_base("squeezenet1_1", "none", seed=14).digest != first.digest


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet81", "none", r"unknown base 'resnet81' \(did you mean 'resnet18'\?\)"),
        ("timm:resnet81", "none", r"unknown base 'timm:resnet81' \(did you mean"),
        ("resnet18", "IMAGENET1K_V3", r"resnet18 has no weights 'IMAGENET1K_V3' \(did you mean 'IMAGENET1K_V1'\?\)"),
        ("resnet18", "embedded", "resnet18 has no embedded weights; squeezenet1_1 has"),
        ("timm:resnet18", "a9_in1k", r"has no weights 'a9_in1k' \(did you mean 'a"),
    ],
)
def test_bases_and_weights_that_are_none(name: str, weights: str, message: str) -> None:
    with pytest.raises(BaseError, match=message):
        load_base(name, weights)
