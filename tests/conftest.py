"""What every test shares: real data where it is at hand, and small pictures made on the spot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pictures import write_photos


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the real photos and weights; tests that need it skip without."""
    root = os.environ.get("PIPELINE_REAL_DATA")
    if not root:
        pytest.skip("PIPELINE_REAL_DATA is not set")
    return Path(root).resolve()


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Twelve small JPEGs, a folder a class: reddish ``ants``, bluish ``bees``; any head tells them apart."""
    root = tmp_path / "photos"
    write_photos(root / "ants", 6, first_seed=0, colour=(200, 60, 40))
    write_photos(root / "bees", 6, first_seed=100, colour=(40, 60, 200))
    return root


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    """The same classes under ``train`` (8 a class) and ``val`` (4 a class)."""
    root = tmp_path / "splits"
    for seed, (split, count) in enumerate((("train", 8), ("val", 4))):
        write_photos(root / split / "ants", count, first_seed=1000 * seed, colour=(200, 60, 40))
        write_photos(root / split / "bees", count, first_seed=1000 * seed + 100, colour=(40, 60, 200))
    return root
