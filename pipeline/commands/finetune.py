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
from pipeline.devices import cores, pick_device
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
from pipeline.training.batches import Batch, Feeder, Images, Indices
from pipeline.training.cached import Choice, CutFeeder, CutRows, choose
from pipeline.training.checkpoint import Checkpoint, Saved, refuse_no_place, stopped_request
from pipeline.training.cut import find_cut
from pipeline.training.dataset import Examples, read_images, split_examples
from pipeline.training.line import ALPHAS, Part, Verdict, settle
from pipeline.training.loop import Classes, Epoch, Goal, History, Numbers, Trainer, train
from pipeline.training.network import (
    Network,
    State,
    build_network,
    folded_head,
    freeze,
    put_back,
    snapshot,
    standardise,
    start_from,
    write_base,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

#: Training rows whose features decide how the head's inputs are standardised, and numbers of them at most.
SAMPLE, SAMPLE_FLOATS = 1024, 2**26
#: Images that tell what rounding changes.
DRIFT = 16
#: A calibrated start, with logits times the head's inverse temperature, has the right loss from the first step. The fit
#: is unbounded for a head without a mistake, and logits that are too large leave no gradients: at most so much.
LARGEST_INVERSE_TEMPERATURE = 10.0
#: Share of new numbers that a prediction interval covers.
COVERAGE = 0.9
#: What a training's request calls the places where what is frozen ends, if they are cached.
CACHED = "cached activations"


@dataclass
class FinetuneResult(Result):
    """A fine-tuned model and its epochs. `metrics` are of the best epoch; `bad` maps an id to its reason.

    The first `resumed` epochs were taken by a run that was stopped. `cached` is True where the frozen part was computed
    once, and `cache` says why, or why not.
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
    notices: list[str] = field(default_factory=list)

    @property
    def looks(self) -> int:
        """Number of looks at the val rows that chose the model: a figure on them is the best of so many."""
        return len(self.epochs) + (0 if self.verdict is None else len(ALPHAS))

    def to_json(self) -> dict[str, Any]:
        """Return the keys that `--json` promises."""
        return {**super().to_json(), "looks": self.looks, "bad": len(self.bad), "bad_images": self.bad}

    def summary(self) -> str:
        """Summarise every epoch, the best one's metrics, and every bad image."""
        counted = ", ".join(f"{count} {part}" for part, count in self.rows.items())
        lines = [f"{shown(self.target)} from {', '.join(self.layers)}: {counted} images, {self.seconds:.1f} s"]
        if self.cache:
            lines.append(self.cache)
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
    refuse_existing(Path(output), last="model.json", replace=force)
    with made_parents(Path(output)), named(Path(output)), lock(Path(output)):
        return _finetune(source, Path(output), settings, force=force, progress=progress)


def _finetune(
    source: str | Path, output: Path, settings: FinetuneSettings, *, force: bool, progress: bool
) -> FinetuneResult:
    """Do it as the one who writes `output`."""
    started = time.perf_counter()
    start = fresh_start(settings) if settings.head is None else fitted_start(settings.head, settings)
    view = make_view(settings, start.base)
    manifest = read_manifest(source, settings)
    log_notices(manifest)
    inputs = fingerprint_images(manifest, start_files(settings))  # as they are before the first one is read
    request = request_of("finetune", settings, inputs)
    targets = without_group(manifest.targets, settings.group, learned=start.target)
    target = choose_target(targets, where=shown(manifest.source), name=start.target, task=start.task)
    target = target.recoded(start.classes)
    network = make_network(start, target, settings)
    if start.changes_base(settings):
        require_room(output, sum(tensor.nbytes for tensor in start.base.module.state_dict().values()))
    refuse_no_place(output, size=checkpoint_bytes(network, settings))
    choice = choose(
        settings,
        lambda: find_cut(network.features, start.base.transform.size),
        start.base,
        start.pool,
        manifest,
        target,
        before=None if force else cached_before(output),
    )
    with ExitStack() as opened:
        cut_rows: CutRows | None = None
        if choice.cut is None:
            images = images_of(manifest, target, start, settings, progress=progress)
        else:
            network.cut_before(choice.cut.suffix)
            cut_rows = opened.enter_context(CutRows(choice.cut, start.base, start.pool, manifest, settings))
            images = cut_rows.read_images(target, progress=progress)
        examples = split_examples(manifest, target, images, settings)
        if cut_rows is not None:
            cut_rows.draw_views(examples.train, progress=progress)
        training = Training(start, network, examples, images, settings, choice, cut_rows)
        checkpoint = Checkpoint(output, training_request(request, start, examples, images, choice))
        saved = checkpoint.read(force=force)
        opened.enter_context(training.feeder)
        history = training.run(view, saved=saved, keep=checkpoint.write, progress=progress)
        verdict = training.settle(history) if settings.beat_head else None
        parts = training.score(manifest, progress=progress)
    head = fitted_head(network, examples, half_width=parts["val"].median_half_width)
    result = FinetuneResult(
        model=output,
        head=head.name,
        target=target.name,
        layers=start.layers,
        metrics={name: part.metrics for name, part in parts.items()},
        chosen=chosen_settings(settings, best_epoch=history.best),
        epochs=history.epochs,
        best_epoch=history.best,
        resumed=0 if saved is None else saved.epoch,
        rows={name: len(part) for name, part in parts.items()},
        bad={manifest.records[index].id: str(error) for index, error in sorted(images.bad.items())},
        seconds=time.perf_counter() - started,
        verdict=verdict,
        cached=choice.cut is not None,
        cache=choice.line,
        notices=[
            *examples.notices,
            *start.flattered(images, examples.held_out),
            *notices_of(parts, examples),
            *[metrics.BALANCED] * settings.is_balanced,
            *training.notices,
        ],
    )
    epochs = [epoch.to_json() for epoch in result.epochs]
    drawings = training.drawings(manifest, target, view, parts["val"])
    drawings |= pictures.of_training({"epochs": epochs, "best_epoch": history.best}, task=target.task, nested="")
    drawn = plots.render(drawings, names=(target.name, *(target.names or ())))
    result.notices += drawn.notices
    put_back(network, start.base)
    changed = start.record.fine_tuned or (start.changes_base(settings) and not (verdict and verdict.kept == "head"))
    record = ModelRecord.of(
        head,
        target,
        base=start.record.model_copy(update={"fine_tuned": changed}),
        recipe=recipe_of(start),
        metrics={**result.metrics, "epochs": epochs, "seconds": round(result.seconds, 3)},
        data=DataRecord(
            source=shown(manifest.source), rows=len(examples.train), fingerprint=examples.fingerprint(images)
        ),
        chosen=result.chosen,
        request=request,
    )
    save_model(
        result.model,
        head,
        record=record,
        predictions=[row for name in examples.held_out for row in parts[name].rows(split=True)],
        plots=drawn.plots,
        save_base=(lambda path: write_base(start.base, path)) if changed else None,
        seen=Seen.of(
            images.contents(examples.train),
            tested=images.contents(examples.held_out["test"]) if "test" in examples.held_out else None,
        ),
        replace=force,
    )
    checkpoint.remove()
    return result


def images_of(
    manifest: Manifest, target: Target, start: Start, settings: FinetuneSettings, *, progress: bool
) -> Images:
    """Read every image once: those that are good, and why the others are not."""
    return read_images(
        manifest,
        target,
        start.base.transform,
        workers=threads(settings),
        max_bad=settings.max_bad,
        max_pixels=settings.max_pixels,
        progress=progress,
    )


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

    def changes_base(self, settings: FinetuneSettings) -> bool:
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
    inverse_temperature = 1.0
    if head.task == "classes":
        inverse_temperature = min(head.inverse_temperature, LARGEST_INVERSE_TEMPERATURE)
    return Start(
        base=model.base,
        record=model.record.base,
        layers=recipe.layers,
        pool=recipe.pool,
        target=model.record.target,
        task=model.record.task,
        classes=model.record.classes,
        weight=head.weight * inverse_temperature,
        bias=head.bias * inverse_temperature,
        seen=model.seen,
    )


def make_view(settings: FinetuneSettings, base: Base) -> View:
    """Build the random views of training rows. Without a crop they are made of what the base sees of an image."""
    names = tuple(name for name in settings.augment if name != "none")
    transform = base.transform
    return build_view(names, size=transform.size, plain=np.asarray, interpolation=transform.resampling)


def make_network(start: Start, target: Target, settings: FinetuneSettings) -> Network:
    """Make base and head one network, frozen but for what the settings name. Raises `SettingsError` for what cannot."""
    if target.task == "numbers" and settings.class_weight == "balanced":
        raise SettingsError(f"class_weight=balanced is for classes; target {target.name!r} is numbers")
    outputs = 1 if target.names is None else len(target.names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build_network(start.base, start.layers, start.pool, outputs=outputs)
    freeze(network, settings.train, freeze_norm=settings.freeze_norm)
    return network


def checkpoint_bytes(network: Network, settings: FinetuneSettings) -> int:
    """Return the size of a checkpoint: what moves, the best of it, and as much for each moment of the optimizer."""
    copies = 4 if settings.optimizer in ("adam", "adamw") else 3
    return copies * sum(tensor.nbytes for tensor in snapshot(network).values())


def training_request(
    request: Mapping[str, Any], start: Start, examples: Examples, images: Images, choice: Choice
) -> dict[str, Any]:
    """Make the request of a training from that of its model: two are equal where all steps are the same.

    It is of the content of the images, not of the times of their files: a copy of a folder goes on.
    """
    target = examples.target
    labels = {"rows": examples.fingerprint(images), "target": target.name, "classes": target.names}
    origin = {"base": digest(start.base.module, without=start.base.missing)}
    if start.weight is not None and start.bias is not None:
        origin["head"] = digest_tensors({"weight": start.weight, "bias": start.bias})
    return {
        "settings": request["settings"],
        "images, labels or splits": digest_json(labels),
        "weights to start from": digest_json(origin),
        CACHED: None if choice.cut is None else choice.cut.prefix.names,
    }


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
    """The training of one network: its feeder of batches and its trainer; the ``with`` block is the feeder's."""

    def __init__(
        self,
        start: Start,
        network: Network,
        examples: Examples,
        images: Images,
        settings: FinetuneSettings,
        choice: Choice,
        rows: CutRows | None,
    ) -> None:
        self.notices: list[str] = []
        self._choice = choice
        self._rows = rows
        self._start = start
        self._examples = examples
        self._images = images
        self._settings = settings
        self._beginning: State = {}
        feeding = {"batch_size": settings.batch_size, "seed": settings.seed, "threads": threads(settings)}
        self.feeder = (
            Feeder(images, examples.inputs(), **feeding)
            if rows is None
            else CutFeeder(rows, images, examples.inputs(), **feeding)
        )
        self._trainer = Trainer(
            network,
            make_goal(examples, settings),
            normalize=start.base.transform.normalize,
            device=pick_device(settings.device),
            clip=settings.clip,
        )

    def run(self, view: View, *, saved: Saved | None, keep: Callable[[Saved], None], progress: bool) -> History:
        """Train, from what was `saved` on; the network ends with the weights of its best epoch.

        `keep` is called after every epoch with all that a training needs to go on from there.
        """
        examples, settings = self._examples, self._settings
        crops = "crop" in settings.augment
        if self._rows is None:
            self._preprocess([rows for name, rows in examples.parts.items() if name != "train" or not crops], progress)
        if saved is None or settings.beat_head:
            self._begin(progress=progress)
        if settings.beat_head:
            self._beginning = snapshot(self._trainer.network)
        val = examples.held_out["val"]
        left = settings.epochs - (0 if saved is None else saved.epoch)
        total = left * (len(examples.train) + len(val)) + len(val)
        with progress_bar(total, "fine-tuning", show=progress) as bar:
            if self._choice.line:
                bar.say(self._choice.line)
            bar.say(
                f"fine-tuning {self._start.record.name} on {plural(len(examples.train), 'image')}, judged by "
                f"{len(val)}: {plural(settings.epochs, 'epoch')}; epoch 0 is before the first step"
            )
            if saved is not None:
                bar.say(f"goes on after epoch {saved.epoch}, where it was stopped")
            return train(
                self._trainer,
                lambda number: _counted(self.feeder.random(examples.train, view, number, crops=crops), bar),
                lambda: _counted(self.feeder.plain(val), bar),
                settings=settings,
                watch=lambda epoch: bar.say(epoch.summary()),
                saved=saved,
                keep=keep,
            )

    def drawings(self, manifest: Manifest, target: Target, view: View, held_out: Scored) -> dict[str, plots.Drawing]:
        """Return what is to be drawn of images: held-out ones with their answers, the first batch, the numbers."""
        rows = {record.id: record.index for record in manifest.records}
        drawings = held_out.plots(lambda id: Image.fromarray(self._images.preprocessed(rows[id])))
        drawings["batch"] = lambda: self.draw_batch(view, target)
        if target.task == "numbers":
            drawings["histogram"] = lambda: pictures.histogram(target, manifest.targets)
        return drawings

    def draw_batch(self, view: View, target: Target) -> Figure:
        """Draw images of the first batch as the network saw them, with their class or number."""
        crops = "crop" in self._settings.augment
        seen = self.feeder.first(self._examples.train, view, 1, crops=crops, most=pictures.SHOWN)
        tiles = [plots.Tile(Image.fromarray(pixels), pictures.written(target, row)) for row, pixels in seen]
        return plots.grid(tiles, title=f"the first batch of epoch 1, {plural(len(tiles), 'image')} of it")

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
            val=part("val"),
            judged=part("test" if "test" in examples.held_out else "val"),
            epochs=len(trained),
            time_ratio=spent / one_pass,
            scale=examples.scale,
            seed=self._settings.seed,
        )
        if verdict.kept == "head":
            history.best = 0
        return verdict

    def _preprocess(self, parts: list[Indices], progress: bool) -> None:
        """Keep of the rows without random crops only what the base sees of them."""
        with progress_bar(sum(map(len, parts)), "preprocessing", show=progress) as bar:
            for rows in parts:
                self._images.keep_preprocessed(rows, bar)

    def _begin(self, *, progress: bool) -> None:
        """Standardise what the head takes, and give it the fitted weights."""
        start, examples, network = self._start, self._examples, self._trainer.network
        most = min(SAMPLE, max(64, SAMPLE_FLOATS // network.head.in_features))
        sample = examples.train[:: -(-len(examples.train) // most)]
        with progress_bar(len(sample), "embedding for the start", show=progress) as bar:
            standardise(network, self._trainer.features(_counted(self.feeder.plain(sample), bar)))
        if start.weight is not None and start.bias is not None:
            bias = (start.bias - examples.centre) / examples.scale
            start_from(network, start.weight / examples.scale, bias)
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

    def score(self, manifest: Manifest, *, progress: bool) -> dict[str, Scored]:
        """Score all rows, without random views, part by part."""
        examples, scores = self._examples, {}
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


def make_goal(examples: Examples, settings: FinetuneSettings) -> Goal:
    """Choose the loss, and the measures that an epoch is judged by."""
    if examples.target.task == "numbers":
        return Numbers(examples.scale)
    balanced = settings.class_weight == "balanced"
    return Classes(torch.from_numpy(examples.balance()) if balanced else None)


def _counted(batches: Iterable[Batch], bar: Bar) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        bar.advance(len(batch[0]))


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


def chosen_settings(settings: FinetuneSettings, *, best_epoch: int) -> dict[str, Any]:
    """Return the settings that decided the training, and the epoch that was kept."""
    names = ("train", "freeze_norm", "beat_head", "optimizer", "base_lr", "momentum", "weight_decay", "step", "gamma")
    more = ("clip", "class_weight", "augment", "epochs", "patience", "batch_size", "seed")
    chosen = settings.model_dump(mode="json", include={*names, *more})
    return {**chosen, "lr": settings.rate, "best_epoch": best_epoch}


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
