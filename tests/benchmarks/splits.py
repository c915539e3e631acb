"""Does fine-tuning lose to the head that it came from? Test accuracy over random splits of photos, paired.

    python tests/benchmarks/splits.py PHOTOS... [--splits 20] [--epochs 5] [--minutes 60]

Each PHOTOS holds a folder a class, or train/ and val/ with such, which are put together. A split has 40 to 200 rows to
train on, 60 that judge the epochs, and the rest to test. The last two blocks of SqueezeNet are trained from the head
that was fitted on the same rows, plainly and with --beat-head.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.commands.extract import extract
from pipeline.commands.finetune import finetune
from pipeline.commands.fit_head import fit_head

BASE = {"base": "squeezenet1_1", "weights": "embedded"}
JUDGES = 60


def images_of(photos: Path) -> list[tuple[str, str]]:
    """Path and class of every photo."""
    found = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [(path.relative_to(photos).as_posix(), path.parent.name) for path in found]


def write_split(images: list[tuple[str, str]], path: Path, seed: int) -> int:
    """Write a table with a random split; return its number of training rows."""
    rng = np.random.default_rng(seed)
    train = int(rng.integers(40, 201))
    parts = ["train"] * train + ["val"] * JUDGES
    parts += ["test"] * (len(images) - len(parts))
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "class", "split"])
        for place, (image, name) in zip(rng.permutation(len(images)), images, strict=True):
            table.writerow([image, name, parts[place]])
    return train


def measure(photos: Path, folder: Path, seed: int, epochs: int) -> tuple[float, float, float, str]:
    """Test accuracies of the head, of the tuned network and of what --beat-head keeps, and the verdict's end."""
    table = folder / "split.csv"
    write_split(images_of(photos), table, seed)
    columns = {"image_root": photos, "image_column": "image", "target": ("class",), "split_column": "split"}
    extract(table, folder / "F.h5", **BASE, **columns)
    head = fit_head(folder / "F.h5", folder / "head", force=True, power="none", target="class")
    tuning = {"head": str(folder / "head"), "train": ("last:2",), "epochs": epochs, "augment": ("none",), **columns}
    plain = finetune(table, folder / "tuned", force=True, **tuning)
    kept = finetune(table, folder / "kept", force=True, beat_head=True, **tuning)
    assert kept.verdict is not None
    accuracies = [one.metrics["test"]["accuracy"] for one in (head, plain, kept)]
    return *accuracies, kept.verdict.kept


def report(name: str, found: list[tuple[float, float, float, str]]) -> None:
    """Print mean differences to the head, with standard errors, and how often they are below it."""
    for column, what in ((1, "plain"), (2, "--beat-head")):
        gains = [100 * (row[column] - row[0]) for row in found]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        print(
            f"{name}: {what} against its head {statistics.mean(gains):+.2f} points (standard error {error:.2f}, "
            f"{len(gains)} splits); below it in {sum(gain < 0 for gain in gains)}, above in {sum(g > 0 for g in gains)}"
        )
    print(f"{name}: kept {[row[3] for row in found]}", flush=True)


def main() -> None:
    """Print two lines for each set of photos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=60, help="after which no split is begun")
    given = parser.parse_args()
    logging.getLogger("pipeline").setLevel(logging.ERROR)
    end = time.monotonic() + 60 * given.minutes
    found: dict[Path, list[tuple[float, float, float, str]]] = {photos: [] for photos in given.photos}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("PIPELINE_CACHE", folder)
        for seed in range(given.splits):
            for photos, results in found.items():
                if time.monotonic() < end:
                    place = Path(folder) / photos.name
                    place.mkdir(exist_ok=True)
                    results.append(measure(photos, place, seed, given.epochs))
    for photos, results in found.items():
        report(photos.name, results)


if __name__ == "__main__":
    main()
