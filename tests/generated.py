"""What is made from the settings classes: `pipeline/config/options.py`, and the README's table of options.

    python tests/generated.py --write

writes them; tests hold the files to it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from pipeline.cli import cli
from pipeline.config import (
    CompareSettings,
    EvaluateSettings,
    ExtractSettings,
    FetchSettings,
    FinetuneSettings,
    FitSettings,
    LabelSettings,
    PlotSettings,
    RerunSettings,
    Settings,
)
from pipeline.config.signatures import type_text

HERE = Path(__file__).parents[1]
OPTIONS = HERE / "pipeline/config/options.py"
README = HERE / "README.md"
#: Where the table stands in the README.
TABLE = re.compile(r"(?<=<!-- options -->\n).*(?=<!-- end of options -->\n)", re.DOTALL)

#: Those that a function of the library takes as keyword arguments.
TAKEN: tuple[type[Settings], ...] = (
    ExtractSettings,
    FitSettings,
    FinetuneSettings,
    EvaluateSettings,
    RerunSettings,
    FetchSettings,
    LabelSettings,
    CompareSettings,
    PlotSettings,
)

HEAD = '''"""The keyword arguments of the library's functions, for type checkers and editors, which run no code.

Generated from the settings classes of `pipeline.config`, where each has its default, limits and meaning, by
``python tests/generated.py --write``; a test holds it to them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, TypedDict
'''


def options_name(settings: type[Settings]) -> str:
    """``ExtractSettings`` are given as ``ExtractOptions``."""
    return settings.__name__.replace("Settings", "Options")


def options_module() -> str:
    """The text of `pipeline/config/options.py`."""
    return HEAD + "".join(f"\n\n{text}\n" for text in map(_options_class, TAKEN))


def _options_class(settings: type[Settings]) -> str:
    fields = [f"    {name}: {type_text(field)}" for name, field in settings.model_fields.items()]
    return "\n".join(
        [
            f"class {options_name(settings)}(TypedDict, total=False):",
            f'    """The fields of `{settings.__name__}`."""',
            "",
            *fields,
        ]
    )


def options_table() -> str:
    """A row an option: where it means the same to several commands, once for all of them."""
    commands: dict[tuple[str, ...], list[str]] = {}
    for name, command in cli.commands.items():
        for option in command.params:
            if isinstance(option, click.Option):
                commands.setdefault(_cells(option), []).append(name)
    rows = [
        f"| `{flags}` | {value} | {default} | {_of(names)} | {meaning} |"
        for (flags, value, default, meaning), names in sorted(commands.items(), key=lambda row: row[0][0].lstrip("-"))
    ]
    return "\n".join(["| option | value | default | commands | meaning |", "|---|---|---|---|---|", *rows, ""])


def _cells(option: click.Option) -> tuple[str, ...]:
    meaning, _, default = (option.help or "").removesuffix("]").partition("  [default: ")
    if option.show_default is True:
        default = str(option.default)
    flags = ", ".join(sorted(option.opts, key=len))
    return flags, _value(option).replace("|", ", "), default, meaning.replace("|", "\\|")


def _value(option: click.Option) -> str:
    if option.is_flag:
        return ", ".join(f"or `{other}`" for other in option.secondary_opts)
    if isinstance(option.type, click.Choice):
        return ", ".join(option.type.choices)
    return option.metavar or {"integer range": "N", "path": "PATH"}.get(option.type.name, "TEXT")


def _of(names: list[str]) -> str:
    return "all" if len(names) == len(cli.commands) else ", ".join(names)


def generated() -> Iterator[tuple[Path, str]]:
    """Each file that is generated, wholly or in part, with the text that it should have."""
    yield OPTIONS, options_module()
    yield README, TABLE.sub(lambda _: options_table(), README.read_text())


if __name__ == "__main__":
    for path, text in generated():
        if path.exists() and path.read_text() == text:
            continue
        print(path.relative_to(HERE))
        if sys.argv[1:] == ["--write"]:
            path.write_text(text)
