"""A base that needs no download, and a cache that nobody else writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.bases import Base, load_base


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for the test alone."""
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "onnx"


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("squeezenet1_1", "embedded")
