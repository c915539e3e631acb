"""The whole journey on data that is at hand everywhere: the handwritten digits that ship with scikit-learn."""

from __future__ import annotations

import csv
import io
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import plots
from pipeline.commands.extract import extract
from pipeline.commands.fit_head import fit_head
from pipeline.commands.predict import predict
from pipeline.commands.results import Result
from pipeline.files import create, refuse_nul, remove
from pipeline.models.predictions import write_rows

HELD_OUT = 0.25
#: Digits are 8 x 8 with 17 grey levels; drawn this large, with a margin, they survive the base's centre crop.
SIDE, MARGIN = 48, 8
SHOWN = 24


@dataclass
class DemoResult(Result):
    """Folder and metrics of the demo; `seconds` is the whole of it."""

    folder: Path
    images: int
    metrics: dict[str, dict[str, float]]
    seconds: float = field(metadata={"digits": 1})

    def summary(self) -> str:
        """Summarise the folder and the metrics, and name the commands that do it on the reader's own images."""
        lines = [f"{self.images} images of digits in {self.seconds:.0f} s, all in {self.folder}:"]
        for head, found in self.metrics.items():
            lines.append(f"  {head:<10} " + "  ".join(f"{name} {value:.3f}" for name, value in found.items()))
        return "\n".join(
            [
                *lines,
                "",
                "The same with a folder of your own, one folder a class:",
                "  pipeline extract photos/ -o artifacts/photos.h5 --base squeezenet1_1 --weights embedded",
                "  pipeline fit-head artifacts/photos.h5 --head linear -o artifacts/photos-linear",
                "  pipeline predict artifacts/photos-linear new.jpg",
            ]
        )


def demo(output: str | Path, *, progress: bool = False) -> DemoResult:
    """Write the digits as image files under `output`, extract, train three heads, predict, draw. Needs no network."""
    started = time.perf_counter()
    refuse_nul(output)
    folder = Path(output)
    table = write_digits(folder / "digits")
    store = extract(
        table,
        folder / "digits.h5",
        base="squeezenet1_1",
        weights="embedded",
        target=("digit", "ink"),
        progress=progress,
    ).store
    found: dict[str, dict[str, float]] = {}
    for head, target, shown in (
        ("linear", "digit", ("accuracy",)),
        ("svm", "digit", ("accuracy",)),
        ("ridge", "ink", ("mae", "r2")),
    ):
        result = fit_head(store, folder / head, head=head, target=target, force=True, progress=progress)
        held_out = result.metrics["val"]
        found[head] = {name: held_out[name] for name in shown}
    _replace(folder / "confusion.png", (folder / "linear" / "plots" / "confusion.png").read_bytes())
    draw_predictions(folder / "linear", table, folder / "predictions.png")
    return DemoResult(folder, count_rows(table), found, time.perf_counter() - started)


def write_digits(folder: Path) -> Path:
    """Write 1,797 PNGs and a table with columns image, digit, ink (share of the paper covered) and split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    held_out = np.random.default_rng(13).random(len(digits.images)) < HELD_OUT
    table = folder / "digits.csv"
    rows = []
    for number, (image, digit, val) in enumerate(zip(digits.images, digits.target, held_out, strict=True)):
        name, ink = f"{number:04d}.png", f"{image.mean() / 16:.4f}"
        png = io.BytesIO()
        draw_digit(image).save(png, "PNG")
        _replace(folder / name, png.getvalue())
        rows.append({"image": name, "digit": int(digit), "ink": ink, "split": "val" if val else "train"})
    remove(table)  # which may be a link, too
    write_rows(table, rows)
    return table


def _replace(path: Path, content: bytes) -> None:
    """Write a file in the place of whatever is there; a link that somebody planted is not followed."""
    with os.fdopen(create(path), "wb") as file:
        file.write(content)


def draw_digit(levels: NDArray[np.float64]) -> Image.Image:
    """Draw black ink on white paper from an (8, 8) array of 0 to 16."""
    small = Image.fromarray((255 - levels * 255 / 16).astype(np.uint8))
    paper = Image.new("L", (SIDE + 2 * MARGIN, SIDE + 2 * MARGIN), 255)
    paper.paste(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (MARGIN, MARGIN))
    return paper


def draw_predictions(model: Path, table: Path, image: Path) -> None:
    """Draw a grid of held-out digits with the answer of `model` for each into the file `image`."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"][:SHOWN]
    files = [table.parent / row["image"] for row in rows]
    answers = predict(model, files, top=1).predictions
    tiles = [
        plots.Tile(
            Image.open(file),
            answer["label"],
            f"{answer['score']:.2f}",
            truth="" if answer["label"] == row["digit"] else row["digit"],
            right=answer["label"] == row["digit"],
        )
        for file, answer, row in zip(files, answers, rows, strict=True)
    ]
    drawn = plots.png(lambda: plots.grid(tiles, columns=6))
    _replace(image, drawn)


def count_rows(table: Path) -> int:
    """Count the rows of a CSV below its header."""
    with table.open(newline="", encoding="utf-8") as file:
        return sum(1 for _ in csv.DictReader(file))
