"""Score a saved model on labelled images, or on the features of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import metrics
from pipeline.artifact import Model, joined, load_model
from pipeline.config import SourceSettings
from pipeline.errors import SourceError
from pipeline.manifest import Target, read_manifest
from pipeline.progress import progress as progress_bar
from pipeline.store import FeatureStore, is_store


@dataclass
class EvaluateResult:
    """Scores over `rows` labelled rows; `bad` images have none."""

    model: Path
    rows: int
    bad: int
    split: str
    metrics: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The keys that `--json` promises."""
        return {
            "model": str(self.model),
            "rows": self.rows,
            "bad": self.bad,
            "split": self.split,
            "metrics": self.metrics,
        }

    def summary(self) -> str:
        """The table of the metrics."""
        bad = f", {self.bad} bad images left out" if self.bad else ""
        return f"{self.model}: {self.rows} rows ({self.split}{bad})\n{metrics.table(self.metrics)}"


def evaluate(
    model: str | Path,
    source: str | Path,
    *,
    split: str = "auto",
    weights: str | None = None,
    device: str = "auto",
    engine: str = "auto",
    progress: bool = False,
    **options: Any,
) -> EvaluateResult:
    """Score the model folder `model` on `source`: a feature file, or labelled images as `extract` takes them.

    `split` is train, val, test, all, or auto: the rows held out (test, else val) where `source` knows of splits, else
    all. Raises `SourceError` where no row has a known label, `RecipeMismatchError` on features of another recipe.
    """
    loaded = load_model(model, weights=weights, device=device, engine=engine)
    if is_store(source):
        features, target, split, bad = _from_store(loaded, source, split)
    else:
        settings = SourceSettings.of(options)
        features, target, split, bad = _from_images(loaded, source, settings, split, progress)
    truth = _in_the_models_words(target, loaded)
    known = ~np.isnan(truth) if target.names is None else truth >= 0
    if not known.any():
        raise SourceError(f"{source}: no row of split {split!r} has a known {target.name!r}; give labelled images")
    scores = loaded.head.scores(features[known])
    if loaded.record.classes is None:
        found = metrics.regression(truth[known], scores)
    else:
        found = metrics.classification(truth[known], scores, loaded.record.classes)
    return EvaluateResult(Path(model), int(known.sum()), bad, split, found)


Labelled = tuple[NDArray[np.float32], Target, str, int]


def _from_store(model: Model, path: str | Path, split: str) -> Labelled:
    with FeatureStore.open(path) as store:
        model.check_recipe(store.recipe, path)
        target = _target(store.targets, model, path)
        split = _held_out(store.splits, split, path)
        rows = store.select(split=None if split == "all" else split)
        layers = (store.features(layer, rows) for layer in model.record.recipe.layers)
        if store.recipe.views:  # the plain view comes first
            layers = (layer[:, 0] for layer in layers)
        features = joined(layers)
        asked = sum(split in ("all", of_row) for of_row in store.splits)
    return features, Target(target.name, target.values[rows], target.names), split, asked - len(rows)


def _from_images(model: Model, source: str | Path, settings: SourceSettings, split: str, progress: bool) -> Labelled:
    manifest = read_manifest(source, settings)
    target = _target(manifest.targets, model, source)
    split = _held_out([record.split for record in manifest.records], split, source)
    records = [record for record in manifest.records if split in ("all", record.split)]
    rows, blocks = [], []
    with progress_bar(len(records), "evaluating", show=progress) as bar:
        for batch in model.embed(records):
            if batch.indices:
                rows += batch.indices
                blocks.append(batch.features)
            bar.advance(len(batch))
    if not rows:
        raise SourceError(f"{source}: not one of {len(records)} images could be read")
    features = np.concatenate(blocks)
    return features, Target(target.name, target.values[rows], target.names), split, len(records) - len(rows)


def _target(targets: dict[str, Target], model: Model, source: str | Path) -> Target:
    name = model.record.target
    if name not in targets:
        listed = ", ".join(targets) or "none"
        raise SourceError(f"{source} has no target {name!r} that the model predicts; it has: {listed}")
    target = targets[name]
    if (target.names is None) != (model.record.classes is None):
        raise SourceError(f"{source}: target {name!r} is of another kind (classes or numbers) than the model's")
    return target


def _held_out(splits: Iterable[str], asked: str, source: str | Path) -> str:
    """The split to score; a model's own training rows only where they are asked for."""
    present = {str(split) for split in splits}
    if asked == "auto":
        return next((split for split in ("test", "val") if split in present), "all")
    if asked != "all" and asked not in present:
        listed = ", ".join(sorted(present - {""})) or "no splits"
        raise SourceError(f"{source} has no split {asked!r}; it has {listed}")
    return asked


def _in_the_models_words(target: Target, model: Model) -> NDArray[Any]:
    """Class codes of the source as those of the model, matched by name; numbers as they are."""
    if target.names is None or model.record.classes is None:
        return target.values
    code = {name: index for index, name in enumerate(model.record.classes)}
    strangers = sorted({target.names[i] for i in np.unique(target.values) if i >= 0} - set(code))
    if strangers:
        raise SourceError(f"{target.name}: the model knows no class {strangers[0]!r}; it knows {', '.join(code)[:200]}")
    codes = np.array([code.get(name, -1) for name in target.names] + [-1], dtype=np.int64)
    found: NDArray[np.int64] = codes[target.values]
    return found
