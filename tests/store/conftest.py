"""Thirty files that stand for images, and the store that is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cheap import extract, manifest_of, write_images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 30)
    return tmp_path / "images"


@pytest.fixture
def path(images: Path, tmp_path: Path) -> Path:
    extract(manifest_of(images), tmp_path / "F.h5")
    return tmp_path / "F.h5"
