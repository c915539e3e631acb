"""Score a saved model on labelled images, or on the features of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from pipeline import metrics, plots
from pipeline.commands.results import Result
from pipeline.config import EvaluateSettings, SourceSettings
from pipeline.errors import OutputExistsError, SourceError
from pipeline.files import publish_folder, refuse_existing
from pipeline.models.model import Model, joined, open_model
from pipeline.models.predictions import write_rows
from pipeline.options import EvaluateOptions
from pipeline.progress import progress as progress_bar
from pipeline.scores import Scored
from pipeline.signatures import takes
from pipeline.sources import Target, choose_target, log_remarks, read_manifest
from pipeline.store import FeatureStore, is_store
from pipeline.text import plural


@dataclass
class EvaluateResult(Result):
    """Scores over `rows` labelled rows; `bad` images have none. `output` is the folder that holds more, if any."""

    model: Path
    rows: int
    bad: int
    split: str
    metrics: dict[str, Any]
    notices: list[str] = field(default_factory=list)
    output: Path | None = None

    def summary(self) -> str:
        """The table of the metrics."""
        bad = f", {plural(self.bad, 'bad image')} left out" if self.bad else ""
        lines = [f"{self.model}: {plural(self.rows, 'row')} ({self.split}{bad})", metrics.table(self.metrics)]
        lines += [f"note: {notice}" for notice in self.notices]
        return "\n".join(lines if self.output is None else [*lines, f"saved to {self.output}"])


@takes(EvaluateSettings)
def evaluate(
    model: str | Path,
    source: str | Path,
    *,
    output: str | Path | None = None,
    force: bool = False,
    split: str = "auto",
    progress: bool = False,
    **options: Unpack[EvaluateOptions],
) -> EvaluateResult:
    """Score the model folder `model` on `source`: a feature file, or labelled images as `extract` takes them.

    `split` is train, val, test, all, or auto: the rows held out (test, else val) where `source` knows of splits, else
    all. `output` names a folder for metrics.json, predictions.csv and plots. `options` are the fields of
    `EvaluateSettings`: `weights`, `device`, `target`, ... Raises `SourceError` where no row has a known label,
    `RecipeMismatchError` on features of another recipe, `OutputExistsError` where `output` exists and `force` is not
    given.
    """
    if output is not None:
        _refuse_existing(Path(output), force=force)
    settings = EvaluateSettings.of(options)
    loaded = open_model(model, settings)
    if is_store(source):
        labelled = _from_store(loaded, source, split)
    else:
        labelled = _from_images(loaded.open(), source, settings, split, progress)
    scored = score(loaded, labelled, source)
    result = EvaluateResult(
        Path(model),
        rows=len(scored),
        bad=labelled.bad,
        split=labelled.split,
        metrics=scored.metrics,
        notices=scored.cautions(),
        output=None if output is None else Path(output),
    )
    if result.output is not None:
        _save(result, scored, replace=force)
    return result


@dataclass(frozen=True)
class Labelled:
    """Features (n, D) of the rows of a split, what is known of them, and how many have none."""

    features: NDArray[np.float32]
    target: Target
    ids: list[str]
    split: str
    bad: int


def score(model: Model, labelled: Labelled, source: str | Path) -> Scored:
    """Ask `model` about the rows whose target is known; raises `SourceError` where there are none."""
    target = labelled.target.recoded(model.record.classes)
    known = np.flatnonzero(target.known)
    if not len(known):
        raise SourceError(
            f"{source}: no row of split {labelled.split!r} has a known {target.name!r}; give labelled images"
        )
    return Scored(
        ids=[labelled.ids[row] for row in known],
        target=target.take(known),
        scores=model.head.predict_proba(labelled.features[known]),
        part=labelled.split,
        half_width=model.head.interval_half_width,
        coverage=model.head.coverage,
    )


def _refuse_existing(output: Path, *, force: bool) -> None:
    """Raise `OutputExistsError` where there is something else; a model folder, which has metrics too, is never it."""
    refuse_existing(output, last="metrics.json", replace=force)
    if (output / "model.json").exists():
        raise OutputExistsError(f"{output} is a model folder, which an evaluation never replaces; give another -o")


def _save(result: EvaluateResult, scored: Scored, *, replace: bool) -> None:
    """Write the folder; it is there whole or not at all."""
    target = scored.target
    drawn = plots.render(scored.plots(), names=(target.name, *(target.names or ())))
    result.notices += drawn.notices
    with publish_folder(Path(str(result.output)), last="metrics.json", replace=replace) as draft:
        write_rows(draft / "predictions.csv", list(scored.rows()))
        if drawn.pictures:
            (draft / "plots").mkdir()
        for name, picture in drawn.pictures.items():
            picture.savefig(draft / "plots" / f"{name}.png")
        (draft / "metrics.json").write_text(json.dumps(result.metrics, indent=2) + "\n", encoding="utf-8")


def _from_store(model: Model, path: str | Path, split: str) -> Labelled:
    with FeatureStore.open(path) as store:
        model.check_recipe(store.recipe, path)
        target = _predicted(store.targets, model, path)
        split = _held_out(store.splits, split, path)
        rows = store.select(split=None if split == "all" else split)
        layers = (store.features(layer, rows) for layer in model.record.recipe.layers)
        if store.recipe.views:  # the plain view comes first
            layers = (layer[:, 0] for layer in layers)
        features = joined(layers)
        asked = sum(split in ("all", of_row) for of_row in store.splits)
        ids = [store.ids[row] for row in rows]
    return Labelled(features, target.take(rows), ids, split, asked - len(rows))


def _from_images(model: Model, source: str | Path, settings: SourceSettings, split: str, progress: bool) -> Labelled:
    manifest = read_manifest(source, settings)
    log_remarks(manifest)
    target = _predicted(manifest.targets, model, source)
    split = _held_out([record.split for record in manifest.records], split, source)
    records = [record for record in manifest.records if split in ("all", record.split)]
    rows: list[int] = []
    blocks = []
    with progress_bar(len(records), "evaluating", show=progress) as bar:
        for batch in model.embed(records):
            if batch.indices:
                rows += batch.indices
                blocks.append(joined(batch.layers))
            bar.advance(len(batch))
    if not rows:
        raise SourceError(f"{source}: not one of {plural(len(records), 'image')} could be read")
    ids = [manifest.records[row].id for row in rows]
    return Labelled(np.concatenate(blocks), target.take(rows), ids, split, len(records) - len(rows))


def _predicted(targets: dict[str, Target], model: Model, source: str | Path) -> Target:
    return choose_target(targets, where=str(source), name=model.record.target, task=model.record.task)


def _held_out(splits: Iterable[str], asked: str, source: str | Path) -> str:
    """The split to score; a model's own training rows only where they are asked for."""
    present = {str(split) for split in splits}
    if asked == "auto":
        return next((split for split in ("test", "val") if split in present), "all")
    if asked != "all" and asked not in present:
        listed = ", ".join(sorted(present - {""})) or "no splits"
        raise SourceError(f"{source} has no split {asked!r}; it has {listed}")
    return asked
