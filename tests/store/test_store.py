"""What the store tells of itself, and what is one."""

from __future__ import annotations

from pathlib import Path

from cheap import (
    LAYERS,
    recipe,
)

from pipeline.store import is_store

# --- reading


def test_is_store(path: Path, images: Path, tmp_path: Path) -> None:
    assert is_store(path)
    assert is_store(path.parent)
    assert not is_store(images)
    assert not is_store(images / "00001.jpg")
    assert not is_store(tmp_path / "nowhere")


# --- ranges


def test_layers_of_the_tests_are_those_of_the_recipe() -> None:
    assert tuple(layer.name for layer in LAYERS) == recipe().layers
