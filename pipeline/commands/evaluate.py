"""Score a saved model on labelled images, or on the features of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from pipeline import metrics, plots
from pipeline.commands.results import Result
from pipeline.config import EvaluateSettings
from pipeline.config.options import EvaluateOptions
from pipeline.config.signatures import takes
from pipeline.errors import OutputExistsError, SourceError
from pipeline.files import publish_folder, refuse_existing
from pipeline.heads import Head
from pipeline.heads.rows import block_length
from pipeline.heads.table import FeatureTable
from pipeline.models.model import Model, joined, open_model
from pipeline.models.predictions import write_rows
from pipeline.models.threshold import Threshold
from pipeline.progress import progress as progress_bar
from pipeline.scores import Scored
from pipeline.sources import Record, Target, choose_target, log_notices, read_manifest
from pipeline.sources.groups import find_groups
from pipeline.store import is_store, open_stores
from pipeline.store.header import GOOD
from pipeline.text import plural, shown

AUTO, ALL = "auto", "all"
#: Rows that did not train the model, in a source that has no splits.
UNSEEN = "unseen"
SHOWN = {UNSEEN: "those that did not train the model"}


@dataclass
class EvaluateResult(Result):
    """Scores over `rows` labelled rows; `bad` images have none.

    `seen` is how many of the rows trained the model, None where it does not say so. `output` is the folder that holds
    more, if any.
    """

    model: Path
    rows: int
    bad: int
    split: str
    metrics: dict[str, Any]
    seen: int | None = 0
    threshold: dict[str, Any] | None = None
    notices: list[str] = field(default_factory=list)
    output: Path | None = None

    def summary(self) -> str:
        """Format the table of the metrics."""
        bad = f", {plural(self.bad, 'bad image')} left out" if self.bad else ""
        told = self.seen is not None and self.split != UNSEEN
        seen = f", {self.seen} of them trained the model" if told else ""
        head = f"{self.model}: {plural(self.rows, 'row')} ({SHOWN.get(self.split, self.split)}{bad}{seen})"
        lines = [head, metrics.table(self.metrics)]
        lines += [f"note: {notice}" for notice in self.notices]
        return "\n".join(lines if self.output is None else [*lines, f"saved to {self.output}"])


@takes(EvaluateSettings)
def evaluate(
    model: str | Path,
    source: str | Path | Sequence[str | Path],
    *,
    output: str | Path | None = None,
    force: bool = False,
    split: str = "auto",
    threshold: str | None = None,
    progress: bool = False,
    **options: Unpack[EvaluateOptions],
) -> EvaluateResult:
    """Score the model folder `model` on `source`: a feature file, or labelled images as `extract` takes them.

    A model of several bases takes a list of feature files of the same images, one of each base in their order, or
    images.

    `split` is train, val, test, all, or auto: the rows of the test split, or those that the model's training held out
    for the last word, or the val split, where there are such; else those whose content did not train the model, or all
    where there are no others. `threshold`, CLASS=P or CLASS,
    answers that class from its probability P on, or from the one with the best F1 of training rows out of fold.
    `output` names a folder for metrics.json, predictions.csv and plots. `options` are the fields of `EvaluateSettings`:
    `weights`, `device`, `target`, ... Raises `SourceError` where no row has a known label, `RecipeMismatchError` on
    features of another recipe, `OutputExistsError` where `output` exists and `force` is not given.
    """
    if output is not None:
        _refuse_existing(Path(output), force=force)
    settings = EvaluateSettings.of(options)
    loaded = open_model(model, settings)
    at = None if threshold is None else Threshold.of(threshold, loaded.classes, loaded.seen, where=loaded.folder)
    sources = [source] if isinstance(source, str | Path) else list(source)
    if all(map(is_store, sources)):
        labelled = _from_stores(loaded, sources, settings, split)
    elif len(sources) > 1:
        raise SourceError(f"{shown(sources[0])} and more: several sources have to be feature files of the same images")
    else:
        labelled = _from_images(loaded.open(), sources[0], settings, split, progress)
    scored = score(loaded, labelled)
    if at is not None:
        scored = replace(scored, decided=at.decide(scored.scores))
    seen, remarks = _trained_on(loaded, labelled)
    result = EvaluateResult(
        Path(model),
        rows=len(scored),
        bad=labelled.bad,
        split=labelled.split,
        metrics=scored.metrics,
        seen=seen,
        threshold=None if at is None else at.to_json(),
        notices=[
            *([] if at is None else [at.notice()]),
            *remarks,
            *[metrics.BALANCED] * loaded.is_balanced,
            *scored.cautions(),
        ],
        output=None if output is None else Path(output),
    )
    if result.output is not None:
        _save(result, scored, replace=force)
    return result


@dataclass(frozen=True)
class Labelled:
    """Rows of a split with a known label: their scores (n, C) or (n,), and how many bad images have none.

    `contents` (n, 32) are their sha256; rows of one of the `groups` (n,) are one observation.
    """

    scores: NDArray[np.float64]
    half_width: NDArray[np.float64] | None
    target: Target
    ids: list[str]
    contents: NDArray[np.uint8]
    split: str
    bad: int
    groups: NDArray[np.int64]


def score(model: Model, labelled: Labelled) -> Scored:
    """Score the rows as the `model` does."""
    return Scored(
        ids=labelled.ids,
        target=labelled.target,
        scores=labelled.scores,
        part=labelled.split,
        half_width=labelled.half_width,
        coverage=model.head.coverage,
        groups=labelled.groups,
    )


def _trained_on(model: Model, labelled: Labelled) -> tuple[int | None, list[str]]:
    """Count the rows that trained the model, None where it does not say so; and list notices about them."""
    count = len(labelled.ids)
    if model.seen is None:
        unknown = "the model does not say which images it was trained on (an older version saved it)"
        return None, [f"{unknown}: if these are among them, the scores flatter"] * (labelled.split in ("all", "train"))
    seen = int(model.seen.among(labelled.contents).sum())
    if not seen:
        return 0, []
    return seen, [f"{seen} of these {plural(count, 'row')} trained the model: the scores flatter it"]


def _refuse_existing(output: Path, *, force: bool) -> None:
    """Raise `OutputExistsError` unless `output` is free, or an evaluation and `force`; never replace a model folder."""
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
        if drawn.plots:
            (draft / "plots").mkdir()
        for name, plot in drawn.plots.items():
            plot.savefig(draft / "plots" / f"{name}.png")
        (draft / "metrics.json").write_text(json.dumps(result.metrics, indent=2) + "\n", encoding="utf-8")


def _from_stores(model: Model, paths: list[str | Path], settings: EvaluateSettings, split: str) -> Labelled:
    with open_stores(paths) as store:
        path, layers = store.path, model.layers_of(store)
        target = _predicted(store.targets, model, path)
        for choice in _choices(model, store.splits, split, path):
            known = _labelled(target, store.splits, choice.of, path)
            left_out = np.zeros(len(known), bool) if choice.skip is None else choice.skip(store.sha256[known])
            split, asked = choice.named(bool(left_out.any())), known[~left_out]
            if len(asked):
                break
        good = asked[store.statuses[asked] == GOOD]
        if not len(good):
            raise SourceError(f"{path}: not one of {plural(len(asked), 'labelled row')} has features")
        table = FeatureTable(store, layers)
        length = max(block_length(table.dimensions) // table.views, 1)
        answers = _Answers()
        for start in range(0, len(good), length):
            block = table.images(good[start : start + length])
            answers.ask(model.head, block[:, 0] if model.views == 1 else block[:, : model.views])
        ids = [store.ids[row] for row in good]
        bad = len(asked) - len(good)
        contents = store.sha256[good]
        groups = find_groups(settings.group, ids=store.ids, targets=store.targets, contents=contents, rows=good)
        return Labelled(*answers.joined(), target.take(good), ids, contents, split, bad, groups.codes)


def _from_images(model: Model, source: str | Path, settings: EvaluateSettings, split: str, progress: bool) -> Labelled:
    manifest = read_manifest(source, settings)
    log_notices(manifest)
    target = _predicted(manifest.targets, model, source)
    splits = [record.split for record in manifest.records]
    for choice in _choices(model, splits, split, source):
        asked = _labelled(target, np.array(splits, dtype=object), choice.of, source)
        records = [manifest.records[row] for row in asked]
        answered = _answered(model, records, choice.skip, progress)
        split = choice.named(answered.skipped > 0)
        if answered.rows:
            break
    if not answered.rows:
        raise SourceError(f"{source}: not one of {plural(len(records), 'image')} could be read")
    ids = [record.id for record in manifest.records]
    rows = np.array(answered.rows, dtype=np.int64)
    contents = np.frombuffer(b"".join(answered.contents), np.uint8).reshape(-1, 32)
    groups = find_groups(settings.group, ids=ids, targets=manifest.targets, contents=contents, rows=rows)
    ids = [ids[row] for row in answered.rows]
    return Labelled(*answered.answers.joined(), target.take(rows), ids, contents, split, answered.bad, groups.codes)


@dataclass
class _Answers:
    """Answers to rows, block by block: their scores, and half the widths of their intervals."""

    scores: list[NDArray[np.float64]] = field(default_factory=list)
    half_widths: list[NDArray[np.float64]] = field(default_factory=list)

    def ask(self, head: Head, features: NDArray[np.float32]) -> None:
        """Ask about a block of features."""
        self.scores.append(head.predict_proba(features))
        half = head.half_widths(features)
        if half is not None:
            self.half_widths.append(half)

    def joined(self) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Join all blocks."""
        return np.concatenate(self.scores), np.concatenate(self.half_widths) if self.half_widths else None


@dataclass
class _Answered:
    """The scored images: their rows, contents and scores, and the numbers of skipped and of bad ones."""

    rows: list[int] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    answers: _Answers = field(default_factory=_Answers)
    skipped: int = 0
    bad: int = 0


def _answered(model: Model, records: list[Record], skip: Skip | None, progress: bool) -> _Answered:
    """Ask the model about images, batch by batch, but for those that `skip` says yes to by their sha256."""
    found = _Answered()

    def is_skipped(sha256: bytes) -> bool:
        return skip is not None and bool(skip(np.frombuffer(sha256, np.uint8)[None])[0])

    with progress_bar(len(records), "evaluating", show=progress) as bar:
        for batch in model.embed(records, skip=None if skip is None else is_skipped):
            found.rows += batch.indices
            found.contents += [image.sha256 for image in batch.good if image.sha256 is not None]
            found.skipped += sum(image.duplicate for image in batch.images)
            found.bad += sum(image.error is not None for image in batch.images)
            if batch.indices:
                found.answers.ask(model.head, joined(batch.layers, views=model.views))
            bar.advance(len(batch))
    return found


def _predicted(targets: dict[str, Target], model: Model, source: str | Path) -> Target:
    """Choose the target that the model predicts, under the codes of its classes."""
    found = choose_target(targets, where=str(source), name=model.record.target, task=model.record.task)
    return found.recoded(model.record.classes)


#: The mask (n,) of contents, by their sha256 (n, 32), that are left out.
Skip = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]


@dataclass(frozen=True)
class _Choice:
    """Rows `of` a split of the source, or of all, but for those that `skip` leaves out; and what they are called."""

    of: str
    skip: Skip | None = None
    name: str | None = None

    def named(self, skipped: bool) -> str:
        """Name what is scored; all are all where none was left out."""
        return self.name if self.name is not None and (skipped or self.name != UNSEEN) else self.of


def _choices(model: Model, splits: Iterable[str], asked: str, source: str | Path) -> list[_Choice]:
    """List what may be scored, the best first: the first of which there are rows is."""
    present = {str(split) for split in splits}
    if asked == ALL or asked in present:
        return [_Choice(asked)]
    if asked != AUTO:
        listed = ", ".join(sorted(present - {""})) or "no splits"
        raise SourceError(f"{source} has no split {asked!r}; it has {listed}")
    if "test" in present:
        return [_Choice("test")]
    seen = model.seen
    tested = [] if seen is None or seen.tested is None else [_Choice(ALL, lambda of: ~seen.among_tested(of), "test")]
    if "val" in present:
        return [*tested, _Choice("val")]
    return [*tested, *([] if seen is None else [_Choice(ALL, seen.among, UNSEEN)]), _Choice(ALL)]


def _labelled(target: Target, splits: NDArray[Any], split: str, source: str | Path) -> NDArray[np.int64]:
    """Return the rows of a split whose target is known. Raises `SourceError` where there are none."""
    rows = np.flatnonzero(target.known & ((split == ALL) | (splits == split)))
    if not len(rows):
        where = "" if split == ALL else f" of split {split!r}"
        raise SourceError(f"{source}: no row{where} has a known {target.name!r}; give labelled images")
    return rows
