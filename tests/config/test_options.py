"""What is generated from the settings classes is current: types of keyword arguments, and the table of options."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from generated import README, generated, options_table

from pipeline.cli import cli
from pipeline.config import ExtractSettings, FinetuneSettings, FitSettings, RerunSettings


@pytest.mark.parametrize(("path", "text"), list(generated()), ids=lambda one: getattr(one, "name", ""))
def test_what_is_generated_is_current(path: Path, text: str) -> None:
    assert path.read_text() == text, "run: python tests/generated.py --write"


def test_every_option_is_in_the_table() -> None:
    table = options_table()
    for name, command in cli.commands.items():
        for option in command.params:
            if isinstance(option, click.Option):
                rows = [row.split(" | ") for row in table.splitlines() if f"{option.opts[-1]}`" in row.split(" | ")[0]]
                assert [row for row in rows if row[3] == "all" or name in row[3].split(", ")], option.opts
                assert all(row[4].strip("| ") for row in rows), option.opts


def test_every_setting_is_in_the_table_or_said_to_be_for_python_alone() -> None:
    text = README.read_text()
    for settings in (ExtractSettings, FitSettings, FinetuneSettings):
        assert not [name for name in settings.model_fields if f"| `--{name.replace('_', '-')}` |" not in text]
    for command in ("predict", "evaluate", "verify"):
        hidden = set(RerunSettings.model_fields) - {option.name for option in cli.commands[command].params}
        section = text.partition("From Python alone, ")[2].partition("\n\n")[0]
        assert {f"`{name}`" for name in hidden} <= set(section.replace(".", "").replace(",", "").split())
