"""Near-twins planted among photographs: how many are found, and what they do to a score with labels drawn at random.

    python tests/benchmarks/twins.py FOLDER [--base NAME --weights WEIGHTS] [--count 20] [--repeats 20]

Each of `count` photographs gets a copy: a quarter of them at 80 % of the size, a quarter without a twentieth of the
border, a quarter as JPEG of quality 50, a quarter mirrored. Recall and precision are those of the pairs found, over
`repeats` choices of the photographs. Then every photograph has all four copies, its label is drawn at random, and the
accuracy out of fold, which is 0.5 in truth, is told without groups and with near-twins in groups.

Beside it stands a threshold from the copies of 40 other photographs: the largest distance that 99 % of them are within,
or all of them. It is no better: so few copies tell their largest distance badly, and features alone say it as well.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from pipeline import FeatureStore, extract
from pipeline.config import FitSettings
from pipeline.heads.contract import Problem
from pipeline.heads.linear import LinearHead
from pipeline.heads.rows import ArrayRows
from pipeline.heads.twins import Twins, Units

#: Photographs whose copies say how far copies are.
CALIBRATED = 40


class Table:
    """Features (n, D) in memory, as a table of features gives them."""

    def __init__(self, features: Any) -> None:
        self.dimensions = features.shape[1]
        self.widths = (self.dimensions,)
        self._features = features

    def images(self, rows: Any) -> Any:
        """Features (m, 1, D) of some rows."""
        return self._features[rows][:, None]


def copies(photo: Path) -> dict[str, tuple[Image.Image, int]]:
    """The four copies of a photograph, and the quality that they are saved with."""
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    width, height = image.size
    edges = (round(0.025 * width), round(0.025 * height), round(0.975 * width), round(0.975 * height))
    smaller = image.resize((round(0.8 * width), round(0.8 * height)), Image.Resampling.BICUBIC)
    return {
        "scaled": (smaller, 92),
        "cropped": (image.crop(edges), 92),
        "jpeg": (image, 50),
        "mirrored": (ImageOps.mirror(image), 92),
    }


def features_of(photos: list[Path], folder: Path, options: dict[str, Any]) -> Any:
    """Features (5, n, D) of the photographs and their four copies."""
    for number, photo in enumerate(photos):
        for kind, (image, quality) in {**copies(photo), "asis": (Image.open(photo), 0)}.items():
            place = folder / "images" / kind / f"{number:05}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            if quality:
                image.save(place, quality=quality)
            else:
                place.write_bytes(photo.read_bytes())
    store = FeatureStore.open(extract(folder / "images", folder / "f.h5", **options).store)
    # Rows are in the order of the folders' names, and "asis" comes first.
    return store.features(next(iter(store.layers))).reshape(5, len(photos), -1)


def planted(features: Any, *, count: int, seed: int, share: float | None = None) -> tuple[float, float]:
    """Recall and precision among the photographs with `count` copies; with `share`, by the threshold from 40 others."""
    originals = features[0]
    drawn = np.random.default_rng(seed).permutation(len(originals))
    which, others = drawn[:count], drawn[count : count + CALIBRATED]
    added = features[1 + np.arange(count) % 4, which]
    table: Any = Table(np.concatenate([originals, added]))
    rows = np.arange(len(originals) + count)
    found = Twins.among(table, rows, seed=seed).pairs
    if share is not None:
        limit = np.quantile(copied(features, others), share)
        found = np.concatenate([pairs for pairs, _ in Units.of(table, rows).pairs_within(limit)])
    truth = {(int(row), len(originals) + place) for place, row in enumerate(which)}
    pairs = set(map(tuple, found.tolist()))
    return len(pairs & truth) / count, len(pairs & truth) / max(len(pairs), 1)


def copied(features: Any, which: Any) -> Any:
    """Distances (4, m) of some photographs from their copies."""
    units = Units.of(Table(features[0]), np.arange(len(features[0])))  # type: ignore[arg-type]
    vectors = (features[:, which] - units.mean) * units.scale
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return 1 - (vectors[0] * vectors[1:]).sum(axis=2)


def random_labels(features: Any, *, seed: int) -> tuple[float, float]:
    """Out-of-fold accuracies of a linear head on photographs with their copies: plain, and with twins grouped."""
    rows = features.transpose(1, 0, 2).reshape(-1, features.shape[2])
    y = np.repeat(np.random.default_rng(seed).integers(0, 2, features.shape[1]), 5)
    twins = Twins.among(Table(rows), np.arange(len(rows)), seed=seed)  # type: ignore[arg-type]
    accuracies = []
    for groups in (np.arange(len(rows)), twins.groups(len(rows))):
        problem = Problem(ArrayRows(rows), y, np.ones(len(y)), groups, classes=2)
        head = LinearHead("classes", FitSettings.of({"power": "none", "seed": seed})).fit(problem)
        accuracies.append(float((np.asarray(head.search.scores).argmax(axis=1) == y).mean()))
    return accuracies[0], accuracies[1]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="squeezenet1_1")
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=20)
    asked = parser.parse_args()
    photos = sorted(asked.folder.rglob("*.jpg"))
    with tempfile.TemporaryDirectory() as folder:
        features = features_of(photos, Path(folder), {"base": asked.base, "weights": asked.weights})
    print(f"{len(photos)} photographs, {asked.count} copies, {asked.repeats} draws of them")
    for share, how in ((None, "by the features"), (0.99, "by 99 % of other copies"), (1.0, "by all other copies")):
        draws = range(asked.repeats)
        found = np.array([planted(features, count=asked.count, seed=seed, share=share) for seed in draws])
        recall, precision = found.mean(axis=0)
        print(f"threshold {how}: recall {recall:.3f}, the least {found[:, 0].min():.2f}; precision {precision:.3f}")
    scores = np.array([random_labels(features, seed=seed) for seed in range(5)])
    plain, grouped = scores.mean(axis=0)
    print(
        f"random labels, each photograph with four copies: accuracy {plain:.3f} plain, {grouped:.3f} with twins grouped"
    )
    noise = np.random.default_rng(0).normal(size=(5000, 512)).astype(np.float32)
    started = time.perf_counter()
    Twins.among(Table(noise), np.arange(5000), seed=0)  # type: ignore[arg-type]
    print(f"5,000 x 512: {time.perf_counter() - started:.2f} s")


if __name__ == "__main__":
    main()
