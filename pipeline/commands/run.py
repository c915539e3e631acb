"""A whole experiment in one TOML file: its tables are commands, run in the order they stand in.

    [extract]
    source = "photos"
    output = "artifacts/photos.h5"
    base = "resnet18"

    [[fit-head]]
    name = "svm"
    store = "@extract"
    output = "artifacts/photos-svm"
    head = "svm"

Keys are the options of the command with underscores; paths are relative to the file, or to the root that is given; a
name after an @ is what that earlier step made. A step runs where its settings, the content of what it reads, or the
version of this package is another one than when it ran last, or where its output is not there any more.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.commands.experiment import Planned, listed
from pipeline.commands.experiment import read_experiment as read_experiment
from pipeline.commands.results import Result
from pipeline.config import FinetuneSettings, PlotSettings, SourceSettings
from pipeline.errors import ModelError, OutputExistsError, PipelineError, RecipeMismatchError, StoreDamagedError
from pipeline.files import rename
from pipeline.models import journal as journals
from pipeline.models.journal import Entry, Journal
from pipeline.models.provenance import (
    chosen_settings,
    fingerprint_images,
    recorded_request,
    request_of,
    start_files,
)
from pipeline.sources import read_manifest
from pipeline.store import FeatureStore, is_store, open_stores
from pipeline.text import plural, shown
from pipeline.versions import versions

# A stage is imported when its step is due: what is refused, or is current, waits for no import of torch.

SAME = "up to date, made by the same settings on the same data"
ABSENT = "it was not there"
#: Commands that go on from what is there, and so never have to be told to replace it.
GO_ON = ("extract", "fetch", "predict")
#: Commands that show no progress.
SILENT = ("verify", "merge", "label", "compare", "export", "plot")
#: Settings that name files whose content is an input by itself; that of labels is read with the images.
READ = ("head", "weights", "base")


@dataclass(frozen=True)
class Step(Result):
    """The outcome of one step; `result` is None where it did not run, and `why` says why it ran or did not.

    `recorded` is then the result of the run that made what is there. `due` tells, of a plan, that the step would run.
    """

    name: str
    output: Path | None
    why: str
    result: Result | None = None
    command: str = ""
    recorded: dict[str, Any] = field(default_factory=dict)
    due: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the keys that `--json` promises; the first is the name of the stage."""
        output = {} if self.output is None else {"output": str(self.output)}
        result = {**output, **self.recorded} if self.result is None else self.result.to_json()
        due = {"due": True} if self.due else {}
        ran = self.result is not None
        return {
            self.command or self.name: result,
            "name": self.name,
            "ran": ran,
            "why": self.why,
            **due,
            "result": result,
        }

    def summary(self) -> str:
        """Return the stage's own summary, or that there was nothing to do."""
        where = "" if self.output is None else f"{shown(self.output)}: "
        will = "would run: " if self.due else ""
        summary = f"{where}{will}{self.why}" if self.result is None else self.result.summary()
        return f"[{self.name}]\n{summary}"


@dataclass
class ExperimentResult(Result):
    """The outcomes of all steps, in their order."""

    config: Path
    steps: list[Step]

    def summary(self) -> str:
        """Join every step's own summary, and the table of results."""
        return "\n\n".join([*(step.summary() for step in self.steps), self.table()])

    def table(self) -> str:
        """Format a line a step: whether it ran, and its main figures."""
        rows = [("step", "", "result", "output")]
        for step in self.steps:
            did = "ran" if step.result is not None else "would run" if step.due else "up to date"
            told = "-" if step.due else figures(step.to_json()["result"])
            rows.append((shown(step.name), did, told, "" if step.output is None else shown(step.output)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def figures(result: dict[str, Any]) -> str:
    """Return the main figures of a step's result, whatever command it is of.

    >>> figures({"metrics": {"val": {"accuracy": 0.9085, "n": 153}}})
    'accuracy 0.9085 (153 held-out rows)'
    >>> figures({"rows": 12, "good": 11})
    '11 of 12 images'
    """
    found = result.get("metrics") or {}
    rows = "rows"
    if "val" in found or "test" in found:
        rows = "test rows" if "val" not in found else "held-out rows"
        found = found.get("val") or found["test"]
    for name in ("accuracy", "mae"):
        if name in found:
            return f"{name} {found[name]:.4g} ({found['n']} {rows})"
    if "models" in result:
        return "  ".join(
            f"{Path(one['model']).name} {one['metrics'][result['measure']]:.4g}" for one in result["models"]
        )
    if "good" in result:
        return f"{result['good']} of {plural(result['rows'], 'image')}"
    if "kept" in result:
        return f"{result['kept']} of {plural(result['urls'], 'image')}"
    if "predictions" in result:
        return plural(len(result["predictions"]), "image")
    if "pictures" in result:
        return plural(len(result["pictures"]), "picture")
    return plural(result["rows"], "row") if isinstance(result.get("rows"), int) else "-"


def run(
    config: str | Path,
    *,
    root: str | Path | None = None,
    set: str | Sequence[str] = (),
    force: bool = False,
    dry_run: bool = False,
    progress: bool = False,
) -> ExperimentResult:
    """Run the steps of `config` that are not up to date.

    Paths in the file are relative to `root`, or to the file. `set` has values over those of the file, as
    ``TABLE.KEY=VALUE``; a table is meant by its name, by its command, or by ``*``, which means all that have the key.
    `force` runs every step again; features are never discarded. With `dry_run`, nothing runs, and the result says what
    would. Raises as the stages do, with the step's name; what was done before stays.
    """
    steps = run_steps(config, root=root, set=set, force=force, dry_run=dry_run, progress=progress)
    return ExperimentResult(Path(config), list(steps))


def run_steps(
    config: str | Path,
    *,
    root: str | Path | None = None,
    set: str | Sequence[str] = (),
    force: bool = False,
    dry_run: bool = False,
    progress: bool = False,
    watch: Callable[[str], None] = lambda heading: None,
) -> Iterator[Step]:
    """Run as `run` does, and yield every step; `watch` is called with the heading of a step as it begins.

    The whole file, and whether its outputs can be written, is checked before the first step starts.
    """
    config = Path(config)
    planned = read_experiment(config, root=root, overrides=[set] if isinstance(set, str) else set)
    folder = config.parent if root is None else Path(root)
    experiment = Experiment(Journal(folder / f".{config.stem}.run.json"), force=force, dry=dry_run)
    for step in planned:
        with _named(step):
            experiment.refuse_foreign(step)
    due: list[Planned] = []
    for step in planned:
        watch(step.heading())
        with _named(step):
            done = experiment.plan(step, due) if dry_run else experiment.perform(step, progress=progress)
        if done.due:
            due.append(step)
        yield done


class Experiment:
    """The steps of one run, and the journal of those before it."""

    def __init__(self, journal: Journal, *, force: bool, dry: bool) -> None:
        self._journal = journal
        self._force = force
        self._dry = dry

    def refuse_foreign(self, step: Planned) -> None:
        """Raise `OutputExistsError` where no run made what is there, with other settings: now, not after hours."""
        if self._force or not step.stage.replaces or not _exists(step.output) or self._is_own(step):
            return
        found = recorded_request(Path(str(step.output))) or {}
        if (found.get("command"), found.get("settings")) != (step.command, chosen_settings(step.settings)):
            raise OutputExistsError(
                f"{step.output} exists already and was made by other settings, or by no run; give --force to make "
                "everything again, or another output"
            )

    def plan(self, step: Planned, due: Sequence[Planned]) -> Step:
        """Return what would become of a step, where the steps `due` would run before it."""
        read = [str(one) for value in step.inputs.values() for one in listed(value)]
        before = [one.name for one in due if one.name in step.after or str(one.product) in read]
        why = f"after {', '.join(before)}" if before else self._reason(step)
        entry = self._journal.entries.get(_key(step))
        recorded = entry.result if entry else {}
        return Step(step.name, step.output, why or SAME, None, step.command, {} if why else recorded, bool(why))

    def perform(self, step: Planned, *, progress: bool) -> Step:
        """Run a step, unless it is up to date."""
        why = self._reason(step)
        if not why:
            _refuse_damaged(step)
            entry = self._journal.entries[_key(step)]
            return Step(step.name, step.output, SAME, None, step.command, entry.result)
        now = None if step.command == "extract" else self._entry(step)  # as its inputs are before they are read
        result = self._run(step, progress=progress)
        now = now or self._extracted(step)
        told = result.to_json()
        short = told if len(json.dumps(told)) < journals.LONGEST_RESULT else {}
        self._keep(step, replace(now, product=_product(step), result=short))
        return Step(step.name, step.output, why, result, step.command)

    def _reason(self, step: Planned) -> str:
        """Say why a step has to run; empty where it is up to date."""
        if self._force:
            return "it was asked for with --force"
        if step.command == "verify":
            return "a check is of the day"
        entry = self._journal.entries.get(_key(step))
        if step.output is None:
            return entry.first_change(self._entry(step)) if entry else "it did not run yet"
        if not _exists(step.product):
            return ABSENT
        if entry is not None and entry.product == _product(step):
            return entry.first_change(self._entry(step))
        if step.command in GO_ON:
            return "what is there is brought up to date"
        self._adopt(step)
        return ""

    def _adopt(self, step: Planned) -> None:
        """Enter a model that the command line made by the same request; raise `OutputExistsError` for another one."""
        output, request = Path(str(step.output)), _request(step)
        if request is None or recorded_request(output) != request:
            raise OutputExistsError(
                f"{output} was trained on other data than {_told(step)} holds today, or changed since; give --force to "
                "make everything again, or another output"
            )
        metrics = output / "metrics.json"
        found = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {}
        result = {"metrics": {name: one for name, one in found.items() if name in ("val", "test")}}
        self._keep(step, replace(self._entry(step), product=_product(step), result=result))

    def _is_own(self, step: Planned) -> bool:
        """Tell whether what is there is what an earlier run made."""
        entry = self._journal.entries.get(_key(step))
        return entry is not None and entry.product == _product(step)

    def _run(self, step: Planned, *, progress: bool) -> Result:
        options = {**step.rest, **({"force": True} if step.stage.replaces and self._may_replace(step) else {})}
        if step.command not in SILENT:
            options["progress"] = progress
        if step.output is not None and step.stage.output is None:
            options[str(step.stage.writes)] = step.output
        given = [*step.inputs.values(), *([step.output] if step.stage.output else [])]
        try:
            result: Result = _function(step.command)(*given, **options)
        except (RecipeMismatchError, OutputExistsError):
            if step.command != "extract" or not self._is_own(step):
                raise
            self._exchange(step)
            result = _function(step.command)(*given, **options)
        if not getattr(result, "ok", True):
            raise StoreDamagedError(result.summary().replace("\n", "; "))
        return result

    def _exchange(self, step: Planned) -> None:
        """Keep features that other settings made under a name of their own, and take those of these settings back."""
        output = Path(str(step.output))
        before, now = self._journal.entries[_key(step)].settings, self._made(step, {}).settings
        rename(output, _kept(output, before))
        if _kept(output, now).exists():
            rename(_kept(output, now), output)

    def _may_replace(self, step: Planned) -> bool:
        return self._force or (_exists(step.output) and self._is_own(step))

    # --- what a step depends on

    def _entry(self, step: Planned) -> Entry:
        """Return the entry of the step as it would run now."""
        return self._made(step, {name: self._fingerprint(step, name, value) for name, value in step.inputs.items()})

    def _made(self, step: Planned, inputs: dict[str, str]) -> Entry:
        settings = chosen_settings(step.settings)
        for name in (*step.stage.paths, "base"):
            if name in settings and _is_file(name, path := Path(str(step.options[name]))):
                del settings[name]
                if name == "source":  # the images of a picture
                    inputs[name] = self._fingerprint(step, name, str(path))
                if name in READ:
                    inputs[name] = journals.fingerprint_path(path)
        return Entry(step.command, settings, inputs, versions().get("cached-feature-pipeline", ""))

    def _fingerprint(self, step: Planned, name: str, value: Any) -> str:
        """Return the fingerprint of the content of an argument."""
        if name == "images":
            return journals.fingerprint_files(listed(value), self._journal.contents)
        if name in ("source", "path") and not all(map(_is_made, listed(value))):
            assert isinstance(step.settings, SourceSettings)
            settings = step.settings.of_source() if isinstance(step.settings, PlotSettings) else step.settings
            return journals.fingerprint_source(str(listed(value)[0]), settings, self._journal.contents)
        paths = [Path(one) for one in listed(value)]
        if name == "lists":
            paths = [path if path.exists() else Path(str(path).partition("=")[2]) for path in paths]
        return " ".join(journals.fingerprint_path(path) for path in paths)

    def _extracted(self, step: Planned) -> Entry:
        """Return the entry of an extraction by what it read, whatever became of the images since."""
        settings, source = step.settings, str(step.options["source"])
        assert isinstance(settings, SourceSettings)
        records = read_manifest(source, settings).records
        with FeatureStore.open(Path(str(step.output))) as store:
            read = self._journal.contents.learn(source, records, store)
        fingerprint = journals.fingerprint_source(source, settings, self._journal.contents, read=read)
        return self._made(step, {"source": fingerprint})

    def _keep(self, step: Planned, entry: Entry) -> None:
        self._journal.entries[_key(step)] = entry
        if not self._dry:
            self._journal.write()


def _is_file(name: str, path: Path) -> bool:
    """Tell whether what a setting names is there; a base is a name where it is not that of a model folder."""
    return (path / "model.json" if name == "base" else path).exists()


def _is_made(path: str) -> bool:
    """Tell whether a path is what a command made, and no source of images."""
    return is_store(path) or (Path(path) / "model.json").is_file()


def _kept(output: Path, settings: dict[str, Any]) -> Path:
    """Return the name that features of these settings are kept under while others have the name of the output."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return output.with_name(f"{output.stem}.{digest[:8]}{output.suffix}")


def _key(step: Planned) -> str:
    """Return what the journal calls a step: its output, or where it writes none, its name and inputs."""
    if step.output is not None:
        return str(step.output)
    return f"{step.label}: {', '.join(str(one) for value in step.inputs.values() for one in listed(value))}"


def _product(step: Planned) -> str:
    return "" if step.product is None else journals.fingerprint_path(step.product)


def _request(step: Planned) -> dict[str, Any] | None:
    """Return the request that a model is recorded with; None for commands that make none."""
    settings = step.settings
    if step.command == "fit-head":
        with open_stores(listed(step.options["store"])) as store:
            return request_of(step.command, settings, store.fingerprint)
    if isinstance(settings, FinetuneSettings):
        manifest = read_manifest(str(step.options["source"]), settings)
        return request_of(step.command, settings, fingerprint_images(manifest, start_files(settings)))
    return None


def _told(step: Planned) -> str:
    return ", ".join(shown(one) for value in step.inputs.values() for one in listed(value))


def _function(command: str) -> Callable[..., Any]:
    """Return the function of a command."""
    name = command.replace("-", "_")
    return getattr(importlib.import_module(f"pipeline.commands.{name}"), name)  # type: ignore[no-any-return]


def _exists(output: Path | None) -> bool:
    return output is not None and output.exists() and not (output.is_dir() and not any(output.iterdir()))


def _refuse_damaged(step: Planned) -> None:
    """Raise `ModelError` where a model that would count as up to date cannot be opened."""
    from pipeline.models.model import load_model

    if step.command not in ("fit-head", "finetune"):
        return
    try:
        load_model(Path(str(step.output)))
    except ModelError as error:
        raise ModelError(f"{error}; give --force to make everything again") from None


@contextmanager
def _named(step: Planned) -> Iterator[None]:
    """Name the step in every error."""
    try:
        yield
    except RecipeMismatchError as error:
        error.args = (f"[{step.place} {step.label}] {error} (a run discards no features: pipeline extract does)",)
        raise
    except PipelineError as error:
        error.args = (f"[{step.place} {step.label}] {error}",)
        raise
