"""Plots of a training: confusion matrix, predictions against truth, learning curve, ranking, a grid of images.

Figures are made without pyplot, so that nothing global is touched and no display is needed; `render` makes files of
them, all in the style of `styled`. Names come from the user's files and may hold anything: `spelled` puts them into
characters that the fonts of this machine have, and `_finished` sees to it that none of them is read as a formula.
"""

from __future__ import annotations

import io
import logging
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from pipeline.text import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font
    from matplotlib.text import Text

log = logging.getLogger(__name__)

#: Colours that those who see fewer of them tell apart (Okabe and Ito, 2008), of as many classes as a legend has.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b8a900", "#000000")
RIGHT, WRONG, BLUE, GREY = "#0072b2", "#d55e00", "#0072b2", "#767676"
#: Sizes of text, in points, and what is drawn alike everywhere.
TITLE, TEXT, SMALL = 11.0, 10.0, 8.0
STYLE = {
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "figure.titlesize": TITLE,
    "legend.fontsize": SMALL,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
}
DPI = 110
#: Pixels of the square that an image of a grid is fitted into, between two of them, and of a line of its caption.
SIDE, GAP, LINE = 176, 14, 18
#: Width of a character, in inches for a point of its size: wide enough for most texts.
CHARACTER = 0.0088
#: Fonts that have what the first one lacks, in the order in which they are asked: those of Linux, Windows and macOS.
#: Fonts of coloured emoji are no outlines, which is all that matplotlib draws.
FONTS = (
    *("DejaVu Sans", "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC"),
    *("Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("Microsoft YaHei", "SimHei", "SimSun", "Yu Gothic", "MS Gothic", "Malgun Gothic", "Segoe UI Symbol"),
    *("PingFang SC", "Hiragino Sans GB", "Hiragino Sans", "Heiti TC", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Noto Sans Devanagari", "Noto Sans Arabic", "Noto Sans Thai", "Nirmala UI", "Noto Emoji", "Symbola"),
)
#: What makes a figure once it is asked.
Drawing: TypeAlias = "Callable[[], Figure]"
#: A longer name leaves no room for the plot.
LONGEST_NAME = 40
#: More classes than this and a matrix shows nothing: the pairs and classes that are confused most are listed.
MOST_CELLS = 40
LISTED = 15
#: Points further than this many interquartile ranges from the others would squeeze them into a corner.
FAR = 3.0


def confusion(matrix: NDArray[np.int64], names: Sequence[str], *, title: str = "") -> Figure:
    """Draw counts (C, C) with the truth in rows; the shade is the share of the row."""
    classes = len(names)
    written = [spelled(name) for name in names]
    cell = 0.45
    room = _inches(written, STYLE["ytick.labelsize"])
    lying = room < 0.9 * cell
    side = max(cell * classes, 1.4)
    figure = _figure(max(side + room + 1.9, 4.2), side + (0.3 if lying else room) + 1.1)
    axes = figure.add_subplot()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count or row == column:  # zeros elsewhere hide the mistakes
            colour = "white" if share[row, column] > 0.5 else "black"
            size = TEXT if len(str(count)) < 4 else SMALL * 4 / max(4, len(str(count)))
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=size)
    axes.set_xticks(range(classes), written, rotation=0 if lying else 90)
    axes.set_yticks(range(classes), written)
    axes.spines[:].set_visible(True)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(image, ax=axes, label="share of the true class", ticks=[0, 0.5, 1], fraction=0.05, aspect=15)
    return _finished(figure, title)


def most_confused(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], names: Sequence[str], *, title: str = ""
) -> Figure:
    """Draw the most confused pairs of classes and the classes that are recognized least, a bar each, from codes (n,).

    For more classes than a matrix can show; nothing of the size of one is made.
    """
    support, hits = (np.bincount(codes, minlength=len(names)) for codes in (truth, truth[truth == predicted]))
    wrong, counts = np.unique(np.stack([truth, predicted])[:, truth != predicted], axis=1, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:LISTED]
    pairs = [(int(i), int(j), int(count)) for (i, j), count in zip(wrong.T[most], counts[most], strict=True)]
    recall = hits / np.maximum(support, 1)
    weak = [int(code) for code in np.lexsort((-support, recall)) if hits[code] < support[code]][:LISTED]
    figure = _figure(10, 1.5 + 0.42 * max(len(pairs), len(weak), 3))
    left, right = figure.subplots(1, 2)
    _listed_bars(
        left,
        [f"{spelled(names[i], 26)} → {spelled(names[j], 26)}" for i, j, _ in pairs],
        [float(count) for *_, count in pairs],
        [f"{count} of {support[i]}" for i, _, count in pairs],
        heading="most confused: true → predicted, rows",
    )
    _listed_bars(
        right,
        [spelled(names[code]) for code in weak],
        [float(recall[code]) for code in weak],
        [f"{hits[code]} of {support[code]}" for code in weak],
        heading="recognized least: share of the class that is right",
        most=1.0,
    )
    return _finished(figure, title)


def _listed_bars(
    axes: Axes,
    labels: Sequence[str],
    values: Sequence[float],
    counts: Sequence[str],
    *,
    heading: str,
    most: float = 0.0,
) -> None:
    """Draw a bar for each of the `values` below its label, which so has the whole width; its count stands beside it."""
    axes.set_title(heading, loc="left")
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    axes.set_xticks([])
    if not labels:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes, color=GREY)
        return
    longest = max(most, *values)
    places = np.arange(len(labels), dtype=float)
    axes.barh(places + 0.22, longest, height=0.3, color="#eeeeee")
    axes.barh(places + 0.22, values, height=0.3, color=BLUE)
    for place, label, count in zip(places, labels, counts, strict=True):
        axes.text(0, place - 0.2, label, va="center", fontsize=SMALL)
        axes.text(1.02 * longest, place + 0.22, count, va="center", fontsize=SMALL, color=GREY)
    axes.set(xlim=(0, 1.25 * longest), ylim=(max(len(labels), 3) - 0.4, -0.6))


def predicted_against_true(
    truth: NDArray[Any],
    predicted: NDArray[Any],
    *,
    name: str,
    half_width: NDArray[np.float64] | float | None = None,
    coverage: float = 0.9,
    title: str = "",
) -> Figure:
    """Draw a point a row; points far from all others stand at the border, where they leave room for the others.

    The band, or the line through each point, is the prediction interval, which holds the share `coverage` of new rows.
    """
    figure = _figure(5.5, 5.7)
    axes = figure.add_subplot()
    low, high = near_limits(np.concatenate([truth, predicted]))
    margin = 0.04 * (high - low) or 1.0
    ends = np.array([low - margin, high + margin])
    if half_width is not None:
        band = f"{coverage:.0%} interval".replace("%", " %")
        half = np.broadcast_to(half_width, predicted.shape)
        if np.ptp(half) <= 1e-9 * np.max(half):
            axes.fill_between(ends, ends - half[0], ends + half[0], color=BLUE, alpha=0.12, linewidth=0, label=band)
        else:
            axes.vlines(truth, predicted - half, predicted + half, color=BLUE, alpha=0.12, label=band)
    axes.plot(ends, ends, color=GREY, linewidth=1, label="predicted = true")
    far = (np.minimum(truth, predicted) < low) | (np.maximum(truth, predicted) > high)
    axes.plot(truth[~far], predicted[~far], ".", color=BLUE, alpha=0.6)
    if far.any():
        label = f"{plural(int(far.sum()), 'row')} beyond the border: {np.min([truth, predicted]):.4g} to "
        label += f"{np.max([truth, predicted]):.4g}"
        at_border = [np.clip(values[far], ends[0], ends[1]) for values in (truth, predicted)]
        axes.plot(*at_border, "X", color=WRONG, markersize=8, clip_on=False, label=label)
    written = spelled(name, 24)
    axes.set(xlabel=f"true {written}", ylabel=f"predicted {written}", xlim=ends, ylim=ends)
    _legend_below(figure, axes)
    return _finished(figure, title)


def near_limits(values: NDArray[Any]) -> tuple[float, float]:
    """Return the least and the largest of the `values`, without those so far away that all others would be a spot.

    >>> near_limits(np.array([1.0, 2.0, 3.0, 4.0, 1e6]))
    (1.0, 4.0)
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = np.quantile(values, (0.25, 0.75))
    reach = FAR * (high - low)
    near = values[(values >= low - reach) & (values <= high + reach)]
    if np.ptp(values) <= 2 * np.ptp(near) or np.ptp(near) == 0:
        return float(values.min()), float(values.max())
    return float(near.min()), float(near.max())


def learning_curve(
    epochs: Sequence[Mapping[str, Any]], *, best: int | None = None, held_out: str = "val", title: str = ""
) -> Figure:
    """Draw one panel a measure, from entries such as {epoch, train_loss, val_loss, val_accuracy, ...}.

    `best` is the epoch that was kept. `held_out` says what rows the measures called val are of.
    """
    from matplotlib.ticker import MaxNLocator

    names = {key.split("_", 1)[1]: None for entry in epochs for key in entry if key.startswith(("train_", "val_"))}
    figure = _figure(4.2 * max(len(names), 1), 3.8)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), place)
        for which, label, colour, marker in (("train", "train", WRONG, "s"), ("val", held_out, BLUE, "o")):
            points = [(e["epoch"], e[f"{which}_{name}"]) for e in epochs if f"{which}_{name}" in e]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, label=label, marker=marker, markersize=3.5)
        if best is not None:
            axes.axvline(best, color=GREY, linewidth=1.2, linestyle=":", label=f"kept: epoch {best}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no epoch 0.5
        axes.set(xlabel="epoch", title=name)
        axes.grid(alpha=0.25)
        axes.legend()
    return _finished(figure, title)


def score_by_rows(points: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """Draw a score with its interval against the number of training rows, from {rows, accuracy or mae, low, high}."""
    measure = "accuracy" if "accuracy" in points[0] else "mae"
    rows, scores = [point["rows"] for point in points], [point[measure] for point in points]
    figure = _figure(5.2, 3.8)
    axes = figure.add_subplot()
    axes.plot(rows, scores, color=BLUE, marker="o", markersize=3.5)
    known = [point for point in points if point["low"] is not None]
    axes.fill_between(
        [point["rows"] for point in known],
        [point["low"] for point in known],
        [point["high"] for point in known],
        color=BLUE,
        alpha=0.2,
        label="95 % interval",
    )
    axes.set(xlabel="training rows", ylabel=measure)
    axes.grid(alpha=0.25)
    axes.legend()
    return _finished(figure, title)


def ranking(
    names: Sequence[str],
    scores: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    *,
    measure: str,
    chosen: str | None = None,
    title: str = "",
) -> Figure:
    """Draw heads from best to worst with their confidence intervals, the one that was `chosen` as a star."""
    figure = _figure(6.5, 1.4 + 0.4 * len(names))
    axes = figure.add_subplot()
    places = np.arange(len(names))[::-1]
    around = np.abs(np.array(intervals).T - np.array(scores))
    for place, name in enumerate(names):
        look: dict[str, Any] = {"fmt": "*", "color": WRONG, "markersize": 11} if name == chosen else {"color": BLUE}
        error = around[:, place : place + 1]
        axes.errorbar(scores[place], places[place], xerr=error, **{"fmt": "o", "capsize": 4, **look})
    axes.set_yticks(places, [f"{name} (chosen)" if name == chosen else name for name in names])
    axes.set(xlabel=measure, ylim=(-0.6, len(names) - 0.4))
    axes.grid(axis="x", alpha=0.3)
    return _finished(figure, title)


def bars(
    names: Sequence[str],
    scores: Sequence[float],
    intervals: Sequence[Sequence[float] | None],
    *,
    measure: str,
) -> Figure:
    """Draw a bar from zero for each name, in the order given, with its interval where there is one."""
    written = [spelled(name) for name in names]
    figure = _figure(max(7, 4.5 + _inches(written, STYLE["ytick.labelsize"])), 1.2 + 0.45 * len(names))
    axes = figure.add_subplot()
    places = list(range(len(names)))
    axes.barh(places, scores, color=COLOURS[0], alpha=0.6, height=0.6)
    ends = [score if between is None else between[1] for score, between in zip(scores, intervals, strict=True)]
    for place, score, between, end in zip(places, scores, intervals, ends, strict=True):
        if between is not None:
            axes.plot(between, [place, place], color="black", linewidth=1.5)
        axes.annotate(f"{score:.4g}", (end, place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, written)
    axes.set(xlabel=measure, xlim=(0, 1.15 * max(*ends, 1e-9)), ylim=(len(names) - 0.4, -0.6))
    return _finished(figure)


def histogram(values: Mapping[str, NDArray[np.float64]], *, name: str, title: str = "") -> Figure:
    """Draw how often numbers occur, a colour a class; of many classes the largest, the others as one in grey."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(6.5, 4)
    axes = figure.add_subplot()
    largest = sorted((key for key in values if len(values[key])), key=lambda key: -len(values[key]))
    listed, others = largest, list[str]()
    if len(largest) > len(COLOURS):
        listed, others = largest[: len(COLOURS) - 1], largest[len(COLOURS) - 1 :]
    drawn = {f"{spelled(key, 30)} ({len(values[key]):,})": values[key] for key in listed}
    if others:
        rest = np.concatenate([values[key] for key in others])
        drawn[f"{len(others)} other classes ({len(rest):,})"] = rest
    edges = np.histogram_bin_edges(np.concatenate(list(drawn.values())), bins=40)
    for place, (label, numbers) in enumerate(drawn.items()):
        colour = GREY if others and place == len(listed) else COLOURS[place]
        axes.hist(
            numbers, edges.tolist(), histtype="stepfilled", facecolor=(colour, 0.35), edgecolor=colour, label=label
        )
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=spelled(name), ylabel="images")
    if list(values) != [""]:
        _legend_below(figure, axes)
    return _finished(figure, title)


@dataclass(frozen=True)
class Tile:
    """An image with its caption: a `label` with a `note` beside it, and the `truth` below where that is another.

    `right` tells whether the label is, None where nobody asks.
    """

    image: Image.Image
    label: str = ""
    note: str = ""
    truth: str = ""
    right: bool | None = None


class NoImages(Exception):
    """None of the images that a plot would show can be read: there is no such plot."""


def grid(tiles: Sequence[Tile], *, columns: int = 4, title: str = "") -> Figure:
    """Draw images with a caption each, marked and framed by whether it is right. Raises `NoImages` without any."""
    from matplotlib.figure import Figure

    if not tiles:
        raise NoImages
    columns = min(columns, len(tiles))
    lines = max((2 if tile.truth else 1 if tile.label else 0) for tile in tiles)
    step = SIDE + GAP, SIDE + GAP + lines * LINE
    width = max(columns * step[0] + GAP, 330)
    above = 14 + 20 * len(textwrap.wrap(title, _line_length(width / DPI)))
    height = above + -(-len(tiles) // columns) * step[1]
    # No layout engine and no axes, which cost a second for as many images: one canvas holds all of them.
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    canvas = Image.new("RGB", (width, height), "white")
    captions = []
    for place, tile in enumerate(tiles):
        x, y = GAP + place % columns * step[0], above + place // columns * step[1]
        _paste(canvas, tile, x, y + lines * LINE)
        colour = "black" if tile.right is None else RIGHT if tile.right else WRONG
        mark = "" if tile.right is None else "✓ " if tile.right else "✗ "
        caption = f"{mark}{spelled(tile.label, 22)} {tile.note}".rstrip()
        truth = f"true: {spelled(tile.truth, 22)}" if tile.truth else ""
        for line, text in enumerate(one for one in (caption, truth) if one):
            at = x / width, 1 - (y + line * LINE) / height
            captions.append(figure.text(*at, text, va="top", fontsize=SMALL, color=colour if not line else "black"))
    figure.figimage(np.asarray(canvas))
    _finished(figure, title)
    _shrink(figure, captions, SIDE)
    return figure


def _paste(canvas: Image.Image, tile: Tile, x: int, y: int) -> None:
    """Put an image into its square, whole, with a frame in the colour of its mark."""
    small = ImageOps.contain(tile.image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    canvas.paste(small, (x + (SIDE - small.width) // 2, y + (SIDE - small.height) // 2))
    if tile.right is not None:
        ImageDraw.Draw(canvas).rectangle(
            (x, y, x + SIDE - 1, y + SIDE - 1), outline=RIGHT if tile.right else WRONG, width=3
        )


def _shrink(figure: Figure, texts: Iterable[Text], room: float) -> None:
    """Make texts smaller that are wider than `room` pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for text in texts:
        # Letters keep whole pixels: a text does not shrink as its size does.
        size = SMALL
        while (width := text.get_window_extent(renderer).width) > room:
            size *= min(0.97, room / width)
            text.set_fontsize(size)


def _line_length(width: float) -> int:
    """Return how many characters of a title fit into a `width` in inches."""
    return int(width / (CHARACTER * TITLE))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # half a second that most commands never need

    return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def _legend_below(figure: Figure, axes: Axes) -> None:
    """Put the legend below the axes, in two columns where its texts have the room."""
    widest = _inches(map(str, axes.get_legend_handles_labels()[1]), SMALL) + 0.6
    columns = 2 if 2 * widest < figure.get_figwidth() else 1
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)


def _inches(texts: Iterable[str], size: float) -> float:
    """Measure the widest of the `texts`, written in `size` points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=100)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    drawn = [figure.text(0, 0, text, fontsize=size) for text in texts]
    _plain(figure)
    return float(max(text.get_window_extent(renderer).width for text in drawn)) / 100


def _finished(figure: Figure, title: str = "") -> Figure:
    """Return the figure with its title, all of it as `_plain` makes it."""
    if title:
        lines = textwrap.fill(title, _line_length(figure.get_figwidth()))
        heading = figure.suptitle(lines, fontsize=TITLE)
        if figure.get_layout_engine() is None:  # which would put it at the border
            heading.set_y(1 - 0.08 / figure.get_figheight())
    return _plain(figure)


def _plain(figure: Figure) -> Figure:
    """Return the figure with every text as it stands, no formulas, in fonts that have its characters."""
    from matplotlib.text import Text

    family = list(_fonts(FONTS))
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_fontfamily(family)
    return figure


# --- characters


def spelled(name: str, longest: int = LONGEST_NAME) -> str:
    r"""Spell a name in characters that can be drawn: others as \u732b, and the middle of a long one left out.

    >>> spelled("tab\there")
    'tab\\there'
    """
    pieces = [character if _is_drawn(character) else _escaped(character) for character in name]
    room = longest - 1
    if sum(map(_width, pieces)) <= longest:
        return "".join(pieces)
    return _filled(pieces, room * 2 // 3) + "…" + _filled(pieces[::-1], room // 3, backwards=True)


def _filled(pieces: Sequence[str], room: int, *, backwards: bool = False) -> str:
    """Join as many pieces from the start as there is `room` for."""
    kept: list[str] = []
    for piece in pieces:
        room -= _width(piece)
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept[::-1] if backwards else kept)


def _width(text: str) -> int:
    """Count the widths of Latin letters that a text takes: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def undrawn(names: Iterable[str]) -> str:
    """Return the characters of `names` that no font here has, each once, but not those that no font could have."""
    return "".join(sorted({one for name in names for one in name if one.isprintable() and not _is_drawn(one)}))


def _is_drawn(character: str) -> bool:
    return character.isprintable() and any(font.get_char_index(ord(character)) for font in _fonts(FONTS).values())


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


@cache
def _fonts(names: tuple[str, ...]) -> dict[str, FT2Font]:
    """Load those of the fonts `names` that this machine has, in their order."""
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    return {name: font_manager.get_font(font_manager.findfont(name)) for name in names if name in known}


# --- files


@dataclass(frozen=True)
class Plot:
    """A drawn plot: the bytes of a PNG."""

    png: bytes

    def savefig(self, path: Path, /) -> None:
        """Write the PNG to `path`."""
        path.write_bytes(self.png)


@dataclass(frozen=True)
class Rendered:
    """Drawn plots by name, and notices on those that could not be drawn as they should be."""

    plots: dict[str, Plot] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def render(drawings: Mapping[str, Drawing], *, names: Iterable[str] = ()) -> Rendered:
    """Draw all plots before anything is saved: one that fails is a notice, never the loss of a model.

    `names` are the texts from outside that the plots show.
    """
    rendered = Rendered()
    try:
        missing = undrawn(names)
    except Exception as error:  # matplotlib cannot even be imported, as where its settings cannot be read
        log.debug("plots", exc_info=True)
        rendered.notices.append(f"plots could not be drawn and are left out ({_cause(error)})")
        return rendered
    if missing:
        rendered.notices.append(
            f"no font here has {plural(len(missing), 'character')} of the names ({_escaped(missing[0])}, ...): plots "
            "show them by number; install a font that has them, such as Noto Sans CJK"
        )
    for name, draw in drawings.items():
        try:
            rendered.plots[name] = Plot(png(draw))
        except NoImages:
            log.info("plots/%s.png is left out: none of its images can be read", name)
        except Exception as error:  # whatever it is that a library finds wrong with a plot
            log.debug("plots/%s.png", name, exc_info=True)
            rendered.notices.append(f"plots/{name}.png could not be drawn and is left out ({_cause(error)})")
    return rendered


def _cause(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def png(draw: Drawing) -> bytes:
    """Draw in the style of all plots."""
    file = io.BytesIO()
    with styled():
        draw().savefig(file, format="png")
    return file.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """Draw in one style on matplotlib's own defaults: its settings come from a file that may lie in this folder."""
    from matplotlib import rc_context, rcParamsDefault

    # All but the backend, which is no matter of taste, and not put back afterwards.
    defaults: Any = {name: value for name, value in dict.items(rcParamsDefault) if name != "backend"}
    with rc_context(defaults | STYLE):
        yield
