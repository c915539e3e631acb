"""Stage two: a head on cached features.

    store and settings -> dataset: target, layers, split rows -> search and fit -> score -> save

Held-out rows are read once, after the head is trained, to score it. Nothing of them reaches scaling, search or
calibration; training rows with the very content of a held-out one are left out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from pipeline import metrics, plots
from pipeline.commands.results import Result
from pipeline.config import FitSettings
from pipeline.config.options import FitOptions
from pipeline.config.signatures import takes
from pipeline.errors import HeadError, SettingsError
from pipeline.files import refuse_existing
from pipeline.heads.calibration import softmax
from pipeline.heads.contract import Head, Problem, refuse_extremes
from pipeline.heads.learning_curve import ENOUGH, gain_of_twice, learning_curve
from pipeline.heads.noise import Floor, noise_floors
from pipeline.heads.selection import NESTED, Trained, table_text, task_of, train_head
from pipeline.heads.spread import fit_interval
from pipeline.heads.table import FeatureTable, Indices
from pipeline.heads.twins import QUICK, Twins
from pipeline.heads.unlikeness import Unlikeness, kept_rows
from pipeline.models import pictures
from pipeline.models.folder import BaseRecord, DataRecord, ModelRecord, SideRecord, save_model
from pipeline.models.provenance import request_of
from pipeline.models.seen import Seen
from pipeline.progress import progress as progress_bar
from pipeline.registry import refuse_unknown
from pipeline.scores import Scored
from pipeline.sources import Target, choose_target
from pipeline.sources.groups import Groups, find_groups, without_group
from pipeline.splits import Codes, Split, group_codes, split_rows
from pipeline.store import FeatureStore, SideBySide, open_stores
from pipeline.text import plural, shown

log = logging.getLogger(__name__)

#: What is to be known of the rows out of fold.
SELECTED = " (which the settings were chosen by)"


@dataclass
class FitResult(Result):
    """A trained head: its folder, its metrics on each part of the rows, and its chosen settings.

    `doubtful` is how many labels of training rows look wrong; out_of_fold.csv lists them first. `unknown` says how
    `predict` will tell images that are unlike the training pictures, and the errors to expect of it.
    """

    model: Path
    head: str
    target: str
    layers: tuple[str, ...]
    metrics: dict[str, dict[str, Any]]
    chosen: dict[str, Any]
    ranking: list[dict[str, Any]] = field(default_factory=list)
    compared_by: str = ""
    doubtful: int = 0
    unknown: dict[str, Any] | None = None
    learning_curve: list[dict[str, Any]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Summarise for a person: held-out rows in full, the other parts in a line each."""
        setting = ", ".join(f"{name} {_short(value)}" for name, value in self.chosen.items())
        lines = [f"{shown(self.target)} from {', '.join(self.layers)}: {setting}"]
        in_full = next(name for name in ("val", "cv", "train") if name in self.metrics)
        for name, title in metrics.PARTS.items():
            if name in self.metrics:
                found = metrics.table(self.metrics[name])
                title += SELECTED * (name == "cv" and not self.metrics[name]["nested"])
                lines.append(f"{title}: {found if name == in_full else found.splitlines()[0]}")
        if self.ranking:
            seen = (
                ", on rows that no search saw (out of fold: what the search saw)"
                if self.compared_by == NESTED
                else ", which flatter each a little"
            )
            lines += [
                f"ranking, {self.compared_by}{seen}:",
                table_text(self.ranking, numbers="mae" in self.metrics["train"]),
            ]
        if self.doubtful:
            lines.append(
                f"{plural(self.doubtful, 'training label')} may be wrong: see out_of_fold.csv, the worst first"
            )
        if self.unknown is not None:
            lines.append(_unknown_line(self.unknown))
        if self.learning_curve:
            lines.append(_curve_line(self.learning_curve))
        lines += [f"note: {notice}" for notice in self.notices]
        return "\n".join([*lines, f"saved to {self.model}"])


@takes(FitSettings)
def fit_head(
    store: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    force: bool = False,
    progress: bool = False,
    **options: Unpack[FitOptions],
) -> FitResult:
    """Train a head on the feature file `store` and save it as the model folder `output`.

    Several files of the same images are joined by id, and the features of their bases stand side by side; labels and
    splits are those of the first.

    `options` are the fields of `FitSettings`. Nothing is written before the head is trained, and an interrupted search
    begins anew; `progress` says on stderr what is searched and how far it is. Raises `HeadError` where the file has
    nothing that such a head can learn, `OutputExistsError` where `output` exists and `force` is not given.
    """
    started = time.perf_counter()
    settings = FitSettings.of(options)
    output = Path(output)
    refuse_existing(output, last="model.json", replace=force)
    with open_stores(store) as opened:
        base = base_record(opened)
        dataset = Dataset.of(opened, settings)
        with progress_bar(100, "searching", show=progress) as bar:
            problem = dataset.problem()
            trained = train_head(settings.head, problem, settings, watch=bar.reach)
        if problem.task == "numbers":
            fit_interval(trained.head, problem)
        judged = judge(trained.head, dataset)
        result = describe(trained, dataset, judged, output)
        unlikeness = learn_unlikeness(dataset)
        result.unknown = describe_unlikeness(unlikeness, dataset)
        if unlikeness is None and not settings.no_unknown:
            result.notices.append("too few distinct training pictures for predict to tell what is unlike them")
        doubtful = judged.scored["cv"].rows_by_quality() if "cv" in judged.scored else []
        result.doubtful = sum(bool(row.get("suggested")) for row in doubtful)
        result.learning_curve = curve_of(dataset, problem)
        if settings.learning_curve and not result.learning_curve:
            result.notices.append("no learning curve: it takes held-out rows, and several parts to learn from")
        curve = {"learning_curve": result.learning_curve} if result.learning_curve else {}
        search = search_metrics(trained)
        drawn = draw_plots({**search, **curve}, dataset, judged.scored)
        result.notices += [*dataset.twin_notices(problem), *drawn.notices]
        own_layers, beside = side_records(opened, dataset.layers)
        seconds = round(time.perf_counter() - started, 3)
        record = ModelRecord.of(
            trained.head,
            dataset.target,
            base=base,
            recipe=opened.recipe.model_copy(update={"layers": own_layers}),
            beside=beside,
            metrics={**result.metrics, **search, "unknown": result.unknown, "seconds": seconds, **curve},
            data=DataRecord(source=shown(opened.path), rows=len(dataset.split.train), fingerprint=opened.fingerprint),
            chosen=result.chosen,
            request=request_of("fit-head", settings, opened.fingerprint),
            score_views=settings.score_views,
        )
        save_model(
            output,
            trained.head,
            record=record,
            predictions=[row for name in dataset.split.held_out for row in judged.scored[name].rows(split=True)],
            plots=drawn.plots,
            seen=seen_rows(dataset, judged),
            unlikeness=unlikeness,
            out_of_fold=doubtful,
            replace=force,
        )
    return result


def curve_of(dataset: Dataset, problem: Problem) -> list[dict[str, Any]]:
    """Score a cheap head against the number of training rows, where that is asked for and rows are held out."""
    rows = dataset.split.held_out.get("val")
    if not dataset.settings.learning_curve or rows is None:
        return []
    y, groups = dataset.target.values[rows], dataset.groups[rows]
    return learning_curve(problem, dataset.table, rows, y, groups, dataset.settings)


def _curve_line(points: list[dict[str, Any]]) -> str:
    measure = "accuracy" if "accuracy" in points[0] else "mae"
    listed = ", ".join(f"{point[measure]:.4g} of {point['rows']}" for point in points)
    gain = gain_of_twice(points)
    if gain is None:
        told = f"too few rows, or no mistakes, to tell what twice the pictures would give ({ENOUGH} at least)"
    elif measure == "accuracy":
        told = f"twice the pictures: about +{100 * gain:.1f} points"
    else:
        told = f"twice the pictures: about -{gain:.3g}"
    return f"learning curve of a ridge head, {measure} by rows: {listed}; {told}"


def base_record(store: FeatureStore) -> BaseRecord:
    """Return the base that made the features. Raises `StoreDamagedError` where the file does not say it."""
    weights, seed = store.base_origin
    return BaseRecord(name=store.recipe.base, weights=weights, seed=seed)


def side_records(store: FeatureStore, layers: tuple[str, ...]) -> tuple[tuple[str, ...], list[SideRecord]]:
    """Return the layers of the first file that are among `layers`, and the records of the files beside it."""
    if not isinstance(store, SideBySide):
        return layers, []
    own, *others = store.by_store(layers)
    return own, [
        SideRecord(base=base_record(one), recipe=one.recipe.model_copy(update={"layers": some}), source=shown(one.path))
        for one, some in zip(store.stores[1:], others, strict=True)
    ]


# --- what is learned from what


@dataclass(frozen=True)
class Dataset:
    """The data that a head learns from: target, layers, the split rows of a store and the `groups` (N,) of all rows.

    Rows of a group are no evidence for one another; a row that is not used has -1.
    """

    store: FeatureStore
    settings: FitSettings
    target: Target
    layers: tuple[str, ...]
    split: Split
    groups: Codes
    table: FeatureTable
    twins: Twins | None

    @classmethod
    def of(cls, store: FeatureStore, settings: FitSettings) -> Dataset:
        """Find target, layers and rows as `settings` ask for; raises `HeadError` or `SettingsError`."""
        targets = without_group(store.targets, settings.group, learned=settings.target)
        target = learnable_target(targets, settings, where=str(store.path))
        layers = settings.layer or tuple(store.layers)
        for layer in layers:
            refuse_unknown("layer", layer, store.layers, where=store.path)
        if isinstance(store, SideBySide):
            store.by_store(layers)
            layers = tuple(layer for layer in store.layers if layer in layers)
        table = FeatureTable(store, layers)
        groups = group_store(store, target, settings)
        twins = near_twins(table, groups, settings)
        if twins is not None and settings.near == "group":
            groups = join_twins(groups, twins)
        split = split_store(store, target, groups, settings)
        refuse_unlearnable(target, split.train, where=str(store.path))
        refuse_unscorable(target, split, where=str(store.path))
        if isinstance(store, SideBySide):
            split = replace(split, notices=[*store.notices, *split.notices])
        return cls(store, settings, target, layers, split, groups.codes, table, twins)

    def problem(self) -> Problem:
        """Return the training rows as the heads take them."""
        rows = self.split.train
        return Problem(
            rows=self.table.rows(rows, memory=self.settings.memory),
            y=self.target.values[rows],
            weights=self._weights(rows),
            groups=self.groups[rows],
            classes=None if self.target.names is None else len(self.target.names),
            views=self.table.views,
            score_views=self.settings.score_views,
            widths=self.table.widths,
        )

    def parts(self, head: Head) -> Iterator[tuple[str, Indices, NDArray[np.float64], NDArray[np.float64]]]:
        """Yield the rows of every part, and raw scores and answers of `head`; "cv" is training rows out of fold."""
        for name, rows in self.split.parts.items():
            raw = head.decision_function_of(self.table, rows, score_views=self.settings.score_views)
            yield name, rows, raw, head.calibrated(raw)
        guesses, nested = head.search.scores, head.search.nested
        if guesses is not None:
            seen = np.isfinite(guesses if guesses.ndim == 1 else guesses.sum(axis=1))
            answers = head.calibrated(guesses[seen]) if nested is None else nested[seen]
            yield "cv", self.split.train[seen], guesses[seen], answers

    def twin_notices(self, problem: Problem) -> list[str]:
        """Tell how many near-twins are on both sides of the split or of a fold, where any are."""
        if self.twins is None or not len(self.twins.pairs):
            return []
        parts = np.full(len(self.store), -1, dtype=np.int64)
        for number, rows in enumerate(self.split.parts.values()):
            parts[rows] = number
        used = self.twins.within(np.flatnonzero(parts >= 0))
        across = [f"{len(used.between(parts).pairs)} across the split"] if self.split.held_out else []
        folds = problem.folds(self.settings.cv, self.settings.seed)
        if folds is not None:
            parts[self.split.train] = folds
            across.append(f"{len(used.within(self.split.train).between(parts).pairs)} across folds")
        count = plural(len(used.pairs), "pair")
        found = f"near-twins: {count} of images nearly identical in features ({', '.join(across)})"
        return [found if self.settings.near == "group" else f"{found}; --near group never parts them"]

    def _weights(self, rows: Indices) -> NDArray[np.float64]:
        """Compute weights (n,) with mean 1: the column asked for, times what makes all classes weigh the same."""
        weights = np.ones(len(rows))
        if self.settings.sample_weight is not None:
            weights = read_weights(self.store, self.settings.sample_weight, rows)
        if self.settings.class_weight == "balanced":
            if self.target.task == "numbers":
                raise SettingsError("class_weight=balanced is for classes; this target is numbers")
            codes = self.target.values[rows]
            weights = weights / np.bincount(codes, weights=weights)[codes]
        return np.asarray(weights / weights.mean())

    def noise_floors(self, rows: Indices, predicted: NDArray[np.float64]) -> list[Floor]:
        """Measure how numbers vary within identical content and within the store's classes, beside `predicted` ones."""
        classes = {one.name: one.values[rows] for one in self.store.targets.values() if one.task == "classes"}
        return noise_floors(self.target.values[rows], predicted, group_codes(self.store.sha256[rows]), classes)


def learnable_target(targets: Mapping[str, Target], settings: FitSettings, *, where: str) -> Target:
    """Choose the target that is named, or the only one of the kind that the head learns. Raises `HeadError`."""
    task = task_of(settings.head)
    if not targets:
        raise HeadError(
            f"{where} has no labels to learn; extract a folder with one folder a class, or give extract "
            "--labels FILE.csv"
        )
    fitting = {name: target for name, target in targets.items() if task in (None, target.task)}
    asked = list(targets) if settings.target is None else [settings.target]
    if set(asked) <= targets.keys() - fitting.keys():
        found, heads = ("classes", "linear, svm or auto") if task == "numbers" else ("numbers", "regressor")
        raise HeadError(f"head {settings.head!r} learns {task} and {', '.join(asked)} is {found}; take --head {heads}")
    known = fitting if settings.target is None else targets
    return choose_target(known, name=settings.target, where=where, error=SettingsError)


def group_store(store: FeatureStore, target: Target, settings: FitSettings) -> Groups:
    """Group the rows with features and a known target, by content and by what is asked; the others have the code -1.

    Raises `HeadError` where there are none.
    """
    usable = store.select(target=target.name)
    if not len(usable):
        raise HeadError(f"{store.path} has no row with features and a known {target.name!r}")
    found = find_groups(
        settings.group, ids=store.ids, targets=store.targets, contents=store.sha256[usable], rows=usable
    )
    codes = np.full(len(store), -1, dtype=np.int64)
    codes[usable] = found.codes
    return replace(found, codes=codes)


def near_twins(table: FeatureTable, groups: Groups, settings: FitSettings) -> Twins | None:
    """Find pairs of rows that are nearly identical in features and in no one group; None where they are not looked for.

    That is where it is not wanted, or where rows are so many that it takes long and is not asked for.
    """
    rows = np.flatnonzero(groups.codes >= 0)
    if settings.near == "off" or (settings.near == "report" and len(rows) > QUICK):
        return None
    return Twins.among(table, rows, seed=settings.seed).between(groups.codes)


def join_twins(groups: Groups, twins: Twins) -> Groups:
    """Join near-twins into groups: those that are twins of one another, and whatever groups they are in."""
    rows = np.flatnonzero(groups.codes >= 0)
    near = Groups(twins.groups(len(groups.codes))[rows], "nearly the same features")
    found = replace(groups, codes=groups.codes[rows]).joined(near)
    codes = groups.codes.copy()
    codes[rows] = found.codes
    return replace(found, codes=codes)


def split_store(store: FeatureStore, target: Target, groups: Groups, settings: FitSettings) -> Split:
    """Split the rows that are in one of the `groups`: by the store's own split or a stratified hold-out."""
    usable = np.flatnonzero(groups.codes >= 0)
    splits = store.splits[usable].tolist()
    found = split_rows(
        splits,
        target.values[usable],
        groups.codes[usable],
        share=settings.val,
        test=settings.test,
        seed=settings.seed,
        alike=groups.alike,
    )
    held_out = {name: usable[rows] for name, rows in found.held_out.items()}
    notices = [*groups.notices, *found.notices]
    if "val" in settings.model_fields_set and {"val", "test"} & set(splits):
        notices.append(f"the file has a split of its own, which is held out; val={settings.val:g} is not used")
    return Split(usable[found.train], held_out, notices)


def refuse_unlearnable(target: Target, train: Indices, *, where: str) -> None:
    """Raise `HeadError` where the training rows hold nothing to tell apart."""
    if len(train) < 2:
        raise HeadError(f"{where} has {len(train)} training rows for {target.name!r}; a head needs two at least")
    values = target.values[train]
    if (values == values[0]).all():
        only = target.names[values[0]] if target.names is not None else f"{values[0]:g}"
        raise HeadError(
            f"every training row of {where} has the same {target.name!r}, {only}; a head needs two classes, or numbers "
            "that differ"
        )


def refuse_unscorable(target: Target, split: Split, *, where: str) -> None:
    """Raise `HeadError` where a part to score the head on is empty, or has numbers that no score can hold."""
    for rows in split.held_out.values():
        if not len(rows):
            raise HeadError(
                f"{where} has no row to hold out: each is the only one of its {target.name!r}; a head needs two "
                "images of a class at least to be scored; --val 0 holds out none"
            )
    if target.task == "numbers":
        refuse_extremes(target.values[np.concatenate(list(split.parts.values()))])


def read_weights(store: FeatureStore, name: str, rows: Indices) -> NDArray[np.float64]:
    """Read the numeric target `name` of `rows` as weights (n,), float64.

    Raises `SettingsError` for a target that is none, `HeadError` where a weight is not positive.
    """
    target = store.targets.get(name)
    if target is None or target.task == "classes":
        numeric = [one.name for one in store.targets.values() if one.task == "numbers"]
        raise SettingsError(
            f"sample_weight={name!r} is no numeric target of {store.path}; it has {', '.join(numeric) or 'none'}"
        )
    weights = target.values[rows]
    if not (weights > 0).all():
        raise HeadError(f"{name!r} is not positive in {int((~(weights > 0)).sum())} training rows; weights must be")
    return np.asarray(weights, dtype=np.float64)


def learn_unlikeness(dataset: Dataset) -> Unlikeness | None:
    """Learn what the training pictures look like; None where they are too few, or where that is not asked for."""
    if dataset.settings.no_unknown:
        return None
    store, train, table = dataset.store, dataset.split.train, dataset.table
    contents = group_codes(store.sha256[train])
    kept = train[kept_rows(contents, dimensions=table.dimensions, seed=dataset.settings.seed)]
    codes = dataset.target.values[kept] if dataset.target.task == "classes" else np.zeros(len(kept), np.int64)
    features, ids, groups = table.images(kept)[:, 0], [store.ids[row] for row in kept], dataset.groups[kept]
    return Unlikeness.of(features, codes, ids, table.widths, groups=groups)


# --- what came of it


@dataclass(frozen=True)
class Judged:
    """Scores and metrics of every part, and the noise in numbers beside the errors out of fold."""

    scored: dict[str, Scored]
    metrics: dict[str, dict[str, Any]]
    floors: list[Floor]


def judge(head: Head, dataset: Dataset) -> Judged:
    """Score every part with `head`."""
    judged = Judged({}, {}, [])
    for name, rows, decisions, answers in dataset.parts(head):
        scored = judged.scored[name] = Scored(
            ids=[dataset.store.ids[row] for row in rows],
            target=dataset.target.take(rows),
            scores=answers,
            part=name,
            half_width=head.half_widths_of(dataset.table, rows, score_views=dataset.settings.score_views),
            coverage=head.coverage,
            groups=dataset.groups[rows],
        )
        judged.metrics[name] = measured(scored, decisions) | measured_sets(scored, head)
        if name == "cv":
            judged.metrics[name] |= {"nested": head.search.nested is not None}
        if name == "cv" and head.task == "numbers":
            judged.floors.extend(dataset.noise_floors(rows, decisions))
            judged.metrics[name] |= {"noise": [floor.to_json() for floor in judged.floors]}
    return judged


def seen_rows(dataset: Dataset, judged: Judged) -> Seen:
    """Return what the model keeps of its training rows: their contents, and of classes their scores out of fold."""
    contents = dataset.store.sha256[dataset.split.train]
    tested = dataset.store.sha256[dataset.split.held_out.get("test", np.zeros(0, np.int64))]
    told = judged.scored.get("cv")
    if told is None or dataset.target.task == "numbers":
        return Seen.of(contents, tested=tested)
    return Seen.of(contents, told.scores, told.truth, tested=tested)


def describe(trained: Trained, dataset: Dataset, judged: Judged, output: Path) -> FitResult:
    """Describe the trained head: metrics of every part, the chosen settings, and notices."""
    head, target = trained.head, dataset.target
    notices = [*dataset.split.notices, *trained.notices]
    notices += [caution for part in dataset.split.held_out for caution in judged.scored[part].cautions()]
    if dataset.settings.class_weight == "balanced":
        notices.append(metrics.BALANCED)
    if target.task == "numbers":
        notices += metrics.outliers(target.values[dataset.split.train], target.name)
    notices += [floor.notice(target.name) for floor in judged.floors if floor.reached]
    return FitResult(
        model=output,
        head=dataset.settings.head,
        target=dataset.target.name,
        layers=dataset.layers,
        metrics=judged.metrics,
        chosen={"head": head.name, **head.search.chosen},
        ranking=trained.ranking,
        compared_by=trained.compared_by,
        notices=notices,
    )


def describe_unlikeness(unlikeness: Unlikeness | None, dataset: Dataset) -> dict[str, Any] | None:
    """Describe how unknown images are told, with the share of held-out rows that would be called unknown."""
    if unlikeness is None:
        return None
    held_out = {name: unlikeness.marked(dataset.table, rows) for name, rows in dataset.split.held_out.items()}
    return {**unlikeness.describe(), "marked": held_out}


def measured(scored: Scored, decisions: NDArray[np.float64]) -> dict[str, Any]:
    """Compute the metrics of one part; of classes also the calibration error before temperature."""
    if scored.target.task == "numbers":
        return scored.metrics
    return scored.metrics | {"ece_uncalibrated": metrics.calibration_error(scored.truth, softmax(decisions))}


def measured_sets(scored: Scored, head: Head) -> dict[str, Any]:
    """Compute of prediction sets how many hold the truth, how many labels they hold, and how many hold one alone."""
    sets = None if head.task == "numbers" else head.prediction_sets(scored.scores)
    if sets is None:
        return {}
    sizes = sets.sum(axis=1)
    covered = float(sets[np.arange(len(sets)), scored.truth].mean())
    single = float((sizes == 1).mean())
    return {"sets": {"coverage": head.coverage, "covered": covered, "size": float(sizes.mean()), "single": single}}


def search_metrics(trained: Trained) -> dict[str, Any]:
    """Return what is kept of the search: settings with their losses, the ranking, and epochs where it has some."""
    search = trained.head.search
    found: dict[str, Any] = {"search": search.table, "ranking": trained.ranking}
    if trained.ranking:
        found["compared_by"] = trained.compared_by
    if search.epochs:
        found |= {"epochs": search.epochs, "best_epoch": search.best_epoch}
    return found


def draw_plots(search: Mapping[str, Any], dataset: Dataset, scored: Mapping[str, Scored]) -> plots.Rendered:
    """Draw the plots of a model folder: of the held-out rows, where there are any, of the ranking and the search."""
    target, store = dataset.target, dataset.store
    album = pictures.album_of(store)
    drawings: dict[str, plots.Drawing] = {}
    if "val" in scored:
        drawings |= scored["val"].plots(album)
    if target.task == "numbers":
        drawings["histogram"] = lambda: pictures.histogram(target, store.targets)
    if store.recipe.views:
        rows = pictures.some(dataset.split.train, seed=dataset.settings.seed)
        ids, labels = [store.ids[row] for row in rows], [pictures.written(target, row) for row in rows]
        drawings["batch"] = lambda: pictures.batch(album, ids, labels, recipe=store.recipe)
    drawings |= pictures.of_training(search, task=target.task, nested=NESTED)
    return plots.render(drawings, names=(target.name, *(target.names or ())))


def _unknown_line(found: dict[str, Any]) -> str:
    """Say for a person how often images will be called unknown, rightly and wrongly."""
    rates = [f"{1 - found['accepted']:.0%} of training pictures out of fold"]
    rates += [f"{share:.0%} of {metrics.PARTS[part]}" for part, share in found["marked"].items()]
    if found["caught"] is not None:
        rates.append(f"{found['caught']:.0%} of a class that was left out")
    return f"called unknown by predict: {', '.join(rates)}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
