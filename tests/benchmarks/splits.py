"""Does fine-tuning lose to the head that it came from? Test accuracy over random splits of photos, paired.

    python tests/benchmarks/splits.py PHOTOS... [--base squeezenet1_1] [--weights embedded] [--splits 20] [--first 0]
        [--size 112] [--rows 40 200] [--plain 5] [--set lr=0.0001] [--minutes 60]

Each PHOTOS holds a folder a class, or train/ and val/ with such, which are put together. A split has 40 to 200 rows to
train on, 60 that judge the epochs, and at most 150 of the rest to test. On each the default recipe is run, which fits a
head; on the first `--plain` splits the tutorial's recipe too, which is plain fine-tuning. What the default recipe
keeps, it chose without the test rows: so its gain there says whether the choice was right.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.commands.finetune import Job, start_training
from pipeline.config import FinetuneSettings
from pipeline.training.line import Verdict
from pipeline.training.processes import Team

JUDGES, TESTED = 60, 150
COLUMNS: dict[str, Any] = {"image_column": "image", "target": ("class",), "split_column": "split"}


@dataclass(frozen=True)
class Found:
    """Test accuracies of one split, what was kept, and the interval of the verdict."""

    rows: int
    head: float
    default: float
    kept: str
    low: float
    high: float
    seconds: float
    plain: float | None
    plain_seconds: float

    @property
    def gain(self) -> float:
        """Points of the default recipe over its head."""
        return 100 * (self.default - self.head)


def images_of(photos: Path) -> list[tuple[str, str]]:
    """Path and class of every photo."""
    found = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [(path.relative_to(photos).as_posix(), path.parent.name) for path in found]


def write_split(images: list[tuple[str, str]], path: Path, seed: int, rows: tuple[int, int]) -> None:
    """Write a table with a random split."""
    rng = np.random.default_rng(seed)
    train = int(rng.integers(rows[0], rows[1] + 1))
    parts = ["train"] * train + ["val"] * JUDGES + ["test"] * TESTED
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "class", "split"])
        for place, (image, name) in zip(rng.permutation(len(images)), images, strict=True):
            if place < len(parts):
                table.writerow([image, name, parts[place]])


def tune(table: Path, options: dict[str, Any]) -> tuple[float, Verdict | None, int, float]:
    """Train as `finetune` does, without pictures and a folder; test accuracy, verdict, training rows and seconds."""
    started, alone = time.perf_counter(), Team()
    job = Job.of(table, FinetuneSettings.of(options))
    with ExitStack() as opened:
        training = start_training(job, job.choose_cut(alone, before=None), opened, alone, progress=False)
        history = training.run(saved=None, keep=None, progress=False)
        verdict = training.settle(history) if job.settings.beat_head else None
        parts = training.score(progress=False)
    return float(parts["test"].metrics["accuracy"]), verdict, len(parts["train"]), time.perf_counter() - started


def measure(
    photos: Path, folder: Path, seed: int, given: argparse.Namespace, settings: dict[str, Any], *, plain: bool
) -> Found:
    """Run one split."""
    table = folder / "split.csv"
    write_split(images_of(photos), table, seed, tuple(given.rows))
    options = {"base": given.base, "weights": given.weights, "image_root": photos, "device": "cpu", "size": given.size}
    accuracy, verdict, rows, seconds = tune(table, {**options, **COLUMNS, **settings})
    assert verdict is not None
    assert verdict.split == "test"
    tutorial = tune(table, {**options, **COLUMNS, "recipe": "tutorial"}) if plain else None
    return Found(
        rows=rows,
        head=accuracy - (0.0 if verdict.kept == "head" else verdict.gain),
        default=accuracy,
        kept=verdict.kept,
        low=verdict.low,
        high=verdict.high,
        seconds=seconds,
        plain=None if tutorial is None else tutorial[0],
        plain_seconds=0.0 if tutorial is None else tutorial[3],
    )


def report(name: str, found: list[Found]) -> None:
    """Print mean differences to the head, with standard errors, and how often they are below it."""
    plain = [100 * (one.plain - one.head) for one in found if one.plain is not None]
    for what, gains in (("default recipe", [one.gain for one in found]), ("tutorial's recipe", plain)):
        if not gains:
            continue
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        print(
            f"{name}: {what} against the head {statistics.mean(gains):+.2f} points (standard error {error:.2f}, 95 %: "
            f"{statistics.mean(gains) - 1.96 * error:+.2f} to {statistics.mean(gains) + 1.96 * error:+.2f}, "
            f"{len(gains)} splits); below it in {sum(gain < -1e-9 for gain in gains)}, "
            f"above in {sum(gain > 1e-9 for gain in gains)}"
        )
    kept = [one.gain for one in found if one.kept != "head"]
    print(
        f"{name}: something else than the head kept in {len(kept)} of {len(found)}, of which better on test rows in "
        f"{sum(gain > 1e-9 for gain in kept)}, worse in {sum(gain < -1e-9 for gain in kept)}",
        flush=True,
    )


def main() -> None:
    """Print a line for each split, and the means for each set of photos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--base", default="squeezenet1_1")
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="seed of the first split")
    parser.add_argument("--size", type=int, help="pixels of the input, which is the base's own where left out")
    parser.add_argument("--rows", type=int, nargs=2, default=[40, 200])
    parser.add_argument("--plain", type=int, default=5, help="splits on which the tutorial's recipe is run too")
    parser.add_argument("--set", action="append", default=[], help="SETTING=VALUE of the default recipe")
    parser.add_argument("--minutes", type=float, default=60, help="after which no split is begun")
    given = parser.parse_args()
    logging.getLogger("pipeline").setLevel(logging.ERROR)
    settings = dict(one.split("=", 1) for one in given.set)
    end = time.monotonic() + 60 * given.minutes
    found: dict[Path, list[Found]] = {photos: [] for photos in given.photos}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("PIPELINE_CACHE", folder)
        for number in range(given.splits):
            for photos, results in found.items():
                if time.monotonic() < end:
                    one = measure(
                        photos, Path(folder), given.first + number, given, settings, plain=number < given.plain
                    )
                    print(f"{photos}, seed {given.first + number}: {one}", flush=True)
                    results.append(one)
    for photos, results in found.items():
        if results:
            report(f"{given.base} on {photos}", results)


if __name__ == "__main__":
    main()
