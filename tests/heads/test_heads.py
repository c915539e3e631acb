"""The registry of heads: every name is one file, and a description that is damaged is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import config, heads
from pipeline.errors import ModelError
from pipeline.heads import HEADS, load_head


def test_every_head_is_a_file_of_its_name() -> None:
    folder = Path(heads.__file__).parent
    assert set(HEADS) == set(config.HEADS)
    for name in HEADS:
        assert (folder / f"{name}.py").is_file()
        assert HEADS[name].__module__ == f"pipeline.heads.{name}"
        assert HEADS[name].name == name


@pytest.mark.parametrize("config", [{}, {"name": "linear"}, {"name": 3}])
def test_a_description_that_is_none_is_one_line(tmp_path: Path, config: dict[str, object]) -> None:
    with pytest.raises(ModelError) as refused:
        load_head(tmp_path, config)
    assert "\n" not in str(refused.value)
