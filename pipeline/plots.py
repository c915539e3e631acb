"""Plots of a training: confusion matrix, predictions against truth, learning curve, ranking, a grid of images.

Figures are made without pyplot, so that nothing global is touched and no display is needed; `render` makes files of
them. Names come from the user's files and may hold anything: `spelled` puts them into characters that the fonts of this
machine have, and `_finished` sees to it that none of them is read as a formula.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.text import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font

log = logging.getLogger(__name__)

RIGHT, WRONG, BLUE, GREY = "#1b7837", "#b2182b", "#2166ac", "#888888"
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
#: Colours that those who see fewer of them tell apart (Okabe and Ito, 2008), of as many classes as a legend has.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b8a900", "#000000")
#: More classes than this and numbers in the cells cannot be read.
WRITTEN_CELLS = 20


def confusion(matrix: NDArray[np.int64], names: Sequence[str], *, title: str = "") -> Figure:
    """Draw counts (C, C) with the truth in rows; the shade is the share of the row."""
    classes = len(names)
    written = [spelled(name) for name in names]
    margin = 0.07 * max(map(len, written))
    side = min(2.5 + 0.45 * classes, 16)
    figure = _figure(side + 0.6 + margin, side + 0.7 * margin)
    axes = figure.add_subplot()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if classes <= WRITTEN_CELLS:
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    ticks = range(0, classes, 1 if classes <= 60 else classes // 30)
    axes.set_xticks(ticks, [written[i] for i in ticks], rotation=45, ha="right")
    axes.set_yticks(ticks, [written[i] for i in ticks])
    axes.set(xlabel="predicted", ylabel="true", title=title)
    return _finished(figure)


def predicted_against_true(
    truth: NDArray[Any],
    predicted: NDArray[Any],
    *,
    name: str,
    half_width: NDArray[np.float64] | float | None = None,
    coverage: float = 0.9,
    title: str = "",
) -> Figure:
    """Draw a point a row.

    The band, or the line through each point, is the prediction interval, which holds the share `coverage` of new rows.
    """
    figure = _figure(5.5, 5.5)
    axes = figure.add_subplot()
    both = np.concatenate([truth, predicted])
    ends = np.array([both.min(), both.max()], dtype=np.float64)
    if half_width is not None:
        band = f"{coverage:.0%} interval".replace("%", " %")
        half = np.broadcast_to(half_width, predicted.shape)
        if np.ptp(half) == 0:
            axes.fill_between(ends, ends - half[0], ends + half[0], color=BLUE, alpha=0.12, label=band)
        else:
            axes.vlines(truth, predicted - half, predicted + half, color=BLUE, alpha=0.12, label=band)
        axes.legend(loc="upper left")
    axes.plot(ends, ends, color=GREY, linewidth=1)
    axes.plot(truth, predicted, ".", color=BLUE, alpha=0.6)
    axes.set(xlabel=f"true {spelled(name)}", ylabel=f"predicted {spelled(name)}", title=title)
    return _finished(figure)


def learning_curve(epochs: Sequence[Mapping[str, Any]], *, best: int | None = None) -> Figure:
    """Draw one panel a measure, from entries such as {epoch, train_loss, val_loss, val_accuracy, ...}.

    `best` is the epoch that was kept.
    """
    from matplotlib.ticker import MaxNLocator

    names = {key.split("_", 1)[1]: None for entry in epochs for key in entry if key.startswith(("train_", "val_"))}
    figure = _figure(5 * max(len(names), 1), 3.6)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), place)
        for which, colour in (("train", GREY), ("val", BLUE)):
            points = [(e["epoch"], e[f"{which}_{name}"]) for e in epochs if f"{which}_{name}" in e]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, label=which, marker=".")
        if best is not None:
            axes.axvline(best, color=GREY, linewidth=1, linestyle=":", label=f"kept: epoch {best}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no epoch 0.5
        axes.set(xlabel="epoch", title=name)
        axes.legend()
    return _finished(figure)


def ranking(
    names: Sequence[str],
    scores: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    *,
    measure: str,
    chosen: str | None = None,
) -> Figure:
    """Draw heads from best to worst with their confidence intervals, the one that was `chosen` in green."""
    figure = _figure(6.5, 1.2 + 0.45 * len(names))
    axes = figure.add_subplot()
    places = np.arange(len(names))[::-1]
    around = np.abs(np.array(intervals).T - np.array(scores))
    for place, name in enumerate(names):
        colour = RIGHT if name == chosen else BLUE
        axes.errorbar(scores[place], places[place], xerr=around[:, place : place + 1], fmt="o", color=colour, capsize=4)
    axes.set_yticks(places, [f"{name} (chosen)" if name == chosen else name for name in names])
    axes.set(xlabel=measure, ylim=(-0.6, len(names) - 0.4))
    axes.grid(axis="x", alpha=0.3)
    return _finished(figure)


def bars(
    names: Sequence[str],
    scores: Sequence[float],
    intervals: Sequence[Sequence[float] | None],
    *,
    measure: str,
) -> Figure:
    """Draw a bar from zero for each name, in the order given, with its interval where there is one."""
    figure = _figure(7, 1.2 + 0.45 * len(names))
    axes = figure.add_subplot()
    places = list(range(len(names)))
    axes.barh(places, scores, color=COLOURS[0], alpha=0.6, height=0.6)
    ends = [score if between is None else between[1] for score, between in zip(scores, intervals, strict=True)]
    for place, score, between, end in zip(places, scores, intervals, ends, strict=True):
        if between is not None:
            axes.plot(between, [place, place], color="black", linewidth=1.5)
        axes.annotate(f"{score:.4g}", (end, place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [spelled(name) for name in names])
    axes.set(xlabel=measure, xlim=(0, 1.15 * max(*ends, 1e-9)), ylim=(len(names) - 0.4, -0.6))
    return _finished(figure)


def histogram(values: Mapping[str, NDArray[np.float64]], *, name: str, title: str = "") -> Figure:
    """Draw how often numbers occur, a colour a class; of many classes the largest, the others as one in grey."""
    figure = _figure(6.5, 4)
    axes = figure.add_subplot()
    largest = sorted((key for key in values if len(values[key])), key=lambda key: -len(values[key]))
    listed, others = largest, list[str]()
    if len(largest) > len(COLOURS):
        listed, others = largest[: len(COLOURS) - 1], largest[len(COLOURS) - 1 :]
    drawn = {f"{spelled(key)} ({len(values[key]):,})": values[key] for key in listed}
    if others:
        rest = np.concatenate([values[key] for key in others])
        drawn[f"{len(others)} other classes ({len(rest):,})"] = rest
    edges = np.histogram_bin_edges(np.concatenate(list(drawn.values())), bins=40)
    for place, (label, numbers) in enumerate(drawn.items()):
        colour = GREY if others and place == len(listed) else COLOURS[place]
        axes.hist(
            numbers, edges.tolist(), histtype="stepfilled", facecolor=(colour, 0.35), edgecolor=colour, label=label
        )
    axes.set(xlabel=spelled(name), ylabel="images", title=title)
    axes.legend()
    return _finished(figure)


def grid(images: Sequence[Image.Image], captions: Sequence[str], *, right: Sequence[bool], columns: int = 8) -> Figure:
    """Draw images with a caption each; green where `right`, red where not."""
    lines = -(-len(images) // columns)
    figure = _figure(1.5 * columns, 1.8 * max(lines, 1))
    for place, (image, caption, good) in enumerate(zip(images, captions, right, strict=True), start=1):
        axes: Axes = figure.add_subplot(lines, columns, place)
        axes.imshow(np.asarray(image.convert("RGB")))
        axes.set_title(spelled(caption), color=RIGHT if good else WRONG, fontsize=9)
        axes.set_axis_off()
    return _finished(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # half a second that most commands never need

    return Figure(figsize=(width, height), layout="constrained", dpi=110)


def _finished(figure: Figure) -> Figure:
    """Return the figure with every text as it stands, no formulas, in fonts that have its characters."""
    from matplotlib.text import Text

    family = list(_fonts(FONTS))
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_fontfamily(family)
    return figure


# --- characters


def spelled(name: str) -> str:
    r"""Spell a name in characters that can be drawn: others as \u732b, and the middle of a long one left out.

    >>> spelled("tab\there")
    'tab\\there'
    """
    pieces = [character if _is_drawn(character) else _escaped(character) for character in name]
    room = LONGEST_NAME - 1
    if sum(map(len, pieces)) <= LONGEST_NAME:
        return "".join(pieces)
    return _filled(pieces, room * 2 // 3) + "…" + _filled(pieces[::-1], room // 3, backwards=True)


def _filled(pieces: Sequence[str], room: int, *, backwards: bool = False) -> str:
    """Join as many pieces from the start as there is `room` for."""
    kept: list[str] = []
    for piece in pieces:
        room -= len(piece)
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept[::-1] if backwards else kept)


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
        except Exception as error:  # whatever it is that a library finds wrong with a plot
            log.debug("plots/%s.png", name, exc_info=True)
            rendered.notices.append(f"plots/{name}.png could not be drawn and is left out ({_cause(error)})")
    return rendered


def _cause(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def png(draw: Drawing) -> bytes:
    """Draw under matplotlib's own defaults: its settings come from a file that may lie in the current folder."""
    from matplotlib import rc_context, rcParamsDefault

    file = io.BytesIO()
    # All but the backend, which is no matter of taste, and not put back afterwards.
    defaults: Any = {name: value for name, value in dict.items(rcParamsDefault) if name != "backend"}
    with rc_context(defaults):
        draw().savefig(file, format="png")
    return file.getvalue()
