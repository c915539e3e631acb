"""What is made from the settings classes: `pipeline/options.py`, and the README's table of options.

    python tests/generated.py --write

writes them; tests hold the files to it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import (
    EvaluateSettings,
    ExtractSettings,
    FinetuneSettings,
    FitSettings,
    RerunSettings,
    Settings,
)
from pipeline.signatures import type_text

HERE = Path(__file__).parents[1]
OPTIONS = HERE / "pipeline/options.py"

#: Those that a function of the library takes as keyword arguments.
TAKEN: tuple[type[Settings], ...] = (ExtractSettings, FitSettings, FinetuneSettings, EvaluateSettings, RerunSettings)

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
    """The text of `pipeline/options.py`."""
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


def generated() -> Iterator[tuple[Path, str]]:
    """Each file that is generated, wholly or in part, with the text that it should have."""
    yield OPTIONS, options_module()


if __name__ == "__main__":
    for path, text in generated():
        if path.exists() and path.read_text() == text:
            continue
        print(path.relative_to(HERE))
        if sys.argv[1:] == ["--write"]:
            path.write_text(text)
