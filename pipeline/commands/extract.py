"""Stage one: images to features, once.

    manifest -> rows that the store lacks -> read, decode, shape -> base -> rows in their place -> publish

Only missing rows are computed: those of an earlier run, finished or not, and those whose content another row has
are taken over. A bad image keeps its row, with the reason.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from pipeline.commands.results import Result
from pipeline.config import ExtractSettings, Recipe, SourceSettings
from pipeline.config.options import ExtractOptions
from pipeline.config.signatures import takes
from pipeline.engines.cache import KnownBase, keep_base, read_base
from pipeline.engines.embedder import Embedder
from pipeline.engines.workers import Computer, Crew, base_loader, device_names
from pipeline.errors import ImageError, StoreLockedError
from pipeline.images import decoding
from pipeline.images.loading import refuse_too_many_bad
from pipeline.images.trial import Trial
from pipeline.models.model import start_base
from pipeline.progress import progress as progress_bar
from pipeline.sources import Manifest, Record, Target, read_manifest
from pipeline.store import Environment, LayerSpec, Part, Source, StoreWriter, earlier_headers, part_range, waiting_rows
from pipeline.store.extraction import Extraction
from pipeline.store.writer import usable_path
from pipeline.text import plural, shown
from pipeline.versions import machine, versions

if TYPE_CHECKING:
    from pipeline.bases import Base
    from pipeline.engines.ray import Node, Share
    from pipeline.store.spread import Measured, Order, Report, Witness

Made = TypeVar("Made")

log = logging.getLogger(__name__)

#: Images that a dry run measures.
REHEARSED = 32
#: Bad images that the summary names.
LISTED = 20


@dataclass
class ExtractResult(Result):
    """Counts and times of an extraction.

    `bad` maps an id to its reason; `seconds` are by stage; `dropped` rows of an earlier file are not in this one.
    `notes` name images that were left out of the source, and what in it may be a mistake.
    """

    store: Path
    rows: int
    bad: dict[str, str]
    computed: int
    reused: int
    seconds: dict[str, float] = field(metadata={"digits": 3})
    engine: str
    device: str
    layers: dict[str, tuple[int, ...]]
    dropped: int = 0
    targets: dict[str, Target] = field(default_factory=dict)
    drift: dict[str, float] | None = None
    notes: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    @property
    def good(self) -> int:
        """Number of rows with features."""
        return self.rows - len(self.bad)

    def to_json(self) -> dict[str, Any]:
        """Return the keys that `--json` promises."""
        found = {**super().to_json(), "good": self.good, "bad": len(self.bad), "bad_images": self.bad}
        absent = {name for name in ("drift", "nodes") if not found[name]}
        return {name: value for name, value in found.items() if name not in absent}

    def summary(self) -> str:
        """Summarise counts, times and every bad image."""
        layers = ", ".join(f"{name} {shape}" for name, shape in self.layers.items())
        lines = [
            f"{self.store}: {self.good} of {self.rows} images have features ({layers})",
            f"computed {self.computed}, reused {self.reused} in {self.seconds['total']:.1f} s"
            f" ({self.engine} on {self.device})",
        ]
        lines += [node.summary() for node in self.nodes]
        if self.dropped:
            lines.append(f"{self.dropped} rows dropped, of images that are gone")
        if self.computed:
            lines.append(advice(self.seconds))
        if self.drift:
            lines.append(
                f"int8: cosine to fp32 {self.drift['mean']:.4f} in the mean, {self.drift['least']:.4f} at the least"
                f" (of {self.drift['images']:.0f} images that its ranges were not measured on)"
            )
        lines += [target.describe() for target in self.targets.values()]
        lines += [f"note: {note}" for note in self.notes]
        if self.bad:
            lines.append(f"{plural(len(self.bad), 'bad image')}, each with its row and a reason:")
            lines += [f"  {shown(id)}: {reason}" for id, reason in islice(self.bad.items(), LISTED)]
            if len(self.bad) > LISTED:
                lines.append(f"  and {len(self.bad) - LISTED:,} more, which --json lists")
        return "\n".join(lines)


#: What helps where a stage takes most of the time.
HELP = {
    "read": "a faster disk would help",
    "decode": "--decode fast or more cores would help",
    "forward": "a GPU or a smaller base would help",
    "write": "--dtype float16 or a faster disk would help",
}


def advice(seconds: dict[str, float]) -> str:
    """Format seconds by stage in one line, with what would help the slowest."""
    stages = {stage: seconds[stage] for stage in HELP}
    slowest = max(stages, key=stages.__getitem__)
    shown = ", ".join(f"{stage} {value:.1f} s" for stage, value in stages.items())
    return f"{shown}, waiting {seconds['wait']:.1f} s; most goes to {slowest}: {HELP[slowest]}"


@dataclass
class RehearseResult(Result):
    """Cost of an extraction: `seconds` for the rows to be `computed`, by a measurement on `sample` of them.

    Content that is known under another name shows only when it is read: `computed` is the most that it can be.
    """

    rows: int
    image_bytes: int
    store_bytes: int
    free_bytes: int
    seconds: float
    sample: int
    bad_in_sample: int
    computed: int
    reused: int
    parts: int = 1
    nodes: list[Node] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the keys that `--json` promises."""
        found = super().to_json()
        return found if self.nodes else {name: one for name, one in found.items() if name not in ("parts", "nodes")}

    def summary(self) -> str:
        """Summarise the cost for a person."""
        actors = plural(sum(node.actors for node in self.nodes), "actor")
        spread = f", {plural(self.parts, 'part')} by {actors} on {plural(len(self.nodes), 'node')}"
        cluster = spread if self.nodes else ""
        work = (
            f"about {self.seconds:.0f} s (measured on {self.sample}, {self.bad_in_sample} of them bad)"
            if self.computed
            else "nothing to do"
        )
        size, room = self.store_bytes / 1e6, self.free_bytes / 1e9
        return (
            f"{self.rows} images, {self.image_bytes / 1e6:.1f} MB: {self.reused} reused, {self.computed} to compute,"
            f" {work}{cluster}\nfeatures: {size:.1f} MB, {room:.1f} GB are free; nothing was written"
        )


@takes(ExtractSettings)
def extract(
    source: str | Path,
    output: str | Path,
    *,
    force: bool = False,
    progress: bool = False,
    **options: Unpack[ExtractOptions],
) -> ExtractResult:
    """Run a frozen base over the images of `source` and keep its features in the HDF5 file `output`.

    `options` are the fields of `ExtractSettings`: `base`, `weights`, `layer`, `views`, ... The same call
    again computes only what is missing; `force` starts anew, or goes on where a run with `force` was stopped.

    Raises `SourceError` where there is nothing to read or too much of it is bad, `BaseError` where the base
    cannot be had, `StoreError` where the file cannot be written, `RecipeMismatchError` where it was made otherwise,
    `OutputExistsError` where most rows of other images would go.
    """
    started = time.perf_counter()
    job = Job.of(source, options, output=Path(output), force=force)
    if job.settings.on is not None:
        return _on_cluster(job, Path(output), force=force, progress=progress, started=started)
    with computing(job) as computer, ExitStack() as opened:
        layers = layer_specs(job.settings, computer.shapes)
        writer = opened.enter_context(
            StoreWriter.open(
                output,
                manifest=job.manifest,
                layers=layers,
                recipe=job.recipe,
                environment=environment_of(job, computer),
                force=force,
                part=job.part,
                rehash=job.settings.rehash,
            )
        )
        pending = writer.pending
        extraction = Extraction(writer, job.manifest, computer, job.settings.layer)
        with progress_bar(len(pending), "extracting", show=progress) as bar:
            extraction.compute(pending, bar)
        bad = writer.bad()
        if len(bad) == len(job.manifest):
            writer.discard()
        refuse_too_many_bad(bad, len(job.manifest), job.settings.max_bad, job.manifest.source, kept="what was computed")
        job.manifest.require_unchanged()
        dropped = writer.dropped
        writer.publish()
    seconds = {"total": time.perf_counter() - started, **extraction.seconds}
    return ExtractResult(
        store=Path(output),
        rows=len(job.manifest),
        bad=bad,
        computed=extraction.computed,
        reused=len(job.manifest) - len(pending) + extraction.adopted,
        seconds=seconds,
        engine=computer.name,
        device=computer.device,
        layers={spec.name: spec.shape for spec in layers},
        dropped=dropped,
        targets=job.manifest.targets,
        drift=job.drift,
        notes=job.manifest.all_notices(),
    )


def _on_cluster(job: Job, output: Path, *, force: bool, progress: bool, started: float) -> ExtractResult:
    """Extract by the machines of a cluster: a folder of parts, and one file of them with ``merge``."""
    from pipeline.store.merge import join_parts
    from pipeline.store.spread import Spread

    merge = job.settings.merge
    folder = _parts_of(output) if merge else output
    also = usable_path(output) if merge and output.exists() else None
    spread = Spread(job.manifest, job.recipe, job.settings, folder.absolute(), force=force, also=also)
    with progress_bar(len(job.manifest), "extracting", show=progress) as bar:
        spread.run(
            lambda share, witness: part_maker(job, share, witness, kind=PartWorker, forced=force, drift=job.drift), bar
        )
    if merge:
        join_parts([folder], output, force=True)
        shutil.rmtree(folder)
    reports = list(spread.reports.values())
    actors = max(1, sum(node.actors for node in spread.nodes))
    stages = {name: sum(report.seconds[name] for report in reports) / actors for name in reports[0].seconds}
    return ExtractResult(
        store=output,
        rows=len(job.manifest),
        bad=dict(sorted(spread.bad.items())),
        computed=sum(report.computed for report in reports),
        reused=sum(report.reused for report in reports),
        seconds={"total": time.perf_counter() - started, **stages},
        engine=", ".join(sorted({report.engine for report in reports})),
        device=", ".join(sorted({report.device for report in reports})),
        layers=reports[0].layers,
        dropped=spread.dropped,
        targets=job.manifest.targets,
        drift=job.drift,
        notes=job.manifest.all_notices(),
        nodes=spread.nodes,
    )


def _parts_of(output: Path) -> Path:
    """Return the folder of parts that become the file `output`."""
    return output.with_name(f"{output.name}.parts")


@takes(ExtractSettings)
def rehearse(
    source: str | Path, output: str | Path, *, force: bool = False, **options: Unpack[ExtractOptions]
) -> RehearseResult:
    """Estimate what `extract` with the same arguments would take: measured on a few images, nothing is written.

    Raises as `extract` does, as far as it comes.
    """
    job = Job.of(source, options, output=Path(output), force=force)
    if job.settings.on is not None:
        return _rehearse_on_cluster(job, Path(output), force=force)
    with computing(job) as computer:
        layers = layer_specs(job.settings, computer.shapes)
        pending = waiting_rows(
            output,
            manifest=job.manifest,
            layers=layers,
            recipe=job.recipe,
            force=force,
            part=job.part,
            rehash=job.settings.rehash,
        )
        sample = _sample(job.manifest, pending)
        seconds, bad = _measure(computer, sample)
    return RehearseResult(
        **_sizes(job.manifest, layers, Path(output)),
        seconds=seconds * len(pending),
        sample=len(sample),
        bad_in_sample=bad,
        computed=len(pending),
        reused=len(job.manifest) - len(pending),
    )


def _rehearse_on_cluster(job: Job, output: Path, *, force: bool) -> RehearseResult:
    """Estimate an extraction by the nodes at hand, which measure the same sample at the same time."""
    from pipeline.store.spread import Spread

    also = usable_path(output) if job.settings.merge and output.exists() else None
    folder = _parts_of(output) if job.settings.merge else output
    spread = Spread(job.manifest, job.recipe, job.settings, folder.absolute(), force=force, also=also)
    sample = _sample(job.manifest, np.arange(len(job.manifest)))
    found = spread.rehearse(lambda share, witness: part_maker(job, share, witness, kind=Rehearsal), sample, log.warning)
    sizes = _sizes(job.manifest, found.layers, output)
    if job.settings.merge:  # the parts are there until the file is
        sizes["store_bytes"] *= 2
    return RehearseResult(
        **sizes,
        seconds=found.seconds * found.pending,
        sample=len(sample),
        bad_in_sample=found.bad,
        computed=found.pending,
        reused=len(job.manifest) - found.pending,
        parts=found.parts,
        nodes=found.nodes,
    )


def _sample(manifest: Manifest, pending: NDArray[np.int64]) -> list[Record]:
    return [manifest.records[row] for row in pending[:: max(1, len(pending) // REHEARSED)][:REHEARSED]]


def _sizes(manifest: Manifest, layers: Sequence[LayerSpec], output: Path) -> dict[str, Any]:
    row_bytes = sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in layers)
    return {
        "rows": len(manifest),
        "image_bytes": sum(_size(record) for record in manifest.records),
        "store_bytes": len(manifest) * row_bytes,
        "free_bytes": shutil.disk_usage(next(one for one in output.absolute().parents if one.exists())).free,
    }


def _measure(computer: Computer, sample: Sequence[Record]) -> tuple[float, int]:
    """Measure the seconds that an image takes, and count the bad ones of `sample`."""
    if not sample:
        return 0.0, 0
    if isinstance(computer, Embedder):  # a crew runs only once
        for _ in computer.run(sample[:1]):
            pass  # the first pass is slower than those that count
    started = time.perf_counter()
    bad = sum(len(done) - len(done.good) for done in computer.run(sample))
    return (time.perf_counter() - started) / len(sample), bad


def _size(record: Record) -> int:
    try:
        return record.image.stat()[0]
    except ImageError:
        return 0


@dataclass(frozen=True)
class Job:
    """Settings, images and base of an extraction: `manifest` is the `part` of the source that is wanted.

    `base` loads the base, once, where its graph is not at hand.
    """

    settings: ExtractSettings
    manifest: Manifest
    part: Part
    base: Callable[[], Base]
    recipe: Recipe
    drift: dict[str, float] | None = None

    @classmethod
    def of(cls, source: str | Path, options: Mapping[str, Any], *, output: Path, force: bool) -> Job:
        """Validate the options, list the images, know the base, and calibrate it for int8 where `output` is not so."""
        settings = ExtractSettings.of(options)
        whole = read_manifest(source, settings)
        start, stop = part_range(len(whole), rows=settings.rows, part=settings.part)
        manifest = whole.rows(start, stop)
        load = cache(partial(start_base, settings, seed=settings.seed))
        known = read_base(settings)
        if known is None:
            base = load()
            known = KnownBase(base.digest, base.transform.describe())
            keep_base(settings, known)
            own = {"base": base.name, "weights": base.weights}  # of a tuned model
            settings = settings.model_copy(update=own)
        part = Part.of([record.id for record in whole.records], start, stop)
        job = cls(settings, manifest, part, load, recipe_of(settings, known))
        if settings.precision != "int8":
            return job
        return (None if force else job.calibrated_as(output)) or job.calibrated_on(whole)

    def calibrated_as(self, output: Path) -> Job | None:
        """Return the job with the calibration of an earlier run to `output`; None where there is none of its recipe."""
        places = (output, _parts_of(output)) if self.settings.merge else (output,)
        for header in chain.from_iterable(map(earlier_headers, places)):
            recipe = self.recipe.model_copy(update={"calibration": header.recipe.calibration})
            if recipe.calibration and not recipe.first_difference(header.recipe):
                return replace(self, recipe=recipe, drift=header.environment.drift)
        return None

    def calibrated_on(self, whole: Manifest) -> Job:
        """Return the job with ranges that are measured on images of the `whole` source: all parts have the same."""
        from pipeline.engines.calibration import calibrate  # the quantiser, which nothing else needs

        calibration, drift = calibrate(self.base, self.recipe, whole.records, self.settings)
        return replace(self, recipe=self.recipe.model_copy(update={"calibration": calibration}), drift=asdict(drift))


def computing(job: Job) -> Computer:
    """Make what computes features, on one device or on several; its ``with`` block ends its threads and processes."""
    devices = device_names(job.settings.device)
    if len(devices) > 1:
        return Crew(devices, job.recipe, job.settings)
    return Embedder(job.base, job.recipe, job.settings.model_copy(update={"device": devices[0]}))


class _ActorWorker:
    """The base of a recipe, loaded once in an actor."""

    def __init__(self, settings: ExtractSettings, recipe: Recipe, witness: Witness) -> None:
        """Make ready to compute. Raises `EngineError` where this machine sees other files, and as `base_of`."""
        witness.check()
        self._settings, self._recipe = settings, recipe
        self._base = base_loader(recipe, settings.weights, seed=settings.seed)
        self._computer = Embedder(self._base, recipe, settings)


class Rehearsal(_ActorWorker):
    """The work of an actor for a dry run."""

    def __call__(self, sample: Sequence[Record]) -> Measured:
        """Measure what a sample takes here."""
        from pipeline.store.spread import Measured

        return Measured(*_measure(self._computer, sample), layer_specs(self._settings, self._computer.shapes))

    def progress(self) -> tuple[int, ...]:
        """Count nothing: it takes a moment."""
        return ()


class PartWorker(_ActorWorker):
    """The work of an actor: whole parts, each an ordinary feature file; the base is loaded once."""

    def __init__(
        self,
        settings: ExtractSettings,
        recipe: Recipe,
        witness: Witness,
        *,
        forced: bool,
        drift: dict[str, float] | None = None,
    ) -> None:
        """Load the base of `recipe`; parts are `forced` where they begin anew, and `drift` is that of int8."""
        super().__init__(settings, recipe, witness)
        self._forced, self._drift = forced, drift
        self._done = _Count()
        self._tried = 0
        self._extraction: Extraction | None = None

    def __call__(self, order: Order) -> Report:
        """Make the file of one part, beside where somebody else may be making it; raise as `extract` does."""
        if not order.attempt.contested:
            with suppress(StoreLockedError):  # by an actor that nobody hears of any more, and that may not be dead
                return self._fill(order, order.path, order.beside)
        with order.made_beside() as (path, beside):
            return self._fill(order, path, beside)

    def progress(self) -> tuple[int, int, int]:
        """Count rows of the part at hand: settled, bad ones among those of this run, and those tried alone."""
        return self._done.count, self._extraction.failed if self._extraction else 0, self._tried

    def _fill(self, order: Order, path: Path, beside: tuple[Path, ...]) -> Report:
        from pipeline.store.spread import Report

        settings, computer, manifest = self._settings, self._computer, order.manifest
        layers = layer_specs(settings, computer.shapes)
        job = Job(settings, manifest, order.part, self._base, self._recipe, self._drift)
        environment = environment_of(job, computer)
        if self._forced:
            environment = environment.model_copy(update={"forced": True})
        with StoreWriter.open(
            path,
            manifest=manifest,
            layers=layers,
            recipe=self._recipe,
            environment=environment,
            part=order.part,
            rehash=settings.rehash,
            beside=beside,
        ) as writer:
            pending = writer.pending
            self._done.count = len(manifest) - len(pending)
            self._extraction = extraction = Extraction(writer, manifest, computer, settings.layer)
            before = extraction.seconds
            harmful = list(self._fail_harmful(writer, manifest)) if order.attempt.with_care else []
            extraction.compute(writer.pending, self._done)
            writer.publish()
            bad = writer.bad()
            return Report(
                rows=len(manifest),
                bad=bad,
                unseen=[record.image for record in self._unread(manifest, bad, harmful)],
                harmful=[f"{record.image.where}: {error}" for record, error in harmful],
                computed=extraction.computed,
                reused=len(manifest) - len(pending) + extraction.adopted,
                seconds={stage: seconds - before[stage] for stage, seconds in extraction.seconds.items()},
                engine=computer.name,
                device=computer.device,
                layers={spec.name: spec.shape for spec in layers},
            )

    def _fail_harmful(self, writer: StoreWriter, manifest: Manifest) -> Iterator[tuple[Record, ImageError]]:
        """Give their status to images that hang or end a process, and yield them."""
        # A third for reading and one for decoding: whoever watches has to see progress in time.
        trial = Trial(self._recipe, self._settings.max_pixels, self._settings.image_seconds / 3)
        waiting = [manifest.records[row] for row in writer.pending]
        for record, error in trial.harmful(waiting):
            self._tried += 1
            if error is not None:
                writer.fail(record.index, error.reason, _source_by_stat(record))
                self._done.advance()
                yield record, error

    def _unread(
        self, manifest: Manifest, bad: Mapping[str, str], harmful: Sequence[tuple[Record, ImageError]]
    ) -> Iterator[Record]:
        """Yield records whose files cannot be read here, as another node may be able to."""
        from pipeline.store.spread import is_readable

        known = {record.id for record, _ in harmful}
        for record in manifest.records if bad else ():
            away = bad.get(record.id) in ("missing", "unreadable") and record.id not in known
            if away and not is_readable(record.image):
                yield record


def _source_by_stat(record: Record) -> Source | None:
    """Return what tells that an image is still the same one, without reading it."""
    try:
        size, mtime_ns = record.image.stat()
    except ImageError:
        return None
    return Source(size, mtime_ns, None)


class _Count:
    """A bar that nobody sees: it keeps what is done, for whoever asks."""

    def __init__(self) -> None:
        self.count = 0

    def advance(self, count: int = 1) -> None:
        self.count += count

    def reach(self, share: float, what: str) -> None:
        """Do nothing: an extraction counts."""

    def say(self, line: str) -> None:
        """Do nothing: nobody is watching."""


def part_maker(
    job: Job, share: Share, witness: Witness, *, kind: Callable[..., Made], **more: Any
) -> Callable[[], Made]:
    """Return what makes the worker of an actor that has `share` of a node; `more` is for that `kind` alone."""
    own = {"device": share.device, "workers": share.cores or 1, "on": None}
    return partial(kind, job.settings.model_copy(update=own), job.recipe, witness, **more)


def layer_specs(settings: ExtractSettings, shapes: Sequence[tuple[int, ...]]) -> list[LayerSpec]:
    """Return name, shape and type of a row of each layer; views come first, the plain one before the random ones."""
    views = (settings.views + 1,) if settings.views else ()
    return [
        LayerSpec(name, (*views, *shape), settings.dtype) for name, shape in zip(settings.layer, shapes, strict=True)
    ]


def recipe_of(settings: ExtractSettings, base: KnownBase) -> Recipe:
    """Return the recipe of the features that these settings give."""
    return Recipe(
        base=settings.base,
        weights=base.weights,
        layers=settings.layer,
        pool=settings.pool,
        transform=base.transform,
        pixels=decoding.POLICY_VERSION,
        decode=settings.decode,
        views=settings.views,
        augment=settings.augment,
        seed=settings.seed if settings.views else None,
        precision=settings.precision,
        dtype=settings.dtype,
    )


def environment_of(job: Job, computer: Computer) -> Environment:
    """Record what may differ between two runs of one recipe, and where its weights came from."""
    settings, here = job.settings, machine()
    weights = settings.weights
    if Path(weights).is_file():
        weights = str(Path(weights).resolve())
    drift: dict[str, Any] = {"drift": job.drift} if job.drift else {}
    return Environment(
        **drift,
        weights=weights,
        seed=settings.seed,
        source=settings.model_dump(mode="json", include=set(SourceSettings.model_fields), exclude_defaults=True),
        max_pixels=settings.max_pixels,
        engine=computer.name,
        device=computer.device,
        host=here["host"],
        platform=here["platform"],
        versions=versions(),
    )
