"""Pictures of what a model learns from, and of how it did: drawn when it is trained, and again whenever asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import plots
from pipeline.config import Recipe, SourceSettings
from pipeline.errors import ImageError
from pipeline.files import digest_bytes
from pipeline.images.album import Album
from pipeline.plots import Drawing, Tile
from pipeline.scores import values_by_class
from pipeline.sources import Target
from pipeline.store import FeatureStore
from pipeline.text import plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Images of a batch that are shown, and tiles of a picture where each image has several views.
SHOWN, MOST_TILES, MOST_VIEWS = 16, 20, 5


def album_of(store: FeatureStore, *, source: str | None = None) -> Album:
    """Return the images of a feature file, from `source` where that is given, else from where the file says."""
    contents = dict(zip(store.ids, map(bytes, store.sha256), strict=True))
    settings = SourceSettings.of(store.environment.source)
    return Album(source or store.source, settings, contents=contents, thorough=source is not None)


def histogram(target: Target, targets: Mapping[str, Target]) -> Figure:
    """Draw the numbers of `target`, a colour for each class of the first of `targets` that has some."""
    title = f"{target.name}: {plural(int(target.known.sum()), 'image')}"
    return plots.histogram(values_by_class(target, targets), name=target.name, title=title)


def written(target: Target | None, row: int) -> str:
    """Write the class or the number of a row; empty where it is unknown."""
    if target is None or not target.known[row]:
        return ""
    return target.names[target.values[row]] if target.names is not None else f"{target.values[row]:.4g}"


def batch(
    album: Album,
    ids: Sequence[str],
    labels: Sequence[str],
    *,
    recipe: Recipe,
    title: str = "one batch, as the base sees it",
) -> Figure:
    """Draw images as the base sees them: the plain view, and a column for each random one."""
    from pipeline.images.preprocess import make_preprocess
    from pipeline.images.transform import InputTransform

    recipe = recipe.model_copy(update={"views": min(recipe.views, MOST_VIEWS - 1)})
    preprocess = make_preprocess(recipe, InputTransform.from_description(recipe.transform))
    tiles: list[Tile] = []
    rows = SHOWN if not recipe.views else MOST_TILES // (recipe.views + 1)
    for id, label in zip(ids[:rows], labels, strict=False):
        data = album.read(id)
        try:
            views = None if data is None else preprocess(data, digest_bytes(data))
        except ImageError:
            continue
        if views is None:
            continue
        names = [label, *(f"view {number}" for number in range(1, len(views)))]
        tiles += [Tile(Image.fromarray(view), name) for name, view in zip(names, views, strict=False)]
    return plots.grid(tiles, columns=recipe.views + 1 if recipe.views else 4, title=title)


def some(rows: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Choose as many of `rows` (n,) as a batch shows, at random."""
    return np.random.default_rng(seed).permutation(rows)[:SHOWN]


def of_training(metrics: Mapping[str, Any], *, task: str, nested: str) -> dict[str, Drawing]:
    """Return pictures of the ranking, the epochs and the number of rows, as far as `metrics` of a model hold them."""
    drawings: dict[str, Drawing] = {}
    if metrics.get("ranking"):
        drawings["ranking"] = lambda: _ranking(metrics, task, nested)
    if metrics.get("epochs"):
        drawings["learning"] = lambda: _learning(metrics)
    if metrics.get("learning_curve"):
        drawings["learning_curve"] = lambda: plots.score_by_rows(metrics["learning_curve"], title="a ridge head")
    return drawings


def _ranking(metrics: Mapping[str, Any], task: str, nested: str) -> Figure:
    entries, compared_by = metrics["ranking"], metrics.get("compared_by", "out of fold")
    return plots.ranking(
        [entry["head"] for entry in entries],
        [entry["score"] for entry in entries],
        [(entry["interval"][0], entry["interval"][1]) for entry in entries],
        measure=f"{'RMSE' if task == 'numbers' else 'accuracy'}, {compared_by}",
        chosen=next((entry["head"] for entry in entries if entry["chosen"]), None),
        title="auto: whichever is chosen without the rows that are scored" * (compared_by == nested),
    )


def _learning(metrics: Mapping[str, Any]) -> Figure:
    """Draw the epochs: those of a head are judged by rows out of fold, those of a fine-tuning by held-out ones."""
    epochs, best = metrics["epochs"], metrics.get("best_epoch")
    held_out = "out of fold" if "search" in metrics else "val"
    found: Mapping[str, Any] = next((entry for entry in epochs if entry["epoch"] == best), {})
    measure = next((name for name in ("val_accuracy", "val_rmse") if name in found), None)
    reached = "" if measure is None else f": {held_out} {measure.removeprefix('val_')} {found[measure]:.4g}"
    return plots.learning_curve(epochs, best=best, held_out=held_out, title=f"epoch {best} is kept{reached}")
