"""The data of a training: the target, the rows to train on and those to judge by."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FinetuneSettings
from pipeline.errors import HeadError, SourceError
from pipeline.images.loading import refuse_too_many_bad
from pipeline.images.transform import InputTransform
from pipeline.progress import progress as progress_bar
from pipeline.sources import Manifest, Target
from pipeline.sources.groups import find_groups
from pipeline.splits import Codes, Split, split_rows
from pipeline.text import shown
from pipeline.training.batches import ROOM, Images, Indices


class Examples:
    """Rows of a manifest to train on and to judge by, with their target.

    Rows of one of the `groups` (N,) are no evidence for one another; a row that is not used has -1.
    Numbers are standardised by the training rows, with mean `centre` and standard deviation `scale`.
    """

    def __init__(self, target: Target, split: Split, groups: Codes) -> None:
        self.target = target
        self.groups = groups
        self.train = split.train
        self.held_out = split.held_out
        self.notices = split.notices
        self.centre, self.scale = 0.0, 1.0
        if target.task == "numbers":
            known = target.values[split.train]
            self.centre, self.scale = float(known.mean()), float(known.std())

    @property
    def parts(self) -> dict[str, Indices]:
        """All rows, held-out ones first."""
        return {**self.held_out, "train": self.train}

    def inputs(self) -> NDArray[Any]:
        """Return the targets (N,) of all rows as a loss takes them: int64 codes, or standardised float32."""
        if self.target.task == "classes":
            return self.target.values
        return np.asarray((self.target.values - self.centre) / self.scale, dtype=np.float32)

    def values(self, outputs: NDArray[np.floating]) -> NDArray[np.float64]:
        """Convert standardised outputs (n,) to the target's own unit."""
        return outputs.astype(np.float64) * self.scale + self.centre

    def balance(self) -> NDArray[np.float32]:
        """Compute weights (C,) under which all classes of the training rows count the same."""
        counts = np.bincount(self.target.values[self.train], minlength=len(self.target.names or ()))
        weights = len(self.train) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return weights.astype(np.float32)

    def fingerprint(self, images: Images) -> str:
        """Compute the sha256, in hexadecimal, of the data: content and target of every row, and its part."""
        found = hashlib.sha256()
        for name, rows in self.parts.items():
            found.update(name.encode())
            for row in rows.tolist():
                found.update(images.sha256[row] + self.target.values[row].tobytes())
        return found.hexdigest()


def expected_rows(manifest: Manifest, target: Target, settings: FinetuneSettings) -> int:
    """Count the rows that will train if all images are good, before one is read."""
    known = np.flatnonzero(target.known)
    held_out = sum(manifest.records[row].split in ("val", "test") for row in known.tolist())
    return len(known) - held_out if held_out else round(len(known) * (1 - settings.val))


def read_images(
    manifest: Manifest,
    target: Target,
    transform: InputTransform,
    *,
    workers: int,
    max_bad: float,
    max_pixels: int,
    progress: bool,
    room: int = ROOM,
) -> Images:
    """Read every image whose target is known, and hold `room` bytes of them.

    Raises `SourceError` where too many of them are bad.
    """
    records = [manifest.records[row] for row in np.flatnonzero(target.known)]
    if not records:
        raise SourceError(f"{shown(manifest.source)}: no image has a known {target.name!r}; there is nothing to learn")
    images = Images(records, transform, max_pixels=max_pixels, room=room)
    with progress_bar(len(records), "reading", show=progress) as bar:
        images.read(bar, workers=workers)
    bad = {manifest.records[row].id: error.reason for row, error in sorted(images.bad.items())}
    refuse_too_many_bad(bad, len(records), max_bad, manifest.source)
    return images


def split_examples(manifest: Manifest, target: Target, images: Images, settings: FinetuneSettings) -> Examples:
    """Split the good rows as `fit-head` splits those of a feature file. Raises `HeadError`."""
    good = np.array(sorted(images.sha256), dtype=np.int64)
    ids, contents = [record.id for record in manifest.records], images.contents(good)
    groups = find_groups(settings.group, ids=ids, targets=manifest.targets, contents=contents, rows=good)
    found = split_rows(
        [manifest.records[row].split for row in good.tolist()],
        target.values[good],
        groups.codes,
        share=settings.val,
        test=settings.test,
        chooses=True,
        seed=settings.seed,
        alike=groups.alike,
    )
    train = good[found.train]
    held_out = {name: good[rows] for name, rows in found.held_out.items()}
    different = len(np.unique(target.values[train]))
    if different < 2 or not len(held_out["val"]):
        raise HeadError(
            f"{shown(manifest.source)}: {different} different {target.name!r} in {len(train)} training rows and "
            f"{len(held_out['val'])} rows to judge by; training needs two at least, and a row to judge by"
        )
    codes = np.full(len(manifest), -1, dtype=np.int64)
    codes[good] = groups.codes
    return Examples(target, Split(train, held_out, [*groups.notices, *found.notices]), codes)
