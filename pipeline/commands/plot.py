"""Draw the pictures of a model folder, a feature file or a source of images, again or for the first time."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from pipeline import files, plots
from pipeline.commands.results import Result
from pipeline.config import PlotSettings, Recipe
from pipeline.config.options import PlotOptions
from pipeline.config.signatures import takes
from pipeline.errors import ModelError, OutputExistsError, SettingsError, SourceError
from pipeline.heads.selection import NESTED
from pipeline.images.album import Album
from pipeline.images.augment import check_names
from pipeline.images.decoding import POLICY_VERSION
from pipeline.images.transform import InputTransform
from pipeline.models import pictures
from pipeline.models.folder import ModelRecord, read_folder
from pipeline.models.predictions import plain_text
from pipeline.plots import Drawing
from pipeline.registry import refuse_unknown
from pipeline.scores import Answers
from pipeline.sources import Manifest, Target, read_manifest
from pipeline.store import FeatureStore, is_store
from pipeline.text import plural, shown

#: All there are, whatever they are of.
KINDS = (
    "predictions",
    "mistakes",
    "confusion",
    "predicted",
    "learning",
    "learning_curve",
    "ranking",
    "batch",
    "histogram",
)
#: Columns of predictions.csv that are numbers; an empty cell is None.
NUMBERS = ("score", "value", "low", "high")
#: What a base sees of an image, where no base is asked.
USUAL = InputTransform(resize=(256, 256), crop=(224, 224))


@dataclass
class PlotResult(Result):
    """The pictures that were written."""

    pictures: list[Path]
    notices: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """List the pictures."""
        return "\n".join([*map(str, self.pictures), *(f"note: {notice}" for notice in self.notices)])


@takes(PlotSettings)
def plot(path: str | Path, output: str | Path, *, force: bool = False, **options: Unpack[PlotOptions]) -> PlotResult:
    """Draw pictures of `path`: a model folder, a feature file, or a source of images as `extract` takes it.

    `options` are the fields of `PlotSettings`: `kind` says which (all that `path` has, where it is not given). One
    kind may be written to a file NAME.png, several go to a folder `output`. Images are found by their ids below the
    source that the feature file names, or below `source`.

    Raises `SettingsError` for a kind that does not exist or that `path` does not have, `SourceError` where the images
    that a picture is of cannot be read, and `OutputExistsError` where a picture exists and `force` is not given.
    """
    settings = PlotSettings.of(options)
    output = Path(output)
    files.refuse_nul(output)
    for kind in settings.kind:
        refuse_unknown("kind of picture", kind, KINDS)
    subject = subject_of(path, settings)
    wanted = _wanted(settings.kind, subject, where=shown(path))
    targets = _targets(output, wanted, force=force)
    rendered = plots.render({kind: subject.drawings[kind] for kind in wanted}, names=subject.names)
    missing = [kind for kind in wanted if kind not in rendered.plots]
    if missing and (settings.kind or not rendered.plots):
        raise SourceError(f"{shown(path)}: {_cause(missing[0], rendered.notices)}")
    for kind, picture in rendered.plots.items():
        targets[kind].parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(targets[kind]) as file:
            file.write(picture.png)
    left_out = [_cause(kind, rendered.notices) for kind in missing if not _failed(kind, rendered.notices)]
    return PlotResult([targets[kind] for kind in rendered.plots], [*rendered.notices, *left_out])


def _failed(kind: str, notices: list[str]) -> list[str]:
    return [notice for notice in notices if notice.startswith(f"plots/{kind}.png ")]


def _cause(kind: str, notices: list[str]) -> str:
    """Say why there is no picture of this kind."""
    unread = f"{kind} is left out: none of its images could be read; say where they are with --source"
    return next(iter(_failed(kind, notices)), unread)


@dataclass(frozen=True)
class Subject:
    """The pictures that a thing has, by kind, and the names from outside that they show."""

    drawings: dict[str, Drawing]
    names: tuple[str, ...] = ()


def subject_of(path: str | Path, settings: PlotSettings) -> Subject:
    """Find out what `path` is and what pictures it has."""
    folder = Path(path)
    files.heal(folder)
    if (folder / "model.json").is_file():
        return _of_model(folder, settings)
    if is_store(path):
        with FeatureStore.open(path) as store:
            return _of_store(store, settings)
    return _of_source(path, settings)


def _wanted(kinds: tuple[str, ...], subject: Subject, *, where: str) -> list[str]:
    """Return the kinds to draw. Raises `SettingsError` for one that the thing does not have."""
    for kind in kinds:
        if kind not in subject.drawings:
            listed = ", ".join(subject.drawings) or "none"
            raise SettingsError(f"{where} has no picture of kind {kind!r}; it has {listed}")
    if not subject.drawings:
        raise SettingsError(f"{where} has nothing that can be drawn")
    return list(dict.fromkeys(kinds or subject.drawings))


def _targets(output: Path, kinds: list[str], *, force: bool) -> dict[str, Path]:
    """Return the file of each kind; raises where it cannot be written."""
    if output.suffix.lower() == ".png":
        if len(kinds) > 1:
            raise SettingsError(
                f"{shown(output)} is one file, and {', '.join(kinds)} are {len(kinds)} pictures; give one --kind, or a "
                "folder as -o"
            )
        found = {kinds[0]: output}
    else:
        found = {kind: output / f"{kind}.png" for kind in kinds}
    for target in found.values():
        if target.exists() and not force:
            raise OutputExistsError(f"{shown(target)} exists already; give --force to replace it, or another -o")
    return found


# --- a model


def _of_model(folder: Path, settings: PlotSettings) -> Subject:
    record, _ = read_folder(folder)
    drawings: dict[str, Drawing] = {}
    below: dict[str, Drawing] = {}
    album = _album_of_model(record, settings)
    if record.data.source and is_store(record.data.source):
        with FeatureStore.open(record.data.source) as store:
            below = _of_store(store, settings, target=record.target).drawings
            album = pictures.album_of(store, source=settings.source)
    elif Path(settings.source or record.data.source).exists():
        below = {"batch": lambda: _draw_source(settings.source or record.data.source, settings, record.recipe)}
    if rows := list(read_answers(folder / "predictions.csv", record)):
        part = rows[0].get("split", "val")
        interval = record.metrics.get(part, {}).get("interval") or {}
        answers = Answers(rows, part, record.target, record.classes, interval.get("coverage", 0.9))
        drawings["predictions"] = lambda: answers.gallery(album)
        if record.classes is not None and any(row["true"] != row["label"] for row in rows):
            drawings["mistakes"] = lambda: answers.gallery(album, mistakes=True)
        drawings |= answers.drawings()
    drawings |= pictures.of_training(record.metrics, task=record.task, nested=NESTED)
    return Subject(drawings | below, (record.target, *(record.classes or ())))


def _album_of_model(record: ModelRecord, settings: PlotSettings) -> Album:
    """Return the images that a fine-tuned model was judged by, from where it says or from where the user says."""
    return Album(settings.source or record.data.source, settings.of_source(), thorough=settings.source is not None)


def read_answers(path: Path, record: ModelRecord) -> Iterator[dict[str, Any]]:
    """Yield the lines of predictions.csv of its first part, as they were before they were written."""
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        part = None
        for line in csv.DictReader(file):
            try:
                row = {name: _value(name, cell, record) for name, cell in line.items()}
            except (TypeError, ValueError):
                raise ModelError(f"{path}: a line cannot be read; train again, or evaluate with -o") from None
            part = part or row.get("split")
            if row.get("split") == part:
                yield row


def _value(name: str, cell: str, record: ModelRecord) -> Any:
    if name in NUMBERS or (name == "true" and record.classes is None):
        return float(cell) if cell else None
    text = plain_text(cell)
    if name in ("true", "label") and text not in (record.classes or ()):
        raise ValueError(f"{text} is no class")
    return text


# --- a feature file, and a source


def _of_store(store: FeatureStore, settings: PlotSettings, *, target: str | None = None) -> Subject:
    name = target or next(iter(settings.target), None)
    labels = _first(store.targets, name, where=str(store.path))
    rows = pictures.some(_batch_rows(store.splits, labels), seed=settings.seed)
    ids, written = [store.ids[row] for row in rows], [pictures.written(labels, row) for row in rows]
    album, recipe, targets = pictures.album_of(store, source=settings.source), store.recipe, store.targets
    drawings: dict[str, Drawing] = {"batch": lambda: pictures.batch(album, ids, written, recipe=recipe)}
    return _with_histogram(drawings, targets, name)


def _of_source(path: str | Path, settings: PlotSettings) -> Subject:
    if settings.source is not None:
        raise SettingsError("source is for models and feature files; a source of images is one itself")
    manifest = read_manifest(path, settings.of_source())
    recipe = usual_recipe(settings)
    drawings: dict[str, Drawing] = {"batch": lambda: _draw_manifest(manifest, settings, recipe)}
    return _with_histogram(drawings, manifest.targets, next(iter(settings.target), None))


def _with_histogram(drawings: dict[str, Drawing], targets: Mapping[str, Target], name: str | None) -> Subject:
    """Add the histogram of the numbers called `name`, else of the first ones."""
    numbers = {key: target for key, target in targets.items() if target.task == "numbers" and target.known.any()}
    chosen = numbers.get(name) if name is not None else next(iter(numbers.values()), None)
    if chosen is not None:
        drawings["histogram"] = lambda: pictures.histogram(chosen, targets)
    names = [text for target in targets.values() for text in (target.name, *(target.names or ()))]
    return Subject(drawings, tuple(names))


def _first(targets: Mapping[str, Target], name: str | None, *, where: str) -> Target | None:
    if name is not None:
        refuse_unknown("target", name, targets, where=where)
        return targets[name]
    return next(iter(targets.values()), None)


def _batch_rows(splits: Any, target: Target | None) -> Any:
    """Return the training rows with a known target, else all with one, else all."""
    splits = np.asarray(splits, dtype=object)
    known = np.ones(len(splits), dtype=bool) if target is None else target.known
    train = known & (splits == "train")
    return np.flatnonzero(train if train.any() else known if known.any() else ~known)


def _draw_source(source: str, settings: PlotSettings, recipe: Recipe) -> Any:
    return _draw_manifest(read_manifest(source, settings.of_source()), settings, recipe)


def _draw_manifest(manifest: Manifest, settings: PlotSettings, recipe: Recipe) -> Any:
    target = next(iter(manifest.targets.values()), None)
    rows = pictures.some(_batch_rows([record.split for record in manifest.records], target), seed=settings.seed)
    records = [manifest.records[row] for row in rows]
    album = Album(manifest.source, settings.of_source(), thorough=True)
    written = [pictures.written(target, row) for row in rows]
    return pictures.batch(album, [record.id for record in records], written, recipe=recipe, title=_title(recipe))


def _title(recipe: Recipe) -> str:
    size = " x ".join(map(str, recipe.transform["crop"]))
    return f"one batch, {size} pixels" + (f", with {plural(recipe.views, 'random view')}" if recipe.views else "")


def usual_recipe(settings: PlotSettings) -> Recipe:
    """Return what most bases see of an image, with random views where `augment` names some."""
    names = tuple(name for name in settings.augment if name != "none")
    check_names(names)
    recipe = Recipe.plain(
        base="any", weights="", layers=(), pool="none", transform=USUAL.describe(), pixels=POLICY_VERSION
    )
    seen = {"views": pictures.MOST_VIEWS - 1, "augment": names, "seed": settings.seed}
    return recipe.model_copy(update=seen) if names else recipe
