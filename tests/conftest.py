"""What every test shares: real data where it is at hand, and small pictures made on the spot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the real photos and weights; tests that need it skip without."""
    root = os.environ.get("PIPELINE_REAL_DATA")
    if not root:
        pytest.skip("PIPELINE_REAL_DATA is not set")
    return Path(root).resolve()
