"""A short, repeatable run of the fuzzer, and everything that it once found."""

from __future__ import annotations

import pytest
from fuzz_pixels import attempt, fuzz, read_corpus

from pipeline.errors import BAD_IMAGE
from pipeline.images import decoding


def has_no_decoder(name: str) -> bool:
    formats = {"avif": "AVIF", "heic": "HEIF"}
    return any(name.endswith(suffix) and not decoding._has_decoder(kind) for suffix, kind in formats.items())


@pytest.mark.parametrize("name", read_corpus())
def test_the_corpus_is_harmless(name: str) -> None:
    outcome = attempt(read_corpus()[name])
    expected = name.split(".")[0].rpartition("=")[2] if "=" in name else "pixels"
    assert outcome == ("unreadable" if has_no_decoder(name) else expected)


def test_the_corpus_holds_every_format() -> None:
    suffixes = {name.rpartition(".")[2] for name in read_corpus()}
    assert suffixes >= {"jpg", "png", "webp", "gif", "bmp", "tif", "avif", "heic"}


def test_damaged_images_give_pixels_or_a_reason() -> None:
    outcomes = fuzz(seed=13, count=4000)
    assert outcomes.total() == 4000
    assert set(outcomes) <= {"pixels", *BAD_IMAGE}
    assert min(outcomes["pixels"], outcomes["truncated"], outcomes["corrupt"], outcomes["too-large"]) > 10


def test_the_same_seed_tries_the_same_files() -> None:
    assert fuzz(seed=1, count=200) == fuzz(seed=1, count=200)


@pytest.mark.slow
def test_damaged_images_for_a_minute() -> None:
    assert fuzz(seed=14, seconds=60).total() > 10_000
