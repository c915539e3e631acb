"""The pictures of a training: confusion matrix, predictions against truth, learning curve, ranking, a grid of images.

Figures are made without pyplot, so that nothing global is touched and no display is needed; a caller saves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG, BLUE, GREY = "#1b7837", "#b2182b", "#2166ac", "#888888"
#: More classes than this and numbers in the cells cannot be read.
WRITTEN_CELLS = 20


def confusion(matrix: NDArray[np.int64], names: Sequence[str], *, title: str = "") -> Figure:
    """Counts (C, C) with the truth in rows; the shade is the share of the row."""
    classes = len(names)
    side = min(2.5 + 0.45 * classes, 16)
    figure = _figure(side + 0.6, side)
    axes = figure.add_subplot()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if classes <= WRITTEN_CELLS:
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    ticks = range(0, classes, 1 if classes <= 60 else classes // 30)
    axes.set_xticks(ticks, [names[i] for i in ticks], rotation=45, ha="right")
    axes.set_yticks(ticks, [names[i] for i in ticks])
    axes.set(xlabel="predicted", ylabel="true", title=title)
    return figure


def predicted_against_true(
    truth: NDArray[Any],
    predicted: NDArray[Any],
    *,
    name: str,
    half_width: float | None = None,
    title: str = "",
) -> Figure:
    """A point a row; the band is the prediction interval."""
    figure = _figure(5.5, 5.5)
    axes = figure.add_subplot()
    both = np.concatenate([truth, predicted])
    ends = np.array([both.min(), both.max()], dtype=np.float64)
    if half_width is not None:
        axes.fill_between(ends, ends - half_width, ends + half_width, color=BLUE, alpha=0.12, label="interval")
        axes.legend(loc="upper left")
    axes.plot(ends, ends, color=GREY, linewidth=1)
    axes.plot(truth, predicted, ".", color=BLUE, alpha=0.6)
    axes.set(xlabel=f"true {name}", ylabel=f"predicted {name}", title=title)
    return figure


def learning_curve(epochs: Sequence[Mapping[str, Any]], *, best: int | None = None) -> Figure:
    """One panel a measure, from entries such as {epoch, train_loss, val_loss, val_accuracy, ...}.

    `best` is the epoch that was kept.
    """
    names = {key.split("_", 1)[1]: None for entry in epochs for key in entry if key.startswith(("train_", "val_"))}
    figure = _figure(5 * max(len(names), 1), 3.6)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), place)
        for which, colour in (("train", GREY), ("val", BLUE)):
            points = [(e["epoch"], e[f"{which}_{name}"]) for e in epochs if f"{which}_{name}" in e]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, label=which, marker=".")
        if best is not None:
            axes.axvline(best, color=GREY, linewidth=1, linestyle=":")
        axes.set(xlabel="epoch", title=name)
        axes.legend()
    return figure


def ranking(
    names: Sequence[str], scores: Sequence[float], intervals: Sequence[tuple[float, float]], *, measure: str
) -> Figure:
    """Heads from best to worst with their confidence intervals."""
    figure = _figure(6.5, 1.2 + 0.45 * len(names))
    axes = figure.add_subplot()
    places = np.arange(len(names))[::-1]
    around = np.abs(np.array(intervals).T - np.array(scores))
    axes.errorbar(scores, places, xerr=around, fmt="o", color=BLUE, capsize=4)
    axes.set_yticks(places, list(names))
    axes.set(xlabel=measure, ylim=(-0.6, len(names) - 0.4))
    axes.grid(axis="x", alpha=0.3)
    return figure


def grid(images: Sequence[Image.Image], captions: Sequence[str], *, right: Sequence[bool], columns: int = 8) -> Figure:
    """Images with a caption each; green where `right`, red where not."""
    lines = -(-len(images) // columns)
    figure = _figure(1.5 * columns, 1.8 * max(lines, 1))
    for place, (image, caption, good) in enumerate(zip(images, captions, right, strict=True), start=1):
        axes: Axes = figure.add_subplot(lines, columns, place)
        axes.imshow(np.asarray(image.convert("RGB")))
        axes.set_title(caption, color=RIGHT if good else WRONG, fontsize=9)
        axes.set_axis_off()
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # half a second that most commands never need

    return Figure(figsize=(width, height), layout="constrained", dpi=110)
