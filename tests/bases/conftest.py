"""Bases with random weights, loaded once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.bases import Base, load_base


@pytest.fixture(scope="module")
def base_of() -> Callable[[str], Base]:
    """Bases with random weights, loaded once."""
    kept: dict[str, Base] = {}

    def get(name: str) -> Base:
        if name not in kept:
            kept.clear()  # one at a time: some are large
            kept[name] = load_base(name, "none")
        return kept[name]

    return get
