"""A whole experiment in one TOML file: its tables are commands, run in the order they stand in.

    [extract]
    source = "photos"
    output = "artifacts/photos.h5"
    base = "resnet18"

    [[fit-head]]
    store = "artifacts/photos.h5"
    output = "artifacts/photos-svm"
    head = "svm"

Keys are the options of the command with underscores; paths are relative to the folder the command is run from.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import ExtractSettings, FinetuneSettings, FitSettings, Settings
from pipeline.errors import SettingsError
from pipeline.extraction import extract
from pipeline.finetuning import finetune
from pipeline.fitting import fit_head
from pipeline.registry import Registry


@dataclass(frozen=True)
class Stage:
    """A command: its function, what its first argument is called, and the options that it knows."""

    run: Callable[..., Any]
    takes: str
    settings: type[Settings]


STAGES: Registry[Stage] = Registry("stage")
STAGES.add("extract", Stage(extract, "source", ExtractSettings))
STAGES.add("fit-head", Stage(fit_head, "store", FitSettings))
STAGES.add("finetune", Stage(finetune, "source", FinetuneSettings))


@dataclass
class ExperimentResult:
    """The result of every stage, in the order they ran."""

    config: Path
    steps: list[tuple[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The keys that `--json` promises."""
        return {"config": str(self.config), "steps": [{name: step.to_json()} for name, step in self.steps]}

    def summary(self) -> str:
        """Every stage's own summary."""
        return "\n\n".join(f"[{name}]\n{step.summary()}" for name, step in self.steps)


def run(config: str | Path, *, force: bool = False) -> ExperimentResult:
    """Run the stages of `config`; the whole file is checked before the first one starts."""
    config = Path(config)
    steps = read_experiment(config)
    return ExperimentResult(config, [(name, STAGES[name].run(force=force, **options)) for name, options in steps])


def read_experiment(config: Path) -> list[tuple[str, dict[str, Any]]]:
    """The stages of a file with their options; raises `SettingsError` for what no stage knows."""
    try:
        tables = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{config} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config} is not TOML: {error}") from None
    steps = [
        (name, _checked(config, name, options))
        for name, table in tables.items()
        for options in (table if isinstance(table, list) else [table])
    ]
    if not steps:
        raise SettingsError(f"{config} names no stage; known: {', '.join(STAGES)}")
    return steps


def _checked(config: Path, name: str, options: Any) -> dict[str, Any]:
    """`options` of stage `name`, as they stand in the file, once its settings accept them."""
    stage = STAGES[name]
    for key in (stage.takes, "output"):
        if not isinstance(options, dict) or key not in options:
            raise SettingsError(f"{config}: [{name}] needs {key} = ...")
    stage.settings.of({key: value for key, value in options.items() if key not in (stage.takes, "output")})
    return dict(options)
