"""A model that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import Trained


@pytest.fixture
def model(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the linear model that a test may damage."""
    return Path(shutil.copytree(trained.linear, tmp_path / "model"))
