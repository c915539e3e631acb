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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.commands.results import Result
from pipeline.config import ExtractSettings, FinetuneSettings, FitSettings, Settings
from pipeline.errors import ModelError, OutputExistsError, PipelineError, RecipeMismatchError, SettingsError
from pipeline.files import refuse_nul
from pipeline.models.provenance import chosen_settings, fingerprint_images, recorded_request, request_of, start_files
from pipeline.registry import Registry
from pipeline.text import shown

# A stage is imported when its step is due: what is refused, or is current, waits for no import of torch.


def _extract(source: str, output: str, *, force: bool, progress: bool, **options: Any) -> Any:
    """Extract, and keep the cached features: no `force` of a run ever discards them."""
    from pipeline.commands.extract import extract

    return extract(source, output, progress=progress, **options)


def _fit_head(store: str, output: str, **options: Any) -> Any:
    from pipeline.commands.fit_head import fit_head

    return fit_head(store, output, **options)


def _finetune(source: str, output: str, **options: Any) -> Any:
    from pipeline.commands.finetune import finetune

    return finetune(source, output, **options)


def _features(store: str, settings: Settings) -> str:
    from pipeline.store import FeatureStore

    with FeatureStore.open(store) as opened:
        return opened.fingerprint


def _images(source: str, settings: Settings) -> str:
    from pipeline.sources import read_manifest

    assert isinstance(settings, FinetuneSettings)
    return fingerprint_images(read_manifest(source, settings), start_files(settings))


@dataclass(frozen=True)
class Stage:
    """A command: its function, the name `takes` of its first argument, and the options that it knows.

    `inputs` fingerprints the data that a model is trained on; None for the stage that brings its own output up to date.
    """

    run: Callable[..., Any]
    takes: str
    settings: type[Settings]
    inputs: Callable[[str, Settings], str] | None = None


STAGES: Registry[Stage] = Registry("stage")
STAGES.add("extract", Stage(_extract, "source", ExtractSettings))
STAGES.add("fit-head", Stage(_fit_head, "store", FitSettings, _features))
STAGES.add("finetune", Stage(_finetune, "source", FinetuneSettings, _images))


@dataclass(frozen=True)
class Planned:
    """One table of the file: `place` is its number among all, and `options` are as they stand there."""

    name: str
    place: str
    options: dict[str, Any]

    @property
    def stage(self) -> Stage:
        """The command."""
        return STAGES[self.name]

    @property
    def input(self) -> str:
        """The path that it reads."""
        return str(self.options[self.stage.takes])

    @property
    def output(self) -> Path:
        """The path that it writes."""
        return Path(self.options["output"])

    @property
    def settings(self) -> Settings:
        """Its options, validated."""
        return self.stage.settings.of(_rest(self))

    def heading(self) -> str:
        """Format the line that is shown as it begins."""
        return f"[{self.place} {self.name}] {shown(self.input)} -> {shown(self.output)}"


@dataclass(frozen=True)
class Step(Result):
    """The outcome of one step; `result` is None where its output was current, and `why` says why it ran or did not."""

    name: str
    output: Path
    why: str
    result: Result | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the keys that `--json` promises; the first is the name of the stage."""
        result = {"output": str(self.output)} if self.result is None else self.result.to_json()
        return {self.name: result, "name": self.name, "ran": self.result is not None, "why": self.why, "result": result}

    def summary(self) -> str:
        """Return the stage's own summary, or that there was nothing to do."""
        summary = f"{shown(self.output)}: {self.why}" if self.result is None else self.result.summary()
        return f"[{self.name}]\n{summary}"


@dataclass
class ExperimentResult(Result):
    """The outcomes of all steps, in their order."""

    config: Path
    steps: list[Step]

    def summary(self) -> str:
        """Join every step's own summary."""
        return "\n\n".join(step.summary() for step in self.steps)


def run(config: str | Path, *, force: bool = False, progress: bool = False) -> ExperimentResult:
    """Run the steps of `config`; a model that was made by the same settings on the same data is left as it is.

    `force` trains every model again; features are never discarded. Raises as the stages do, with the step's name.
    """
    return ExperimentResult(Path(config), list(run_steps(config, force=force, progress=progress)))


def run_steps(
    config: str | Path,
    *,
    force: bool = False,
    progress: bool = False,
    watch: Callable[[str], None] = lambda heading: None,
) -> Iterator[Step]:
    """Run as `run` does, and yield every step; `watch` is called with the heading of a step as it begins.

    The whole file, and whether its outputs can be written, is checked before the first step starts.
    """
    planned = read_experiment(Path(config))
    for step in planned:
        with _named(step):
            _refuse_other(step, force=force)
    for step in planned:
        watch(step.heading())
        with _named(step):
            yield _run_step(step, force=force, progress=progress)


def _run_step(step: Planned, *, force: bool, progress: bool) -> Step:
    why = "cached features are brought up to date" if step.stage.inputs is None else "it was not there"
    if step.stage.inputs is not None and force:
        why = "it was asked for with --force"
    elif step.stage.inputs is not None and _exists(step.output):
        if recorded_request(step.output) == request_of(
            step.name, step.settings, step.stage.inputs(step.input, step.settings)
        ):
            _refuse_damaged(step.output)
            return Step(step.name, step.output, "up to date, made by the same settings on the same data")
        raise OutputExistsError(
            f"{step.output} was trained on other data than {step.input} holds today; give --force to train every model "
            "again, or another output"
        )
    result = step.stage.run(step.input, step.output, force=force, progress=progress, **_rest(step))
    return Step(step.name, step.output, why, result)


def _rest(step: Planned) -> dict[str, Any]:
    return {key: value for key, value in step.options.items() if key not in (step.stage.takes, "output")}


def _exists(output: Path) -> bool:
    return output.exists() and not (output.is_dir() and not any(output.iterdir()))


def _refuse_other(step: Planned, *, force: bool) -> None:
    """Raise `OutputExistsError` where a model is there that other settings made: now, not after hours of work."""
    if step.stage.inputs is None or force or not _exists(step.output):
        return
    found = recorded_request(step.output) or {}
    if (found.get("command"), found.get("settings")) != (step.name, chosen_settings(step.settings)):
        raise OutputExistsError(
            f"{step.output} exists already and was made by other settings; give --force to train every model again, or "
            "another output"
        )


def _refuse_damaged(output: Path) -> None:
    """Raise `ModelError` where a model that would count as up to date cannot be opened."""
    from pipeline.models.model import load_model

    try:
        load_model(output)
    except ModelError as error:
        raise ModelError(f"{error}; give --force to train every model again") from None


@contextmanager
def _named(step: Planned) -> Iterator[None]:
    """Name the step in every error."""
    try:
        yield
    except RecipeMismatchError as error:
        error.args = (f"[{step.place} {step.name}] {error} (a run discards no features: pipeline extract does)",)
        raise
    except PipelineError as error:
        error.args = (f"[{step.place} {step.name}] {error}",)
        raise


def read_experiment(config: Path) -> list[Planned]:
    """Read the steps of a file. Raises `SettingsError` for tables and options that no stage knows."""
    refuse_nul(config)
    try:
        tables = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{config} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config} is not TOML: {error}") from None
    named = [
        (name, options) for name, table in tables.items() for options in (table if isinstance(table, list) else [table])
    ]
    if not named:
        raise SettingsError(f"{config} names no stage; known: {', '.join(STAGES)}")
    return [
        _checked(config, Planned(name, f"{number}/{len(named)}", options))
        for number, (name, options) in enumerate(named, 1)
    ]


def _checked(config: Path, step: Planned) -> Planned:
    """Return the step, once its settings accept the options of the file."""
    for key in (step.stage.takes, "output"):
        value = step.options.get(key) if isinstance(step.options, dict) else None
        if value is None:
            raise SettingsError(f"{config}: [{step.name}] needs {key} = ...")
        if not isinstance(value, str) or "\0" in value:
            raise SettingsError(f"{config}: [{step.name}] {key} = {value!r} is no path; give text")
    step.stage.settings.of(_rest(step))
    return step
