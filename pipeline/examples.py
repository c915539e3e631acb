"""What is learned from which images: the target, the rows to train on and those to judge by."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FinetuneSettings
from pipeline.errors import HeadError, SourceError
from pipeline.feeding import Indices, Pictures
from pipeline.heads.folds import Split, group_codes, split_rows
from pipeline.inputs import InputTransform
from pipeline.loading import refuse_too_many_bad
from pipeline.manifest import Manifest, Target
from pipeline.progress import progress as progress_bar
from pipeline.registry import nearest
from pipeline.terminal import shown


class Examples:
    """Rows of a manifest to train on and to judge by, with their target.

    Numbers are standardised by the training rows, with mean `centre` and spread `scale`; `names` are the classes, None
    for numbers.
    """

    def __init__(self, target: Target, split: Split) -> None:
        self.target = target
        self.names = target.names
        self.train = split.train
        self.held_out = split.held_out
        self.notices = split.notices
        known = target.values[split.train]
        self.centre, self.scale = (0.0, 1.0) if self.names else (float(known.mean()), float(known.std()))

    @property
    def parts(self) -> dict[str, Indices]:
        """All rows, held-out ones first."""
        return {**self.held_out, "train": self.train}

    def inputs(self) -> NDArray[Any]:
        """Targets of all rows as a loss takes them: int64 codes, or standardised float32."""
        if self.names:
            return self.target.values
        return np.asarray((self.target.values - self.centre) / self.scale, dtype=np.float32)

    def values(self, outputs: NDArray[np.floating]) -> NDArray[np.float64]:
        """Standardised outputs (n,) in the target's own unit."""
        return outputs.astype(np.float64) * self.scale + self.centre

    def balance(self) -> NDArray[np.float32]:
        """Weights (C,) under which all classes of the training rows count the same."""
        counts = np.bincount(self.target.values[self.train], minlength=len(self.names or ()))
        weights = len(self.train) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return weights.astype(np.float32)

    def fingerprint(self, pictures: Pictures) -> str:
        """sha256 over what was learned from: content and target of every row, and the part it plays."""
        found = hashlib.sha256()
        for name, rows in self.parts.items():
            found.update(name.encode())
            for row in rows.tolist():
                found.update(pictures.sha256[row] + self.target.values[row].tobytes())
        return found.hexdigest()


def choose_target(manifest: Manifest, *, name: str | None = None, classes: tuple[str, ...] | None = None) -> Target:
    """The only target that there is; or `name`, whose kind and codes are then those of the `classes` of a head.

    Raises `SourceError` where there is none, or not one that a head can go on with.
    """
    listed = ", ".join(manifest.targets) or "none"
    if name is None:
        if len(manifest.targets) == 1:
            return next(iter(manifest.targets.values()))
        cause = f"has several targets ({listed})" if manifest.targets else "has no labels"
        raise SourceError(f"{shown(manifest.source)} {cause}; name the column to learn with --target")
    if name not in manifest.targets:
        raise SourceError(f"{shown(manifest.source)} has no target {name!r}, which the head predicts; it has: {listed}")
    target = manifest.targets[name]
    if (target.names is None) != (classes is None):
        raise SourceError(
            f"{shown(manifest.source)}: target {name!r} is of another kind (classes or numbers) than the head's"
        )
    return target if classes is None else _recoded(target, classes)


def _recoded(target: Target, classes: tuple[str, ...]) -> Target:
    """The same classes under the codes that the head has for them."""
    names = target.names or ()
    codes = {name: code for code, name in enumerate(classes)}
    stranger = next((name for name in names if name not in codes), None)
    if stranger is not None:
        raise SourceError(
            f"{target.name}: the head knows no class {stranger!r}{nearest(stranger, classes)}; "
            f"it knows {', '.join(classes)[:200]}"
        )
    lookup = np.array([*(codes[name] for name in names), -1], dtype=np.int64)
    return Target(target.name, lookup[target.values], classes)


def read_pictures(
    manifest: Manifest,
    target: Target,
    transform: InputTransform,
    *,
    workers: int,
    max_bad: float,
    max_pixels: int,
    progress: bool,
) -> Pictures:
    """Read every image whose target is known. Raises `SourceError` where too many of them are bad."""
    known = np.isfinite(target.values) if target.names is None else target.values >= 0
    records = [manifest.records[row] for row in np.flatnonzero(known)]
    if not records:
        raise SourceError(f"{shown(manifest.source)}: no image has a known {target.name!r}; there is nothing to learn")
    pictures = Pictures(records, transform, max_pixels=max_pixels)
    with progress_bar(len(records), "reading", show=progress) as bar:
        pictures.read(bar, workers=workers)
    bad = {manifest.records[row].id: error.reason for row, error in sorted(pictures.bad.items())}
    refuse_too_many_bad(bad, len(records), max_bad, manifest.source)
    return pictures


def split_examples(manifest: Manifest, target: Target, pictures: Pictures, settings: FinetuneSettings) -> Examples:
    """The good rows, parted as `fit-head` parts those of a feature file. Raises `HeadError`."""
    good = np.array(sorted(pictures.sha256), dtype=np.int64)
    contents = np.stack([np.frombuffer(pictures.sha256[row], np.uint8) for row in good.tolist()])
    found = split_rows(
        [manifest.records[row].split for row in good.tolist()],
        target.values[good],
        group_codes(contents),
        share=settings.val,
        seed=settings.seed,
    )
    train = good[found.train]
    held_out = {name: good[rows] for name, rows in found.held_out.items()}
    different = len(np.unique(target.values[train]))
    if different < 2 or not len(held_out["val"]):
        raise HeadError(
            f"{shown(manifest.source)}: {different} different {target.name!r} in {len(train)} training rows and "
            f"{len(held_out['val'])} rows to judge by; training needs two at least, and a row to judge by"
        )
    return Examples(target, Split(train, held_out, found.notices))
