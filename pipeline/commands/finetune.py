"""Stage three, optional: train the base together with its head, wholly or in part, on the images themselves.

    manifest -> base with a fresh or a fitted head -> every image read once -> rows that train, rows that judge
    -> training -> the best epoch as a model folder like any other

A bad image has no part in it and is listed; it is never replaced. After each epoch the training is saved beside the
output, and the same command goes on from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline import metrics, plots
from pipeline.bases import Base
from pipeline.bases.weights import digest
from pipeline.commands.results import Result
from pipeline.config import FinetuneSettings, Pool, Recipe
from pipeline.config.options import FinetuneOptions
from pipeline.config.signatures import takes
from pipeline.devices import computes, cores, is_cpu
from pipeline.errors import HeadError, SettingsError
from pipeline.files import digest_json, digest_tensors, lock, made_parents, named, refuse_existing, require_room
from pipeline.heads import LinearHead
from pipeline.heads.affine import AffineHead
from pipeline.heads.calibration import interval_half_width, softmax
from pipeline.heads.ridge import RidgeHead
from pipeline.images import decoding
from pipeline.images.augment import View, build_view
from pipeline.models import pictures
from pipeline.models.folder import BaseRecord, DataRecord, ModelRecord, save_model
from pipeline.models.model import load_model, start_base
from pipeline.models.provenance import fingerprint_images, request_of, start_files
from pipeline.models.seen import Seen
from pipeline.progress import Bar
from pipeline.progress import progress as progress_bar
from pipeline.scores import Scored
from pipeline.sources import Manifest, Target, Task, choose_target, log_notices, read_manifest, shown
from pipeline.sources.groups import without_group
from pipeline.text import plural
from pipeline.training.batches import Batch, Feeder, Feeding, Images, Indices, groups
from pipeline.training.cached import Choice, CutFeeder, CutRows, choose, memory_bytes
from pipeline.training.checkpoint import Checkpoint, Saved, refuse_no_place, stopped_request
from pipeline.training.cut import Cut, find_cut
from pipeline.training.dataset import Examples, expected_rows, read_images, split_examples
from pipeline.training.line import Part, Verdict, settle
from pipeline.training.loop import Classes, Epoch, Goal, History, Numbers, Trainer, train
from pipeline.training.network import (
    Network,
    State,
    blocks,
    build_network,
    folded_head,
    freeze,
    put_back,
    snapshot,
    standardise,
    start_from,
    write_base,
)
from pipeline.training.processes import Team
from pipeline.training.recipes import Case, Hyperparameters, resolve
from pipeline.training.start import fit_weights, weights_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

#: Training rows whose features decide how the head's inputs are standardised, and numbers of them at most.
SAMPLE, SAMPLE_FLOATS = 1024, 2**26
#: Images that tell what rounding changes.
DRIFT = 16
#: The same of those that a head is fitted to where none is given.
FITTED_FLOATS = 2**28
#: Share of new numbers that a prediction interval covers.
COVERAGE = 0.9
#: What a training's request calls the places where what is frozen ends, if they are cached.
CACHED = "cached activations"
#: The settings that decide a training, which are recorded as the recipe filled them in.
RECIPE = (
    *("recipe", "train", "freeze_norm", "beat_head", "optimizer", "lr", "base_lr", "layer_decay", "momentum"),
    *("weight_decay", "warmup", "step", "gamma", "clip", "class_weight", "label_smoothing", "augment", "epochs"),
    *("patience", "batch_size", "precision", "seed"),
)


@dataclass
class FinetuneResult(Result):
    """A fine-tuned model and its epochs. `metrics` are of the best epoch; `bad` maps an id to its reason.

    The first `resumed` epochs were taken by a run that was stopped. `cached` is True where the frozen part was computed
    once, and `cache` says why, or why not; `recipe` says by which numbers it was trained.
    """

    model: Path
    head: str
    target: str
    layers: tuple[str, ...]
    metrics: dict[str, Any]
    chosen: dict[str, Any]
    epochs: list[Epoch]
    best_epoch: int
    resumed: int
    rows: dict[str, int]
    bad: dict[str, str]
    seconds: float = field(metadata={"digits": 3})
    verdict: Verdict | None = None
    cached: bool = False
    cache: str = ""
    recipe: str = ""
    notices: list[str] = field(default_factory=list)

    @property
    def looks(self) -> int:
        """Number of looks at the val rows that chose the model: a figure on them is the best of so many."""
        return len(self.epochs) + (0 if self.verdict is None else self.verdict.tried)

    def to_json(self) -> dict[str, Any]:
        """Return the keys that `--json` promises."""
        return {**super().to_json(), "looks": self.looks, "bad": len(self.bad), "bad_images": self.bad}

    def summary(self) -> str:
        """Summarise every epoch, the best one's metrics, and every bad image."""
        counted = ", ".join(f"{count} {part}" for part, count in self.rows.items())
        lines = [f"{shown(self.target)} from {', '.join(self.layers)}: {counted} images, {self.seconds:.1f} s"]
        lines += [line for line in (self.cache, self.recipe) if line]
        if self.resumed:
            lines.append(f"went on after epoch {self.resumed} of a training that was stopped")
        for epoch in self.epochs:
            lines.append(f"  {epoch.summary()}{'  <- kept' if epoch.number == self.best_epoch else ''}")
        known = {"val": f"the best of {self.looks} looks at them", "test": "which chose nothing"}
        lines += [
            f"{metrics.PARTS[part]} ({word}): {metrics.table(self.metrics[part])}"
            for part, word in known.items()
            if part in self.metrics
        ]
        if self.verdict is not None:
            lines.append(self.verdict.summary())
        if self.bad:
            lines.append(f"{plural(len(self.bad), 'bad image')} left out:")
            lines += [f"  {shown(id)}: {reason}" for id, reason in self.bad.items()]
        lines += [f"note: {notice}" for notice in self.notices]
        return "\n".join([*lines, f"saved to {self.model}"])


@takes(FinetuneSettings)
def finetune(
    source: str | Path,
    output: str | Path,
    *,
    force: bool = False,
    progress: bool = False,
    **options: Unpack[FinetuneOptions],
) -> FinetuneResult:
    """Train base and head on the images of `source`; the best epoch becomes the model folder `output`.

    `options` are the fields of `FinetuneSettings`: `train`, `epochs`, `lr`, ...; `head` names a model folder
    to start from. An interrupted training goes on after its last epoch, which is kept in ``OUTPUT.training`` until the
    model is there; `force` replaces a model that is there, and a training by other settings or on other images.
    `progress` says on stderr how far it is, with a line for every epoch.

    Raises `OutputExistsError` where there is something else and no `force`, `SourceError` where there is nothing to
    train on, `SettingsError` for what cannot be trained, `HeadError` where training fails, `BaseError` or `ModelError`
    where the start cannot be had.
    """
    settings = FinetuneSettings.of(options)
    with Team.of_environment() as team:
        if not team.is_first:
            return _take_part(source, settings, team)
        refuse_existing(Path(output), last="model.json", replace=force)
        with made_parents(Path(output)), named(Path(output)), lock(Path(output)):
            result = _finetune(source, Path(output), settings, team, force=force, progress=progress)
        return team.first(lambda: result)


def _take_part(source: str | Path, settings: FinetuneSettings, team: Team) -> FinetuneResult:
    """Do it as one of several processes, which writes nothing; return what the first one made."""
    job = Job.of(source, settings)
    choice = job.choose_cut(team, before=None)
    with ExitStack() as opened:
        training = start_training(job, choice, opened, team, progress=False)
        training.run(saved=team.heard(), keep=None, progress=False)
    result: FinetuneResult = team.heard()
    return result


def _finetune(
    source: str | Path, output: Path, settings: FinetuneSettings, team: Team, *, force: bool, progress: bool
) -> FinetuneResult:
    """Do it as the one who writes `output`."""
    started = time.perf_counter()
    if settings.precision == "bf16" and is_cpu(settings.device) and not computes("bf16"):
        log.warning("this CPU has no instructions for bf16: its steps take longer than those of fp32")
    job = Job.of(source, settings)
    job.refuse_no_place(output)
    choice = job.choose_cut(team, before=None if force else cached_before(output))
    with ExitStack() as opened:
        training = start_training(job, choice, opened, team, progress=progress)
        checkpoint = Checkpoint(output, training.request())
        saved = team.first(lambda: checkpoint.read(force=force))
        history = training.run(saved=saved, keep=checkpoint.write, progress=progress)
        verdict = training.settle(history) if job.settings.beat_head else None
        parts = training.score(progress=progress)
    result = training.describe(output, history, verdict, parts, resumed=0 if saved is None else saved.epoch)
    drawn = training.draw(history, parts)
    result.notices += drawn.notices
    result.seconds = time.perf_counter() - started
    training.save(result, parts, drawn=drawn, replace=force)
    checkpoint.remove()
    return result


@dataclass(frozen=True)
class Job:
    """A training before an image is read: from where, on what, and by which numbers; `settings` leave nothing out."""

    start: Start
    manifest: Manifest
    target: Target
    network: Network
    settings: Hyperparameters
    request: dict[str, Any]

    @classmethod
    def of(cls, source: str | Path, given: FinetuneSettings) -> Job:
        """Load the base, list the images, and make the network of which the recipe's part is trained."""
        start = fresh_start(given) if given.head is None else fitted_start(given.head, given)
        make_view(given, start.base)  # which refuses what is no augmentation
        manifest = read_manifest(source, given)
        log_notices(manifest)
        inputs = fingerprint_images(manifest, start_files(given))  # as they are before the first one is read
        targets = without_group(manifest.targets, given.group, learned=start.target)
        target = choose_target(targets, where=shown(manifest.source), name=start.target, task=start.task)
        target = target.recoded(start.classes)
        network = make_network(start, target, seed=given.seed)
        settings = fill_in(given, start, network, manifest, target)
        freeze(network, settings.train, freeze_norm=settings.freeze_norm)
        return cls(start, manifest, target, network, settings, request_of("finetune", given, inputs))

    def refuse_no_place(self, output: Path) -> None:
        """Raise an error where the disk has no room for the model, or for a checkpoint."""
        if self.start.changes_base(self.settings):
            require_room(output, sum(one.nbytes for one in self.start.base.module.state_dict().values()))
        refuse_no_place(output, size=checkpoint_bytes(self.network, self.settings))

    def choose_cut(self, team: Team, *, before: bool | None) -> Choice:
        """Choose whether what is frozen is computed once; `before` is what a stopped training chose.

        The first process measures, and the others do as it does.
        """
        start = self.start

        def cut() -> Cut:
            return find_cut(self.network.features, start.base.transform.size)

        if not team.is_first:
            is_cut, line, seconds = team.heard()
            return Choice(cut() if is_cut else None, line, seconds)
        choice = choose(self.settings, cut, start.base, start.pool, self.manifest, self.target, before=before)
        team.first(lambda: (choice.cut is not None, choice.line, choice.seconds))
        return choice


def start_training(job: Job, choice: Choice, opened: ExitStack, team: Team, *, progress: bool) -> Training:
    """Read the images, or compute what passes the cut, and split them; `opened` closes what that takes."""
    manifest, target, settings = job.manifest, job.target, job.settings
    rows: CutRows | None = None
    if choice.cut is None:
        images = images_of(manifest, target, job.start, settings, team, progress=progress)
    else:
        job.network.cut_before(choice.cut.suffix)
        rows = opened.enter_context(
            CutRows(
                choice.cut,
                job.start.base,
                job.start.pool,
                manifest,
                settings,
                room=memory_bytes(settings) // team.local_count,
            )
        )
        images = team.in_turn(partial(rows.read_images, target, progress=progress))
    examples = split_examples(manifest, target, images, settings)
    if rows is not None:
        team.in_turn(partial(rows.draw_views, examples.train, progress=progress))
    team.refuse(job.network, batch_size=settings.batch_size, rows=len(examples.train))
    training = Training(job, examples, images, choice, rows, team)
    opened.enter_context(training.feeder)
    return training


def images_of(
    manifest: Manifest, target: Target, start: Start, settings: FinetuneSettings, team: Team, *, progress: bool
) -> Images:
    """Read every image once, in the first process: those that are good, and why the others are not."""
    room = memory_bytes(settings) // team.local_count
    if not team.is_first:
        images = Images(manifest.records, start.base.transform, room=room, max_pixels=settings.max_pixels)
        images.know(team.heard(), {})
        return images
    images = read_images(
        manifest,
        target,
        start.base.transform,
        workers=threads(settings),
        max_bad=settings.max_bad,
        max_pixels=settings.max_pixels,
        room=room,
        progress=progress,
    )
    team.first(lambda: images.sha256)
    return images


# --- where training begins


@dataclass(frozen=True)
class Start:
    """A base, the layers that the head takes, and `weight` (C, D) and `bias` (C,) of a fitted head, or None."""

    base: Base
    record: BaseRecord
    layers: tuple[str, ...]
    pool: Pool
    target: str | None = None
    task: Task | None = None
    classes: tuple[str, ...] | None = None
    weight: NDArray[np.floating] | None = None
    bias: NDArray[np.floating] | None = None
    seen: Seen | None = None

    def flattered(self, images: Images, held_out: Mapping[str, Indices]) -> list[str]:
        """List notices of held-out rows that trained the head already: its figures on them are too good."""
        if self.seen is None:
            return []
        counts = {name: int(self.seen.among(images.contents(rows)).sum()) for name, rows in held_out.items()}
        return [
            f"{count} of {plural(len(held_out[name]), f'{name} row')} trained the head that this starts from, whose "
            "figures on them flatter; fit it with the same --val and --test"
            for name, count in counts.items()
            if count
        ]

    @property
    def is_random(self) -> bool:
        """The base was never trained."""
        return self.record.weights == "none" and not self.record.fine_tuned

    def changes_base(self, settings: Hyperparameters) -> bool:
        """Return True where the model needs weights of its own for the base."""
        return self.record.fine_tuned or "head" not in settings.train


def fresh_start(settings: FinetuneSettings) -> Start:
    """Load the base that the settings name; its head is drawn at random."""
    base = start_base(settings, seed=settings.seed)
    record = BaseRecord(name=base.name, weights=base.weights, seed=settings.seed)
    return Start(base, record, settings.layer, settings.pool)


def fitted_start(folder: str, settings: FinetuneSettings) -> Start:
    """Load the base and the head of a model folder. Raises `HeadError` unless that head is one linear layer."""
    weights = settings.weights if "weights" in settings.model_fields_set else None
    model = load_model(folder, weights=weights, device="cpu")
    head, recipe = model.head, model.record.recipe
    if model.record.beside:
        raise HeadError(f"{folder} asks several bases, and one is trained; fit a head on one feature file")
    if not isinstance(head, AffineHead):
        raise HeadError(
            f"{folder} holds a head {head.name!r}, and only a linear layer can be trained on together with its base; "
            "fit --head linear (ridge for numbers), or leave --head out for a fresh one"
        )
    if head.power is not None:
        raise HeadError(
            f"{folder} holds a head on the square root of features, whose slope has no end at zero; "
            "fit it with --power none, or leave --head out for a fresh one"
        )
    weight, bias = weights_of(head)
    return Start(
        base=model.base,
        record=model.record.base,
        layers=recipe.layers,
        pool=recipe.pool,
        target=model.record.target,
        task=model.record.task,
        classes=model.record.classes,
        weight=weight,
        bias=bias,
        seen=model.seen,
    )


def make_view(settings: FinetuneSettings, base: Base) -> View:
    """Build the random views of training rows. Without a crop they are made of what the base sees of an image."""
    names = tuple(name for name in settings.augment if name != "none")
    transform = base.transform
    return build_view(names, size=transform.size, plain=np.asarray, interpolation=transform.resampling)


def make_network(start: Start, target: Target, *, seed: int) -> Network:
    """Make base and head one network; the head is drawn from `seed`."""
    outputs = 1 if target.names is None else len(target.names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(start.base, start.layers, start.pool, outputs=outputs)


def fill_in(
    given: FinetuneSettings, start: Start, network: Network, manifest: Manifest, target: Target
) -> Hyperparameters:
    """Let the recipe fill in what was left out. Raises `SettingsError` for what is not for numbers."""
    for name, off in (("class_weight", "none"), ("label_smoothing", None)):
        if target.task == "numbers" and getattr(given, name) not in (off, 0):
            raise SettingsError(f"{name}={getattr(given, name)} is for classes; target {target.name!r} is numbers")
    case = Case(
        rows=expected_rows(manifest, target, given),
        side=max(start.base.transform.size),
        blocks=len(blocks(network.features.network)),
        fresh=start.is_random,
        fitted=start.weight is not None,
        smoothable=target.task == "classes",
    )
    return resolve(given, case)


def checkpoint_bytes(network: Network, settings: Hyperparameters) -> int:
    """Return the size of a checkpoint: what moves, the best of it, and as much for each moment of the optimizer."""
    copies = 1 + settings.kept_epochs + (2 if settings.optimizer in ("adam", "adamw") else 1)
    return copies * sum(tensor.nbytes for tensor in snapshot(network).values())


def cached_before(output: Path) -> bool | None:
    """Return whether the training of `output` that was stopped computes what is frozen once; None where there is none.

    It is gone on with in the way that it was begun: an estimate may come out otherwise at another time.
    """
    request = stopped_request(output)
    return None if request is None or CACHED not in request else request[CACHED] is not None


def threads(settings: FinetuneSettings) -> int:
    """Return the number of threads that decode and draw views."""
    return cores() if settings.workers == "auto" else max(1, settings.workers)


# --- one training


class Training:
    """The training of one network: its feeder of batches, whose ``with`` block is the caller's, and its trainer."""

    def __init__(
        self, job: Job, examples: Examples, images: Images, choice: Choice, rows: CutRows | None, team: Team
    ) -> None:
        self._team = team
        self.notices: list[str] = []
        self._job = job
        self._start = job.start
        self._examples = examples
        self._images = images
        self._settings = settings = job.settings
        self._choice = choice
        self._rows = rows
        self._view = make_view(settings, job.start.base)
        self._beginning: State = {}
        feeding: Feeding = {
            "batch_size": settings.batch_size,
            "seed": settings.seed,
            "threads": max(1, threads(settings) // team.local_count),
            "team": team,
        }
        self.feeder = (
            Feeder(images, examples.inputs(), **feeding)
            if rows is None
            else CutFeeder(rows, images, examples.inputs(), **feeding)
        )
        self._trainer = Trainer(
            job.network,
            make_goal(examples, settings),
            normalize=job.start.base.transform.normalize,
            device=team.device(settings.device),
            clip=settings.clip,
            precision=settings.precision,
            team=team,
        )

    def request(self) -> dict[str, Any]:
        """Make the request of the training from that of its model: two are equal where all steps are the same.

        It is of the content of the images, not of the times of their files: a copy of a folder goes on.
        """
        start, target = self._start, self._examples.target
        labels = {
            "rows": self._examples.fingerprint(self._images),
            "target": target.name,
            "classes": target.names,
        }
        origin = {"base": digest(start.base.module, without=start.base.missing)}
        if start.weight is not None and start.bias is not None:
            origin["head"] = digest_tensors({"weight": start.weight, "bias": start.bias})
        return {
            "settings": self._job.request["settings"],
            "numbers of the recipe": {name: getattr(self._settings, name) for name in RECIPE},
            "images, labels or splits": digest_json(labels),
            "weights to start from": digest_json(origin),
            CACHED: None if self._choice.cut is None else self._choice.cut.prefix.names,
        }

    def run(self, *, saved: Saved | None, keep: Callable[[Saved], None] | None, progress: bool) -> History:
        """Train, from what was `saved` on; the network ends with the weights of its best epoch.

        `keep` is called after every epoch with all that a training needs to go on from there.
        """
        examples, settings = self._examples, self._settings
        crops = "crop" in settings.augment
        if self._rows is None:
            self._preprocess([rows for name, rows in examples.parts.items() if name != "train" or not crops], progress)
        if self._team.is_first and (saved is None or settings.beat_head):
            self._begin(progress=progress)
            self._beginning = snapshot(self._trainer.network) if settings.beat_head else {}
        val = examples.held_out["val"]
        left = settings.epochs - (0 if saved is None else saved.epoch)
        total = left * (len(examples.train) + len(val)) + len(val)
        with progress_bar(total, "fine-tuning", show=progress) as bar:
            self._introduce(bar, saved)
            counted = partial(_counted, bar=bar, times=self._team.count)
            return train(
                self._trainer,
                lambda number: counted(self.feeder.random(examples.train, self._view, number, crops=crops)),
                lambda: counted(self.feeder.plain(val, parted=True)),
                settings=settings,
                steps=len(groups(examples.train, settings.batch_size)),
                watch=lambda epoch: bar.say(epoch.summary()),
                saved=saved,
                keep=keep,
            )

    @property
    def recipe(self) -> str:
        """The hyperparameters in one line."""
        return self._settings.line(len(blocks(self._job.network.features.network)))

    def _introduce(self, bar: Bar, saved: Saved | None) -> None:
        """Say what begins, or goes on."""
        examples = self._examples
        if self._choice.line:
            bar.say(self._choice.line)
        bar.say(
            f"fine-tuning {self._start.record.name} on {plural(len(examples.train), 'image')}, judged by "
            f"{len(examples.held_out['val'])}; epoch 0 is before the first step"
        )
        bar.say(self.recipe)
        if saved is not None:
            bar.say(f"goes on after epoch {saved.epoch}, where it was stopped")

    def settle(self, history: History) -> Verdict:
        """Keep of the line from the fitted head's network to the tuned one what is worth it."""
        examples = self._examples

        def part(name: str) -> Part:
            rows = examples.held_out[name]
            return Part(name, lambda: self.feeder.plain(rows), examples.groups[rows])

        first, *trained = history.epochs
        rows = len(examples.train) + len(examples.held_out["val"])
        one_pass = first.seconds * rows / len(examples.held_out["val"])
        spent = sum(epoch.seconds for epoch in trained)
        if self._rows is not None:
            one_pass, spent = one_pass + rows * self._choice.seconds, spent + self._rows.seconds
        verdict = settle(
            self._trainer,
            self._beginning,
            history.weights,
            val=part("val"),
            judged=part("test" if "test" in examples.held_out else "val"),
            looks=len(history.epochs),
            time_ratio=spent / one_pass,
            scale=examples.scale,
            seed=self._settings.seed,
        )
        history.best = 0 if verdict.kept == "head" else verdict.epochs[0]
        return verdict

    def describe(
        self, output: Path, history: History, verdict: Verdict | None, parts: Mapping[str, Scored], *, resumed: int
    ) -> FinetuneResult:
        """Make the result of what was trained."""
        job, examples = self._job, self._examples
        bad = {job.manifest.records[index].id: str(error) for index, error in sorted(self._images.bad.items())}
        return FinetuneResult(
            model=output,
            head=(LinearHead if examples.target.task == "classes" else RidgeHead).name,
            target=examples.target.name,
            layers=job.start.layers,
            metrics={name: part.metrics for name, part in parts.items()},
            chosen=chosen_settings(job.settings, best_epoch=history.best),
            epochs=history.epochs,
            best_epoch=history.best,
            resumed=resumed,
            rows={name: len(part) for name, part in parts.items()},
            bad=bad,
            seconds=0.0,
            verdict=verdict,
            cached=self._choice.cut is not None,
            cache=self._choice.line,
            recipe=self.recipe,
            notices=[
                *examples.notices,
                *job.start.flattered(self._images, examples.held_out),
                *notices_of(parts, examples),
                *[metrics.BALANCED] * job.settings.is_balanced,
                *self.notices,
            ],
        )

    def draw(self, history: History, parts: Mapping[str, Scored]) -> plots.Rendered:
        """Draw the held-out images with their answers, the first batch, the numbers, and the epochs."""
        target, manifest = self._examples.target, self._job.manifest
        rows = {record.id: record.index for record in manifest.records}
        drawings = parts["val"].plots(lambda id: Image.fromarray(self._images.preprocessed(rows[id])))
        drawings["batch"] = self.draw_batch
        if target.task == "numbers":
            drawings["histogram"] = lambda: pictures.histogram(target, manifest.targets)
        epochs = {"epochs": [epoch.to_json() for epoch in history.epochs], "best_epoch": history.best}
        drawings |= pictures.of_training(epochs, task=target.task, nested="")
        return plots.render(drawings, names=(target.name, *(target.names or ())))

    def draw_batch(self) -> Figure:
        """Draw images of the first batch as the network saw them, with their class or number."""
        crops, target = "crop" in self._settings.augment, self._examples.target
        seen = self.feeder.first(self._examples.train, self._view, 1, crops=crops, most=pictures.SHOWN)
        tiles = [plots.Tile(Image.fromarray(pixels), pictures.written(target, row)) for row, pixels in seen]
        return plots.grid(tiles, title=f"the first batch of epoch 1, {plural(len(tiles), 'image')} of it")

    def save(
        self, result: FinetuneResult, parts: Mapping[str, Scored], *, drawn: plots.Rendered, replace: bool
    ) -> None:
        """Write the model folder; it holds the base where that is another one than it came from."""
        job, examples, base = self._job, self._examples, self._start.base
        head = fitted_head(job.network, examples, half_width=parts["val"].median_half_width)
        put_back(job.network, base)
        kept_head = result.verdict is not None and result.verdict.kept == "head"
        changed = job.start.record.fine_tuned or (job.start.changes_base(job.settings) and not kept_head)
        record = ModelRecord.of(
            head,
            examples.target,
            base=job.start.record.model_copy(update={"fine_tuned": changed}),
            recipe=recipe_of(job.start),
            metrics={
                **result.metrics,
                "epochs": [epoch.to_json() for epoch in result.epochs],
                "seconds": round(result.seconds, 3),
            },
            data=DataRecord(
                source=shown(job.manifest.source),
                rows=len(examples.train),
                fingerprint=examples.fingerprint(self._images),
            ),
            chosen=result.chosen,
            request=job.request,
        )
        save_model(
            result.model,
            head,
            record=record,
            predictions=[row for name in examples.held_out for row in parts[name].rows(split=True)],
            plots=drawn.plots,
            save_base=(lambda path: write_base(base, path)) if changed else None,
            seen=Seen.of(
                self._images.contents(examples.train),
                tested=self._images.contents(examples.held_out["test"]) if "test" in examples.held_out else None,
            ),
            replace=replace,
        )

    def _preprocess(self, parts: list[Indices], progress: bool) -> None:
        """Keep of the rows without random crops only what the base sees of them."""
        with progress_bar(sum(map(len, parts)), "preprocessing", show=progress) as bar:
            for rows in parts:
                self._images.keep_preprocessed(rows, bar)

    def _begin(self, *, progress: bool) -> None:
        """Standardise what the head takes, and give it the fitted weights, fitted now where the recipe wants that."""
        start, examples, network = self._start, self._examples, self._trainer.network
        fits = start.weight is None and self._settings.recipe == "default" and not start.is_random
        most = FITTED_FLOATS if fits else min(SAMPLE_FLOATS, SAMPLE * network.head.in_features)
        sample = examples.train[:: -(-len(examples.train) // max(64, most // network.head.in_features))]
        with progress_bar(len(sample), "embedding for the start", show=progress) as bar:
            features = self._trainer.features(_counted(self.feeder.plain(sample), bar))
        standardise(network, features)
        weight, bias = start.weight, start.bias
        if fits:
            weight, bias = fit_weights(features.numpy(), sample, examples, self._settings)
            if len(sample) < len(examples.train):
                self.notices.append(f"the head to start from was fitted to {len(sample)} of the training rows")
        if weight is not None and bias is not None:
            start_from(network, weight / examples.scale, (bias - examples.centre) / examples.scale)
        if self._rows is not None and self._settings.cache_dtype != "float32":
            self._tell_drift(sample[:DRIFT])

    def _tell_drift(self, rows: Indices) -> None:
        """Note what rounding what is cached changes."""
        pixels = np.stack([self._images.preprocessed(row) for row in rows.tolist()])
        exact, _ = self._trainer.outputs([(pixels, self._examples.inputs()[rows])])
        rounded, _ = self._trainer.outputs(self.feeder.plain(rows, batch_size=len(rows)))
        drift = float((exact - rounded).abs().max() / exact.abs().max().clamp(min=1e-12))
        self.notices.append(
            f"{self._settings.cache_dtype} activations change the network's outputs by at most {drift:.1e} of the "
            f"largest ({plural(len(rows), 'image')})"
        )

    def score(self, *, progress: bool) -> dict[str, Scored]:
        """Score all rows, without random views, part by part."""
        examples, manifest, scores = self._examples, self._job.manifest, {}
        with progress_bar(sum(map(len, examples.parts.values())), "scoring", show=progress) as bar:
            for name, rows in examples.parts.items():
                outputs = self._trainer.outputs(_counted(self.feeder.plain(rows), bar))[0].numpy()
                numbers = examples.target.task == "numbers"
                scores[name] = examples.values(outputs[:, 0]) if numbers else softmax(outputs)
        half = None
        if examples.target.task == "numbers":
            off = scores["val"] - examples.target.values[examples.held_out["val"]]
            half = interval_half_width(off, COVERAGE)
        return {
            name: Scored(
                ids=[manifest.records[row].id for row in rows],
                target=examples.target.take(rows),
                scores=scores[name],
                part=name,
                half_width=half,
                coverage=COVERAGE,
                groups=examples.groups[rows],
            )
            for name, rows in examples.parts.items()
        }


def make_goal(examples: Examples, settings: Hyperparameters) -> Goal:
    """Choose the loss, and the measures that an epoch is judged by."""
    if examples.target.task == "numbers":
        return Numbers(examples.scale)
    weights = torch.from_numpy(examples.balance()) if settings.is_balanced else None
    return Classes(weights, smoothing=settings.label_smoothing)


def _counted(batches: Iterable[Batch], bar: Bar, times: int = 1) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        bar.advance(times * len(batch[1]))


def _single(numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    return numbers.astype(np.float32)


# --- the trained model


def fitted_head(network: Network, examples: Examples, *, half_width: float | None) -> AffineHead:
    """Return the last layer as a head on the trained base's features, with intervals of `half_width` for numbers."""
    weight, bias = folded_head(network)
    head: AffineHead
    if examples.target.task == "classes":
        head = LinearHead.from_weights(_single(weight), _single(bias), task="classes")
    else:
        weight, bias = weight * examples.scale, examples.values(bias)
        head = RidgeHead.from_weights(_single(weight), _single(bias), task="numbers")
    head.interval_half_width = half_width
    return head


def chosen_settings(settings: Hyperparameters, *, best_epoch: int) -> dict[str, Any]:
    """Return the settings that decided the training, and the epoch that was kept."""
    return {**settings.model_dump(mode="json", include={*RECIPE}), "best_epoch": best_epoch}


def recipe_of(start: Start) -> Recipe:
    """Return the recipe of the features that the base gives as it is now, after the training."""
    return Recipe.plain(
        base=start.record.name,
        weights=digest(start.base.module, without=start.base.missing),
        layers=start.layers,
        pool=start.pool,
        transform=start.base.transform.describe(),
        pixels=decoding.POLICY_VERSION,
    )


def notices_of(parts: Mapping[str, Scored], examples: Examples) -> list[str]:
    """List the notices that a reader of the metrics needs."""
    found = [caution for name in examples.held_out for caution in parts[name].cautions()]
    if examples.target.task == "numbers":
        found += metrics.outliers(examples.target.values[examples.train], examples.target.name)
    return found
