"""The keyword arguments that type checkers know are the fields of the settings classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from generated import generated


@pytest.mark.parametrize(("path", "text"), list(generated()), ids=lambda one: getattr(one, "name", ""))
def test_what_is_generated_is_current(path: Path, text: str) -> None:
    assert path.read_text() == text, "run: python tests/generated.py --write"
