"""The frozen part of a network, computed once: a feature file of what passes the cut, from which the rest is trained.

    estimate of both ways -> rows that the file lacks: images -> prefix -> file -> batches of rows -> suffix

The file is one of stage one: made by its engine, with a recipe, and complete or gone on with. It lies in the cache
folder under the digest of its recipe and its source, so that another training from the same cut finds it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bases import Base
from pipeline.bases.weights import digest
from pipeline.config import FinetuneSettings, Pool, Recipe, RunSettings
from pipeline.engines.cache import CUTS, cache_folder
from pipeline.engines.embedder import Embedder
from pipeline.engines.memory import free
from pipeline.errors import ImageError, OutputExistsError, SettingsError, StoreDamagedError, StoreLockedError
from pipeline.files import refuse_locked, require_room
from pipeline.images import decoding
from pipeline.images.augment import View
from pipeline.images.loading import refuse_too_many_bad
from pipeline.progress import progress as progress_bar
from pipeline.sources import Manifest, Target
from pipeline.store import Environment, FeatureStore, LayerSpec, StoreWriter
from pipeline.store.extraction import Extraction
from pipeline.training.batches import Batch, Feeder, Feeding, Images, Indices
from pipeline.training.cut import Cut
from pipeline.training.dataset import expected_rows
from pipeline.training.recipes import Hyperparameters

#: Bytes of cut files that are kept; those used longest ago go first. Larger ones are not made unless that is asked for.
KEPT_BYTES = 20_000_000_000
#: Share of the disk's room, and of the memory's, that rows may take.
SHARE = 0.5
#: Images of a batch that is timed, and how much longer a step takes than a forward pass.
TIMED, STEP = 4, 3
#: Share of the time without that rows may take: less is gained than they are worth on the disk.
WORTH = 0.9
#: Seconds until a file that another process writes is asked for again.
PATIENCE = 0.2
#: Bytes of rows that a disk reads in a second, where they do not fit into memory.
DISK = 500e6

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """The `cut` whose rows are kept, or None, and the `line` that says why; `seconds` of an image in the prefix."""

    cut: Cut | None
    line: str
    seconds: float = 0.0


def choose(
    settings: Hyperparameters,
    cut: Callable[[], Cut],
    base: Base,
    pool: Pool,
    manifest: Manifest,
    target: Target,
    *,
    before: bool | None,
) -> Choice:
    """Choose by an estimate of time, disk and memory; `before` is what the training that is gone on with chose.

    Raises `SettingsError` where rows have to be kept and cannot be cut.
    """
    if settings.cache == "never" or before is False:
        return Choice(None, "")
    try:
        found = cut()
    except SettingsError as error:
        if settings.cache == "always":
            raise SettingsError(f"cache=always: {error}; leave it out, or train other modules") from None
        return Choice(None, f"nothing is cached, since {error}")
    if settings.cache == "auto" and not before and (refusal := _refuse_folder()):
        return Choice(None, f"nothing is cached, since {refusal}")
    cost = Cost.of(settings, found, base, pool, manifest, target)
    if settings.cache == "always" or before:
        return Choice(found, cost.line(settings, cached=True), cost.prefix)
    refusal = cost.refusal()
    if refusal:
        return Choice(None, f"nothing is cached, since {refusal}", cost.prefix)
    cached = cost.cached < WORTH * cost.plain
    return Choice(found if cached else None, cost.line(settings, cached=cached), cost.prefix)


@dataclass(frozen=True)
class Cost:
    """Estimate of both ways: seconds, bytes on disk, and seconds of an image in the prefix."""

    cached: float
    plain: float
    bytes: int
    at_hand: bool
    prefix: float
    places: str

    @classmethod
    def of(
        cls, settings: Hyperparameters, cut: Cut, base: Base, pool: Pool, manifest: Manifest, target: Target
    ) -> Cost:
        """Time both parts on a few blank images, and count the passes."""
        rows = int(target.known.sum())
        train = expected_rows(manifest, target, settings)
        views = settings.views if is_random(settings) else 0
        row_bytes = cut.numbers * np.dtype(settings.cache_dtype).itemsize
        at_hand = all(_path(_recipe(cut, base, pool, settings, count), manifest).exists() for count in {0, views})
        prefix, suffix = _seconds(cut, base)
        judged = (settings.epochs + 1) * (rows - train) + rows
        steps = suffix * (STEP * settings.epochs * train + judged)
        size = row_bytes * (rows + (train * (views + 1) if views else 0))
        reading = settings.epochs * rows * row_bytes / DISK if size > memory_bytes(settings) else 0.0
        made = 0 if at_hand else rows + (train * (views + 1) if views else 0)
        return cls(
            cached=prefix * made + steps + reading,
            plain=prefix * (settings.epochs * train + judged) + steps,
            bytes=size,
            at_hand=at_hand,
            prefix=prefix,
            places=" and ".join(dict.fromkeys(name.partition("@")[0] for name in cut.prefix.names[:2])),
        )

    def refusal(self) -> str | None:
        """Return why there is no room for the rows; None where there is."""
        if self.at_hand:
            return None
        room = min(KEPT_BYTES, int(SHARE * shutil.disk_usage(cut_folder()).free))
        if self.bytes > room:
            return f"it would take {self.bytes / 1e9:.1f} GB, and {room / 1e9:.1f} GB are for that"
        return None

    def line(self, settings: FinetuneSettings, *, cached: bool) -> str:
        """Say what was chosen, and what both ways would take."""
        size = f"{self.bytes / 1e6:.0f} MB"
        views = f", {settings.views} views of each training image" if is_random(settings) else ""
        if cached and self.at_hand:
            return f"what is frozen, up to {self.places}, is at hand ({size}{views}): about {self.cached:.0f} s"
        if cached:
            return (
                f"what is frozen, up to {self.places}, is computed once ({size}{views}): about {self.cached:.0f} s, "
                f"not {self.plain:.0f} s"
            )
        return (
            f"what is frozen, up to {self.places}, is computed in every epoch: about {self.plain:.0f} s, not "
            f"{self.cached:.0f} s with {size} of it kept"
        )


def _refuse_folder() -> str | None:
    """Make the folder of cut files; return why there can be none, or None where there is one."""
    try:
        folder = cut_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"there is no place for it: {error}"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written"


def is_random(settings: FinetuneSettings) -> bool:
    """Return True where training rows are seen in random views."""
    return settings.augment != ("none",)


def memory_bytes(settings: FinetuneSettings) -> int:
    """Return the bytes of images or rows that may be held in memory."""
    return int(SHARE * free("cpu") if settings.memory == "auto" else settings.memory * 1e9)


def _seconds(cut: Cut, base: Base) -> tuple[float, float]:
    """Measure the seconds of an image in each part."""
    height, width = base.transform.size
    images = torch.zeros(TIMED, 3, height, width).contiguous(memory_format=torch.channels_last)
    modes = {module: module.training for module in cut.suffix.modules()}
    for module in modes:
        module.training = False
    try:
        with torch.no_grad():
            passed = cut.prefix(images)
            started = time.perf_counter()
            cut.prefix(images)
            between = time.perf_counter()
            cut.suffix(*passed)
            ended = time.perf_counter()
    finally:
        for module, mode in modes.items():
            module.training = mode
    return (between - started) / TIMED, (ended - between) / TIMED


# --- the file


def cut_folder() -> Path:
    """Return the folder of the cut files. Raises `OSError` where there is no cache folder."""
    return cache_folder() / CUTS


def _path(recipe: Recipe, manifest: Manifest) -> Path:
    source = os.path.realpath(manifest.source)
    key = hashlib.sha256(f"{recipe.fingerprint()}\n".encode() + os.fsencode(source))
    return cut_folder() / f"{key.hexdigest()}.h5"


def _recipe(cut: Cut, base: Base, pool: Pool, settings: FinetuneSettings, views: int) -> Recipe:
    return Recipe(
        base=base.name,
        weights=digest(cut.prefix),
        layers=tuple(cut.prefix.names),
        pool=pool,
        transform=base.transform.describe(),
        pixels=decoding.POLICY_VERSION,
        decode="exact",
        views=views,
        augment=settings.augment if views else (),
        seed=settings.seed if views else None,
        precision="fp32",
        dtype=settings.cache_dtype,
    )


class CutFile:
    """Tensors that pass the cut for some rows of a manifest: one plain view of each, or that and random ones.

    Rows are kept in memory where there is room for them, images in the order of their channels last.
    """

    def __init__(self, store: FeatureStore, rows: Indices, *, views: int, room: int) -> None:
        self.seconds = 0.0
        self._store = store
        self._place = {int(row): place for place, row in enumerate(rows.tolist())}
        self._views = views
        self._held: list[NDArray[Any]] | None = None
        if store.bytes <= room:
            self._held = [self._read_whole(name) for name in store.layers]

    @property
    def is_held(self) -> bool:
        """True where the rows are in memory."""
        return self._held is not None

    def take(self, rows: Indices, views: NDArray[np.int64] | None = None) -> tuple[NDArray[Any], ...]:
        """Return the tensors (n, ...) of `rows`, each in one of its `views` (n,): 0 is the plain one."""
        places = np.array([self._place[row] for row in rows.tolist()], dtype=np.int64)
        numbers = np.zeros(len(rows), np.int64) if views is None else views
        if self._held is None:
            order = np.argsort(places, kind="stable")
            found = [self._store.features(name, places[order])[np.argsort(order)] for name in self._store.layers]
            chosen = [one[np.arange(len(rows)), numbers] if self._views else one for one in found]
        else:
            chosen = [one[places, numbers] if self._views else one[places] for one in self._held]
            chosen = [np.moveaxis(one, -1, 1) if one.ndim == 4 else one for one in chosen]
        return tuple(chosen)

    def _read_whole(self, name: str) -> NDArray[Any]:
        """Read a layer block by block: twice the memory of all rows may not be there."""
        shape = self._store.layers[name]
        is_map = len(shape) - bool(self._views) == 3
        axes = (*shape[:-3], *shape[-2:], shape[-3]) if is_map else shape
        whole: NDArray[Any] | None = None
        for start in range(0, len(self._store), 64):
            rows = np.arange(start, min(start + 64, len(self._store)))
            block = self._store.features(name, rows)
            if whole is None:
                whole = np.empty((len(self._store), *axes), block.dtype)
            whole[rows] = np.moveaxis(block, -3, -1) if is_map else block
        if whole is None:
            raise StoreDamagedError(f"{self._store.path} has no rows")
        return whole


class CutRows:
    """The cut files of one training: plain rows of all images, random views of those that train.

    A context manager, which closes the files. At most `room` bytes of them are held in memory.
    """

    def __init__(
        self,
        cut: Cut,
        base: Base,
        pool: Pool,
        manifest: Manifest,
        settings: FinetuneSettings,
        *,
        room: int | None = None,
    ) -> None:
        self.seconds = 0.0
        self._room = memory_bytes(settings) if room is None else room
        self.cut = cut
        self._base = base
        self._pool = pool
        self._manifest = manifest
        self._settings = settings
        self._opened = ExitStack()
        self._plain: CutFile | None = None
        self._random: CutFile | None = None

    def __enter__(self) -> CutRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def read_images(self, target: Target, *, progress: bool) -> Images:
        """Compute the plain rows of all images whose target is known, and tell what was learned of the images.

        Raises `SourceError` where too many of them are bad.
        """
        rows = np.flatnonzero(target.known).astype(np.int64)
        store, bad = self._computed(rows, views=0, progress=progress)
        records = [self._manifest.records[row] for row in rows.tolist()]
        refuse_too_many_bad(bad, len(records), self._settings.max_bad, self._manifest.source)
        images = Images(records, self._base.transform, max_pixels=self._settings.max_pixels)
        good = {record.index: sha.tobytes() for record, sha in zip(records, store.sha256, strict=True)}
        failed = {record.index: bad[record.id] for record in records if record.id in bad}
        images.know(
            {index: sha for index, sha in good.items() if index not in failed},
            {index: ImageError(reason, "found when the frozen part was computed") for index, reason in failed.items()},
        )
        self._plain = self._held(store, rows, views=0)
        return images

    def draw_views(self, rows: Indices, *, progress: bool) -> None:
        """Compute the random views of the training `rows`, where there are such."""
        if is_random(self._settings):
            store, _ = self._computed(np.sort(rows), views=self._settings.views, progress=progress)
            self._random = self._held(store, np.sort(rows), views=self._settings.views)

    def plain(self, rows: Indices) -> tuple[NDArray[Any], ...]:
        """Return what passes the cut for `rows` as the base sees them: one array (n, ...) a place."""
        return _there(self._plain).take(rows)

    def random(self, rows: Indices, epoch: int) -> tuple[NDArray[Any], ...]:
        """Return the same in the views of an epoch, as `views_of` draws them."""
        if self._random is None:
            return self.plain(rows)
        views, seed = self._settings.views, self._settings.seed
        return self._random.take(rows, views_of(rows, epoch, views=views, rows=len(self._manifest), seed=seed))

    def _held(self, store: FeatureStore, rows: Indices, *, views: int) -> CutFile:
        """Open the rows of a file, in memory where there is room beside those that are there."""
        file = CutFile(store, rows, views=views, room=self._room)
        self._room -= store.bytes if file.is_held else 0
        return file

    def _computed(self, rows: Indices, *, views: int, progress: bool) -> tuple[FeatureStore, dict[str, str]]:
        """Return the file of `rows`, whose missing ones are computed, and the bad ones among them."""
        manifest = replace(
            self._manifest,
            records=[replace(self._manifest.records[row], index=place) for place, row in enumerate(rows.tolist())],
            targets={},
        )
        recipe = _recipe(self.cut, self._base, self._pool, self._settings, views)
        path = _path(recipe, manifest)
        shape = [(views + 1, *one) if views else one for one in self.cut.prefix.shapes]
        layers = [
            LayerSpec(name, own, self._settings.cache_dtype)
            for name, own in zip(self.cut.prefix.names, shape, strict=True)
        ]
        size = sum(int(np.prod(own)) for own in shape) * np.dtype(self._settings.cache_dtype).itemsize * len(rows)
        if not path.exists():
            make_room(path, size)
        started = time.perf_counter()
        while _is_written(path):  # by another training from the same cut, which computes what this one needs
            time.sleep(PATIENCE)
        try:
            bad = self._fill(path, manifest, layers, recipe, progress=progress, force=False)
        except (OutputExistsError, StoreDamagedError):  # of images that are gone, or rotten: it is only a cache
            bad = self._fill(path, manifest, layers, recipe, progress=progress, force=True)
        self.seconds += time.perf_counter() - started
        with suppress(OSError):
            os.utime(path)
        return self._opened.enter_context(FeatureStore.open(path)), bad

    def _fill(
        self,
        path: Path,
        manifest: Manifest,
        layers: Sequence[LayerSpec],
        recipe: Recipe,
        *,
        progress: bool,
        force: bool,
    ) -> dict[str, str]:
        settings = self._settings
        # In torch, as where nothing is cached: the rounding of another engine grows from step to step.
        run = {
            "device": settings.device,
            "workers": settings.workers,
            "max_pixels": settings.max_pixels,
            "engine": "torch",
        }
        with ExitStack() as opened:
            writer = opened.enter_context(
                StoreWriter.open(
                    path,
                    manifest=manifest,
                    layers=layers,
                    recipe=recipe,
                    environment=Environment(max_pixels=settings.max_pixels),
                    force=force,
                )
            )
            pending = writer.pending
            if len(pending):
                embedder = opened.enter_context(
                    Embedder(self._base, recipe, RunSettings.of(run), network=self.cut.prefix)
                )
                with progress_bar(len(pending), "computing what is frozen", show=progress) as bar:
                    Extraction(writer, manifest, embedder, recipe.layers).compute(pending, bar)
            bad = writer.bad()
            manifest.require_unchanged()
            if len(bad) == len(manifest):
                writer.discard()
                refuse_too_many_bad(bad, len(manifest), 1.0, manifest.source)
            writer.publish()
        return bad


def views_of(chosen: Indices, epoch: int, *, views: int, rows: int, seed: int) -> NDArray[np.int64]:
    """Return the view (n,) of each of the `chosen` ones of all `rows` in an epoch: 1 to `views`.

    In each round of as many epochs as there are views, a row has each of them once. In the first round they have the
    number of the epoch, which is what a training without cached views has; after it each row begins elsewhere.
    """
    turn, number = divmod(epoch - 1, views)
    shift = np.random.default_rng([seed, turn]).integers(views, size=rows) if turn else np.zeros(rows, np.int64)
    return np.asarray(1 + (number + shift[chosen]) % views)


def _there(file: CutFile | None) -> CutFile:
    if file is None:
        raise ValueError("the rows are not computed yet")
    return file


def make_room(path: Path, size: int) -> None:
    """Remove the cut files used longest ago until one of `size` bytes keeps the folder below `KEPT_BYTES`.

    Raises `OSError` where the disk has no room for it.
    """
    kept, total = [], size
    with suppress(OSError):
        kept = sorted(path.parent.glob("*.h5"), key=lambda one: one.stat().st_mtime, reverse=True)
    for one in kept:
        total += one.stat().st_size
        if total > KEPT_BYTES and not _is_written(one):
            one.unlink(missing_ok=True)
    require_room(path, size)


def _is_written(path: Path) -> bool:
    try:
        refuse_locked(path)
    except StoreLockedError:
        return True
    return False


# --- the batches


class CutFeeder(Feeder):
    """Feeder of the rows at a cut in place of images: the same rows, in the same order."""

    def __init__(self, rows: CutRows, images: Images, targets: NDArray[Any], **feeding: Unpack[Feeding]) -> None:
        super().__init__(images, targets, **feeding)
        self._rows = rows

    def random(self, indices: Indices, view: View, epoch: int, *, crops: bool) -> Iterator[Batch]:
        """Yield the batches of one epoch, shuffled, in the cached views of that epoch."""
        return self._gathered(self._shares(indices, epoch), lambda part: self._rows.random(part, epoch))

    def plain(self, indices: Indices, *, batch_size: int = 16, parted: bool = False) -> Iterator[Batch]:
        """Yield batches in the order of the indices, without chance; where they are `parted`, those of this process."""
        return self._gathered(self._plain_parts(indices, batch_size, parted), self._rows.plain)

    def _gathered(self, parts: list[Indices], read: Callable[[Indices], tuple[NDArray[Any], ...]]) -> Iterator[Batch]:
        for part, inputs in self._ahead(parts, lambda part: read(part) if len(part) else ()):
            yield inputs, self._targets[part]
