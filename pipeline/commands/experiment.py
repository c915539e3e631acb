"""The steps of a TOML file: its tables are commands, and their keys are the options with underscores.

file -> tables -> values from the command line -> paths from the root, references to earlier steps -> validated steps
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.config import (
    CompareSettings,
    EvaluateSettings,
    ExtractSettings,
    FetchSettings,
    FinetuneSettings,
    FitSettings,
    LabelSettings,
    PathText,
    PlotSettings,
    RerunSettings,
    Settings,
)
from pipeline.config.signatures import type_text
from pipeline.errors import SettingsError
from pipeline.files import refuse_nul
from pipeline.registry import Registry, nearest, refuse_unknown, unknown
from pipeline.text import shown

NAME, ALL = "name", "*"
#: Begins the name of an earlier step, whose output is meant.
REFERENCE = "@"


class PredictStep(RerunSettings):
    """Options of predict in a file."""

    top: int = Field(5, ge=1)


class EvaluateStep(EvaluateSettings):
    """Options of evaluate in a file."""

    split: Literal["auto", "train", "val", "test", "all"] = "auto"


class VerifyStep(RerunSettings):
    """Options of verify in a file."""

    source: PathText | None = None
    recompute: int = Field(0, ge=0)
    seed: int = Field(13, ge=0)


class ExportStep(RerunSettings):
    """Options of export in a file."""

    input: Literal["image", "pixels"] = "image"


class MergeStep(Settings):
    """Options of merge in a file: none."""


@dataclass(frozen=True)
class Stage:
    """A command as a step.

    `takes` names the argument that it reads, a path or several where `several`, and `also` another one. `output` names
    the option of what it writes, if it has to be given; of what it `may_write` otherwise. `product` is what a reference
    to the step means below the output. `replaces` tells that the command has to be told to replace an output.
    """

    takes: str
    settings: type[Settings]
    output: str | None = "output"
    may_write: str | None = None
    also: str | None = None
    several: bool = False
    product: str = ""
    replaces: bool = True

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arguments that it reads."""
        return (self.takes,) if self.also is None else (self.takes, self.also)

    @property
    def writes(self) -> str | None:
        """Name of the option of what it writes."""
        return self.output or self.may_write

    @property
    def paths(self) -> tuple[str, ...]:
        """Names of the settings that are paths."""
        return tuple(name for name, one in self.settings.model_fields.items() if "PathLike" in type_text(one))

    @property
    def keys(self) -> tuple[str, ...]:
        """All that a table may say of it."""
        own = [*self.inputs, *([self.writes] if self.writes else [])]
        return (*own, *(name for name in self.settings.model_fields if name not in own))


STAGES: Registry[Stage] = Registry("stage")
STAGES.add("fetch", Stage("lists", FetchSettings, several=True, product="images.csv", replaces=False))
STAGES.add("label", Stage("source", LabelSettings))
STAGES.add("extract", Stage("source", ExtractSettings, replaces=False))
STAGES.add("merge", Stage("parts", MergeStep, several=True))
STAGES.add("verify", Stage("store", VerifyStep, output=None, replaces=False))
STAGES.add("fit-head", Stage("store", FitSettings, several=True))
STAGES.add("finetune", Stage("source", FinetuneSettings))
STAGES.add(
    "predict",
    Stage("model", PredictStep, output=None, may_write="csv", also="images", several=True, replaces=False),
)
STAGES.add("export", Stage("model", ExportStep))
STAGES.add("evaluate", Stage("model", EvaluateStep, output=None, may_write="output", also="source", several=True))
STAGES.add("compare", Stage("models", CompareSettings, output=None, may_write="output", several=True))
STAGES.add("plot", Stage("path", PlotSettings))


@dataclass(frozen=True)
class Planned:
    """One table of the file.

    `place` is its number among all. `options` are as they stand there, with paths from the root and references replaced
    by what they mean; `after` has the earlier steps that those name.
    """

    command: str
    name: str
    place: str
    options: dict[str, Any]
    after: tuple[str, ...] = ()

    @property
    def stage(self) -> Stage:
        """The command."""
        return STAGES[self.command]

    @property
    def inputs(self) -> dict[str, Any]:
        """The arguments that it reads, by name."""
        return {name: self.options[name] for name in self.stage.inputs}

    @property
    def output(self) -> Path | None:
        """The path that it writes, if it writes any."""
        found = self.options.get(self.stage.writes) if self.stage.writes else None
        return None if found is None else Path(found)

    @property
    def product(self) -> Path | None:
        """The path that a reference to it means."""
        return None if self.output is None else self.output / self.stage.product

    @property
    def rest(self) -> dict[str, Any]:
        """Its options beside what it reads and writes."""
        own = {*self.stage.inputs, self.stage.writes}
        return {key: value for key, value in self.options.items() if key not in own}

    @property
    def settings(self) -> Settings:
        """Its options, validated."""
        return self.stage.settings.of(self.rest)

    @property
    def label(self) -> str:
        """The name of the step, with the command where that is another."""
        return self.name if self.name == self.command else f"{self.command} {self.name}"

    def heading(self) -> str:
        """Format the line that is shown as it begins."""
        read = ", ".join(shown(one) for value in self.inputs.values() for one in listed(value))
        wrote = "" if self.output is None else f" -> {shown(self.output)}"
        return f"[{self.place} {shown(self.label)}] {read}{wrote}"


def listed(value: Any) -> list[Any]:
    """Return one value as a list of it."""
    return list(value) if isinstance(value, list | tuple) else [value]


def read_experiment(config: Path, *, root: str | Path | None = None, overrides: Sequence[str] = ()) -> list[Planned]:
    """Read the steps of a file, whose paths are relative to `root`, or to the file's own folder.

    `overrides` are ``TABLE.KEY=VALUE``. Raises `SettingsError` for tables and options that no stage knows, and for
    references to steps that are none.
    """
    tables = list(_tables(config))
    named = [(command, _name(config, command, options), options) for command, options in tables]
    _refuse_repeated(config, [name for command, name, _ in named if name != command])
    named = _overridden(named, overrides)
    planned: list[Planned] = []
    for number, (command, name, options) in enumerate(named, 1):
        given = {key: value for key, value in options.items() if key != NAME}
        step = Planned(command, name, f"{number}/{len(named)}", given)
        planned.append(_resolved(config, step, planned, Path(_root(config, root))))
    _refuse_same_output(config, planned)
    return planned


def _refuse_same_output(config: Path, planned: Sequence[Planned]) -> None:
    written: dict[Path, Planned] = {}
    for step in planned:
        if step.output is not None and (other := written.setdefault(step.output, step)) is not step:
            raise SettingsError(f"{config}: {step.label} and {other.label} both write {shown(step.output)}")


def _tables(config: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the commands of a file with their tables, in the order they stand in."""
    refuse_nul(config)
    try:
        tables = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{config} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config} is not TOML: {error}") from None
    if not tables:
        raise SettingsError(f"{config} names no stage; known: {', '.join(STAGES)}")
    # Arrays of tables are where their first one stands: the order of the file is that of the lines with brackets.
    for command, place in _in_order(config, tables):
        options = tables[command][place] if isinstance(tables[command], list) else tables[command]
        refuse_unknown("stage", command, STAGES, where=config)
        yield command, options if isinstance(options, dict) else {}


def _in_order(config: Path, tables: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield each table as its command and its place among those of the same command, as they follow in the file."""
    lines = [line.strip().partition("#")[0].strip() for line in config.read_text(encoding="utf-8").splitlines()]
    heads = [line.strip("[]").strip().strip("\"'") for line in lines if line.startswith("[")]
    order = [head for head in heads if head in tables]
    counts = {name: len(one) if isinstance(one, list) else 1 for name, one in tables.items()}
    if {name: order.count(name) for name in tables} != counts:  # tables written in another way, such as inline
        order = [name for name, count in counts.items() for _ in range(count)]
    met = dict.fromkeys(tables, 0)
    for name in order:
        yield name, met[name]
        met[name] += 1


def _name(config: Path, command: str, options: Mapping[str, Any]) -> str:
    name = options.get(NAME, command)
    if not isinstance(name, str) or not name or name == ALL or set(name) & set(".=@"):
        raise SettingsError(f"{config}: [{command}] name = {name!r} is no name; give a word without . = @")
    return name


def _refuse_repeated(config: Path, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"{config} has two steps called {name!r}; rename one of them")
        if name in STAGES:
            raise SettingsError(f"{config}: a step is called {name!r}, which is another command; rename it")


# --- values from the command line


Named = tuple[str, str, dict[str, Any]]


def _overridden(named: Sequence[Named], overrides: Sequence[str]) -> list[Named]:
    """Return the tables with the values of ``TABLE.KEY=VALUE``, later ones over earlier ones."""
    changed = [(command, name, dict(options)) for command, name, options in named]
    for text in overrides:
        place, equals, value = text.partition("=")
        table, dot, key = place.strip().rpartition(".")
        if not (equals and dot and table and key):
            raise SettingsError(f"set={text!r}: give TABLE.KEY=VALUE, such as extract.base=resnet50, or '*.seed=1'")
        for command, _, options in _meant(changed, table, key):
            refuse_unknown("option", key, STAGES[command].keys)
            options[key] = _parsed(value)
    return changed


def _meant(named: Sequence[Named], table: str, key: str) -> list[Named]:
    """Return the tables that ``TABLE.KEY`` is about: of that name, or of that command, or all that have the key."""
    if table == ALL:
        found = [one for one in named if key in STAGES[one[0]].keys and not _comes_with_the_head(one, key)]
        if not found:
            keys = dict.fromkeys(key for command, _, _ in named for key in STAGES[command].keys)
            raise SettingsError(f"no table has the option {key!r}{nearest(key, keys)}")
        return found
    found = [one for one in named if one[1] == table] or [one for one in named if one[0] == table]
    if not found:
        raise SettingsError(unknown("table", table, dict.fromkeys(name for _, name, _ in named)))
    return found


def _comes_with_the_head(one: Named, key: str) -> bool:
    """Tell whether a fine-tuning takes `key` from the model that it starts from."""
    command, _, options = one
    return command == "finetune" and "head" in options and key in ("base", "size", "layer", "pool")


def _parsed(text: str) -> Any:
    """Return a value as TOML has it, or else as text."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
    return value if isinstance(value, str | int | float | list) else text.strip()


# --- paths and references


def _root(config: Path, root: str | Path | None) -> Path:
    """Return the folder that paths start from; none of its name where it is the current one."""
    if root is not None:
        refuse_nul(root)
        if not Path(root).is_dir():
            raise SettingsError(f"the root {shown(root)} is not a folder")
    found = config.parent if root is None else Path(root)
    return Path() if found.resolve() == Path.cwd() else found


def _resolved(config: Path, step: Planned, before: Sequence[Planned], root: Path) -> Planned:
    """Return the step with paths from the root and references replaced, once its settings accept the options."""
    stage = step.stage
    for key in (*stage.inputs, *([stage.output] if stage.output else [])):
        _refuse_no_path(config, step, key, several=stage.several and key == stage.inputs[-1])
    if stage.may_write in step.options:
        _refuse_no_path(config, step, str(stage.may_write), several=False)
    try:
        stage.settings.of(step.rest)
    except SettingsError as error:
        raise SettingsError(f"{config}: [{step.label}] {error}") from None
    paths = {*stage.inputs, stage.writes, *stage.paths}
    after: dict[str, None] = {}

    def placed(key: str, value: Any) -> Any:
        is_base = key == "base" and isinstance(value, str) and _is_model(root, value)
        if not (key in paths or is_base) or not isinstance(value, str | list):
            return value
        if isinstance(value, list):
            return [placed(key, one) for one in value]
        if not value.startswith(REFERENCE):
            return _from(root, value, is_weights=key == "weights")
        found = _referred(config, step, value[1:], before)
        after[found.name] = None
        return str(found.product)

    options = {key: placed(key, value) for key, value in step.options.items()}
    _refuse_elsewhere(config, step, options, root)
    return replace(step, options=options, after=tuple(after))


def _refuse_no_path(config: Path, step: Planned, key: str, *, several: bool) -> None:
    value = step.options.get(key)
    if value is None:
        raise SettingsError(f"{config}: [{step.command}] needs {key} = ...")
    texts = value if several and isinstance(value, list) else [value]
    if not texts or not all(isinstance(one, str) and one and "\0" not in one for one in texts):
        raise SettingsError(f"{config}: [{step.command}] {key} = {value!r} is no path; give text")


def _referred(config: Path, step: Planned, name: str, before: Sequence[Planned]) -> Planned:
    """Return the earlier step that ``@name`` means: of that name, or the only one of that command."""
    found = [one for one in before if one.name == name] or [one for one in before if one.command == name]
    if len(found) > 1:
        raise SettingsError(f"{config}: [{step.label}] {REFERENCE}{name} may be {len(found)} steps; give each a name")
    if not found:
        known = dict.fromkeys(one.name for one in before)
        raise SettingsError(
            f"{config}: [{step.label}] {REFERENCE}{name} is no earlier step{nearest(name, known)}; known: "
            f"{', '.join(known) or 'none'}"
        )
    if found[0].output is None:
        raise SettingsError(f"{config}: [{step.label}] {REFERENCE}{name} writes nothing; give it an output")
    return found[0]


def _is_model(root: Path, base: str) -> bool:
    """Tell whether a base is that of a model folder: one that is there, or that an earlier step makes."""
    return base.startswith(REFERENCE) or (root / base / "model.json").is_file()


def _from(root: Path, value: str, *, is_weights: bool) -> str:
    """Return a path as seen from the root. ``CLASS=FILE`` and ``torchvision:...?root=DIR`` hold one."""
    if is_weights and not (root / value).is_file():
        return value
    if value.startswith("torchvision:"):
        head, mark, folder = value.partition("root=")
        return head + mark + str(root / folder) if mark else value
    label, equals, path = value.partition("=")
    if equals and not (root / value).exists() and (root / path).exists():
        return f"{label}={root / path}"
    return str(root / value)


def _refuse_elsewhere(config: Path, step: Planned, options: Mapping[str, Any], root: Path) -> None:
    """Raise `SettingsError` where what is read is not at the root, and is in the current folder."""
    for key in step.stage.inputs:
        for old, new in zip(listed(step.options[key]), listed(options[key]), strict=True):
            if old != new and not old.startswith(REFERENCE) and not Path(new).exists() and Path(old).exists():
                raise SettingsError(
                    f"{config}: [{step.label}] there is no {shown(new)}, but {shown(old)} is in the current folder; "
                    "give --root ."
                )
