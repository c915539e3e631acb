"""Pictures: what is written on them, whatever the names are, and that none of them costs a model."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from pipeline import plots
from pipeline.metrics import confusion

#: What folders may be called: formulas, whole and broken, control characters, bytes that are no text, other scripts.
NAMES = (
    "$x^$",
    "US$_per_$",
    "$5_ to $10",
    "a\\$b",
    "tab\there",
    "two\nlines",
    "bell\x07",
    "\udce9t\udce9",
    "猫",
    "🧪",
    "né",
)
MATRIX = np.arange(len(NAMES) ** 2).reshape(len(NAMES), -1)


@pytest.fixture
def latin_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The fonts of a machine that has none but the one that comes with matplotlib."""
    monkeypatch.setattr(plots, "FONTS", ("DejaVu Sans",))
    return


def drawn(figure: Figure) -> list[Text]:
    """The texts of a figure once it is drawn; a warning of the library is an error here."""
    figure.savefig(io.BytesIO())
    return [text for text in figure.findobj(Text) if text.get_text()]


def ticks(figure: Figure) -> list[str]:
    drawn(figure)
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


@pytest.mark.usefixtures("latin_only")
def test_names_stand_on_a_picture_as_they_are_or_escaped() -> None:
    figure = plots.confusion(MATRIX, NAMES)
    assert ticks(figure) == [
        *("$x^$", "US$_per_$", "$5_ to $10", "a\\$b", "tab\\there", "two\\nlines", "bell\\x07", "\\udce9t\\udce9"),
        *("\\u732b", "\\U0001f9ea", "né"),
    ]


@pytest.mark.usefixtures("latin_only")
@pytest.mark.parametrize("name", NAMES)
def test_no_text_of_any_plot_is_a_formula(name: str) -> None:
    numbers = np.arange(4.0)
    image = Image.new("RGB", (8, 8))
    for figure in (
        plots.confusion(np.eye(2, dtype=np.int64), (name, "b"), title="held-out rows"),
        plots.predicted_against_true(numbers, numbers, name=name, half_width=1.0, title="held-out rows"),
        plots.learning_curve([{"epoch": 0, "val_loss": 1.0}, {"epoch": 1, "val_loss": 0.5}], best=1),
        plots.ranking(["svm", "auto"], [0.9, 0.8], [(0.8, 1.0), (0.7, 0.9)], measure="accuracy", chosen="svm"),
        plots.grid([plots.Tile(image, name, "0.98", truth=name, right=False)], title="held-out rows"),
        plots.histogram({name: numbers}, name=name),
        plots.bars([name, "b"], [0.9, 0.8], [(0.8, 1.0), None], measure="accuracy"),
    ):
        texts = drawn(figure)
        assert texts
        assert not any(text.get_parse_math() for text in texts)


def test_characters_that_some_font_has_are_drawn_in_it() -> None:
    """Whichever fonts are here: no warning, and each character is either drawn or escaped."""
    for label, name in zip(ticks(plots.confusion(MATRIX, NAMES)), NAMES, strict=True):
        assert all(character in label or ascii(character)[1:-1] in label for character in name)


def test_a_fallback_font_takes_over_where_the_first_has_no_glyph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small font of TeX has no Cyrillic letters; the one after it has."""
    monkeypatch.setattr(plots, "FONTS", ("cmr10",))
    assert plots.spelled("Ж") == "\\u0416"
    monkeypatch.setattr(plots, "FONTS", ("cmr10", "no such font", "DejaVu Sans"))
    assert plots.spelled("Ж") == "Ж"
    figure = plots.confusion(np.eye(2, dtype=np.int64), ("Ж", "b"))
    assert ticks(figure) == ["Ж", "b"]
    assert figure.axes[0].get_xticklabels()[0].get_fontfamily() == ["cmr10", "DejaVu Sans"]


def test_a_long_name_leaves_room_for_the_picture() -> None:
    names = ("start" + "x" * 500 + "end", "y" * 300)
    figure = plots.confusion(np.eye(2, dtype=np.int64), names)
    label = ticks(figure)[0]
    assert len(label) <= plots.LONGEST_NAME
    assert label.startswith("startx")
    assert label.endswith("xend")
    assert figure.axes[0].get_position().width > 0.2


@pytest.mark.usefixtures("latin_only")
def test_escapes_are_not_cut_in_two() -> None:
    label = plots.spelled("猫" * 40)
    start, end = label.split("…")
    assert start == "\\u732b" * (len(start) // 6)
    assert end == "\\u732b" * (len(end) // 6)


@pytest.mark.usefixtures("latin_only")
def test_missing_characters_are_said_once() -> None:
    rendered = plots.render({"confusion": lambda: plots.confusion(MATRIX, NAMES)}, names=NAMES)
    assert list(rendered.plots) == ["confusion"]
    assert [notice[:40] for notice in rendered.notices] == ["no font here has 2 characters of the nam"]
    assert "Noto Sans CJK" in rendered.notices[0]
    assert plots.render({}, names=("né", "tab\there")).notices == []


def test_a_picture_that_fails_is_a_notice_with_its_reason(tmp_path: Path) -> None:
    def fails() -> Figure:
        raise RuntimeError("no room\nfor it")

    rendered = plots.render({"broken": fails, "confusion": lambda: plots.confusion(MATRIX, NAMES)})
    assert rendered.notices == ["plots/broken.png could not be drawn and is left out (RuntimeError: no room for it)"]
    rendered.plots["confusion"].savefig(tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.format == "PNG"


def test_epochs_are_whole_and_the_kept_one_is_in_the_legend() -> None:
    figure = plots.learning_curve([{"epoch": 0, "val_loss": 1.0}, {"epoch": 1, "val_loss": 0.5}], best=1)
    drawn(figure)
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [0, 1]
    assert "kept: epoch 1" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_chosen_head_is_marked() -> None:
    figure = plots.ranking(["svm", "blend"], [0.9, 0.89], [(0.8, 1.0), (0.7, 0.9)], measure="a", chosen="blend")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["svm", "blend (chosen)"]


DRAW = """
import sys
from pathlib import Path
from pipeline import plots
ranked = {"ranking": lambda: plots.ranking(["a", "b"], [0.5, 0.4], [(0.4, 0.6), (0.3, 0.5)], measure="m")}
drawn = plots.render(ranked, names=["a", "b"])
print(drawn.notices)
for picture in drawn.plots.values():
    picture.savefig(Path(sys.argv[1]))
"""


def drawn_in(folder: Path, settings: bytes | None) -> tuple[str, bytes | None]:
    folder.mkdir()
    if settings is not None:
        (folder / "matplotlibrc").write_bytes(settings)
    path = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRAW, "ranking.png"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    picture = folder / "ranking.png"
    return done.stdout.strip(), picture.read_bytes() if picture.exists() else None


def test_settings_in_the_current_folder_change_no_picture(tmp_path: Path) -> None:
    planted = b"text.usetex: True\nfigure.facecolor: red\naxes.nonsense: 3\nno setting at all\n"
    assert drawn_in(tmp_path / "planted", planted) == drawn_in(tmp_path / "clean", None)


def test_settings_that_cannot_be_read_cost_the_pictures_alone(tmp_path: Path) -> None:
    notices, picture = drawn_in(tmp_path / "planted", b"\xff\xfe\x00")
    assert "plots could not be drawn and are left out" in notices
    assert picture is None


def test_a_histogram_names_the_largest_classes_and_counts_the_others() -> None:
    values = {f"class {number}": np.full(number + 1, float(number)) for number in range(200)}
    figure = plots.histogram(values, name="length")
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[0] == "class 199 (200)"
    assert names[-1] == "193 other classes (18,721)"
    assert len(names) == 8


# --- what a reader can read


def shown_texts(figure: Figure) -> list[Text]:
    """Texts that are drawn: not the labels of ticks that lie outside of the axes."""
    texts, hidden = drawn(figure), set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    return [text for text in texts if text.get_visible() and text not in hidden]


def assert_readable(figure: Figure) -> None:
    """No text lies on another one, none is cut off at the border, and none is tiny."""
    texts = [(text.get_text(), text.get_window_extent(), text) for text in shown_texts(figure)]
    assert texts
    for name, box, text in texts:
        assert text.get_fontsize() >= 4, name
        assert min(box.x0, box.y0) >= 0, name
        assert box.x1 <= figure.bbox.x1, name
        assert box.y1 <= figure.bbox.y1, name
    for (one, first, _), (other, second, _) in combinations(texts, 2):
        wide = min(first.x1, second.x1) - max(first.x0, second.x0)
        high = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert wide <= 1 or high <= 2, f"{one!r} lies on {other!r}"  # boxes hold more than the ink


LONG = "a name that is as long as those of some folders of photos are {:02}"
NAMINGS: dict[str, Callable[[int], str]] = {
    "short": "class {}".format,
    "long": LONG.format,
    "wide": ("W" * 57 + "{:03}").format,
    "chinese": "大象老虎狮子熊猫长颈鹿河马犀牛{}".format,
    "emoji": "🧪 lab {}".format,
}


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("classes", [2, 10, 200])
def test_a_confusion_matrix_can_be_read(classes: int, naming: str) -> None:
    generator = np.random.default_rng(5)
    truth = generator.integers(0, classes, 20 * classes)
    said = np.where(generator.random(len(truth)) < 0.8, truth, (truth + 1) % classes)
    names = [NAMINGS[naming](number) for number in range(classes)]
    title = "held-out rows: 80.1% of 4,000 rows right"
    with plots.styled():
        if classes > plots.MOST_CELLS:
            figure = plots.most_confused(truth, said, names, title=title)
        else:
            figure = plots.confusion(confusion(truth, said, classes), names, title=title)
        assert_readable(figure)
    assert 300 < figure.bbox.width < 2500
    assert 200 < figure.bbox.height < 2500
    assert figure.axes[0].get_position().width > 0.2


def test_zeros_do_not_hide_the_mistakes() -> None:
    figure = plots.confusion(np.array([[5, 0, 0], [0, 0, 2], [0, 0, 7]]), ("a", "b", "c"))
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["0", "2", "5", "7"]


def test_many_classes_are_shown_by_the_pairs_that_are_confused_most() -> None:
    truth = np.repeat(np.arange(250), 20)
    said = truth.copy()
    said[140:152], said[2000:2005] = 9, 3
    figure = plots.most_confused(truth, said, [f"kind {number}" for number in range(250)])
    pairs, classes = ([text.get_text() for text in axes.texts] for axes in figure.axes)
    assert pairs == ["kind 7 → kind 9", "12 of 20", "kind 100 → kind 3", "5 of 20"]
    assert classes == ["kind 7", "8 of 20", "kind 100", "15 of 20"]


@pytest.mark.parametrize("varies", [False, True])
def test_outliers_stand_at_the_border_and_leave_room_for_the_others(*, varies: bool) -> None:
    truth = np.random.default_rng(1).normal(100, 10, 200)
    said = truth + 5
    truth[3], said[8] = 1e6, -1e4
    half = np.linspace(4, 9, 200) if varies else 7.0
    with plots.styled():
        figure = plots.predicted_against_true(truth, said, name="length", half_width=half, title="R2 0.8 (200 rows)")
        assert_readable(figure)
    axes = figure.axes[0]
    assert 60 < axes.get_xlim()[0] < axes.get_xlim()[1] < 150
    (far,) = [line for line in axes.lines if line.get_marker() == "X"]
    assert far.get_xydata().shape == (2, 2)
    assert "2 rows beyond the border: -1e+04 to 1e+06" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_without_outliers_the_axes_hold_every_row() -> None:
    truth = np.random.default_rng(1).exponential(10, 500)
    low, high = plots.near_limits(truth)
    assert (low, high) == (truth.min(), truth.max())


def test_curves_and_rankings_can_be_read() -> None:
    epochs = [
        {"epoch": number, "train_loss": 1.0, "val_loss": 1 / number, "train_accuracy": 0.5, "val_accuracy": 0.75}
        for number in range(1, 41)
    ]
    heads = [*("svm", "linear", "ridge", "binned"), "blend", "auto"]
    with plots.styled():
        curve = plots.learning_curve(epochs, best=40, held_out="out of fold", title="kept: epoch 40 of 40")
        assert_readable(curve)
        assert_readable(
            plots.ranking(heads, [0.5] * 6, [(0.4, 0.6)] * 6, measure="accuracy", chosen="blend", title="on 90 rows")
        )
    for axes in curve.axes:
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == ["train", "out of fold", "kept: epoch 40"]


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_histogram_can_be_read(naming: str) -> None:
    values = {NAMINGS[naming](number): np.arange(50.0) + number for number in range(12)}
    with plots.styled():
        assert_readable(plots.histogram(values, name="length", title="length of 600 images"))


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("models", [2, 10])
def test_bars_can_be_read(models: int, naming: str) -> None:
    names, scores = [NAMINGS[naming](number) for number in range(models)], np.linspace(0.5, 1, models)
    between = [None if number == 1 else (score - 0.05, min(1, score + 0.03)) for number, score in enumerate(scores)]
    with plots.styled():
        figure = plots.bars(names, list(scores), between, measure="accuracy of held-out rows")
        assert_readable(figure)
    assert figure.axes[0].get_position().width > 0.3


@pytest.mark.parametrize("naming", NAMINGS)
def test_predictions_of_a_long_name_can_be_read(naming: str) -> None:
    truth = np.random.default_rng(1).normal(100, 10, 50)
    with plots.styled():
        assert_readable(
            plots.predicted_against_true(truth, truth + 3, name=NAMINGS[naming](7), half_width=9.0, title="R2 0.8")
        )


def test_scores_by_rows_can_be_read() -> None:
    points = [
        {"rows": rows, "accuracy": 0.5 + rows / 1e4, "low": None if rows < 99 else 0.4, "high": 0.99}
        for rows in (24, 48, 99, 2400)
    ]
    with plots.styled():
        assert_readable(plots.score_by_rows(points, title="a ridge head"))


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("count", [1, 3, 16])
def test_a_grid_can_be_read(count: int, naming: str) -> None:
    tiles = [
        plots.Tile(
            Image.new("RGB", (40 + 9 * number, 60), "red"), NAMINGS[naming](number), "0.98", "other", right=False
        )
        for number in range(count)
    ]
    title = "held-out rows: 4,000 of 12,000 rows wrong, the surest mistakes first"
    with plots.styled():
        figure = plots.grid(tiles, title=title)
        assert_readable(figure)
        captions = [text for text in figure.texts if text is not figure._suptitle]
        assert all(text.get_window_extent().width <= plots.SIDE for text in captions)
        assert_readable(plots.grid(tiles[:1]))
    assert captions[0].get_text().startswith("✗ ")
    assert captions[1].get_text() == "true: other"


def test_an_image_stands_whole_in_its_square_with_a_frame_that_says_whether_it_is_right() -> None:
    tile = plots.Tile(Image.new("RGB", (20, 10), "lime"), "ant", right=True)
    with Image.open(io.BytesIO(plots.png(lambda: plots.grid([tile, plots.Tile(Image.new("RGB", (9, 9)))])))) as found:
        pixels = np.asarray(found.convert("RGB"))
    green = np.argwhere((pixels == (0, 255, 0)).all(axis=2))
    height, width = np.ptp(green, axis=0) + 1
    assert width / height == pytest.approx(2, rel=0.1)
    assert ((pixels == (0, 0x72, 0xB2)).all(axis=2)).sum() > 4 * plots.SIDE


def test_a_grid_of_no_image_is_no_plot_and_no_notice() -> None:
    rendered = plots.render({"predictions": lambda: plots.grid([])})
    assert (rendered.plots, rendered.notices) == ({}, [])


def test_every_drawing_is_held_to_be_readable() -> None:
    """A drawing that is added needs such a test too."""
    drawings = {
        name for name, made in vars(plots).items() if getattr(made, "__annotations__", {}).get("return") == "Figure"
    }
    public = {name for name in drawings if not name.startswith("_")}
    source = Path(__file__).read_text().partition("# --- what a reader can read")[2]
    assert len(public) == 9
    assert [name for name in sorted(public) if f"plots.{name}(" not in source] == []
