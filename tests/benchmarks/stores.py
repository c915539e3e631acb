"""Feature files of any size without images, for benchmarks."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from pipeline.config import Recipe
from pipeline.images.transform import InputTransform
from pipeline.sources import FileImage, Manifest, Record, Target
from pipeline.store import Environment, LayerSpec, Part, Source, StoreWriter

BLOCK = 4096


def write_store(path: Path, *, rows: int, dimensions: int, classes: int, parts: int = 1) -> Path:
    """Overlapping clouds, `rows` x `dimensions` float32, written block by block; every fifth row is in val.

    With several `parts`, `path` is a folder of as many files.
    """
    random = np.random.default_rng(0)
    y = random.integers(0, classes, rows)
    centres = random.normal(size=(classes, 64))
    mixing = random.normal(size=(64, dimensions)) / 8
    records = [
        Record(i, f"{i:07}.jpg", FileImage(f"{i:07}.jpg"), "val" if i % 5 == 0 else "train") for i in range(rows)
    ]
    names = tuple(f"class {code}" for code in range(classes))
    recipe = Recipe.plain(
        base="none",
        weights="none",
        layers=("avgpool",),
        pool="none",
        transform=InputTransform(resize=(256, 256), crop=(224, 224)).describe(),
        pixels=1,
    )
    whole = Manifest("clouds", records, {"class": Target("class", y, names)})
    ids = [record.id for record in records]
    for part in range(parts):
        first, last = rows * part // parts, rows * (part + 1) // parts
        file = path if parts == 1 else path / f"part-{part + 1}-of-{parts}.h5"
        with StoreWriter.open(
            file,
            manifest=whole.rows(first, last),
            layers=[LayerSpec("avgpool", (dimensions,), "float32")],
            recipe=recipe,
            environment=Environment(weights="none", seed=13),
            part=Part.of(ids, first, last),
        ) as writer:
            for start in range(first, last, BLOCK):
                which = np.arange(start, min(start + BLOCK, last))
                hidden = centres[y[which]] + random.normal(size=(len(which), 64)) * 2.5
                features = np.maximum(hidden @ mixing + 0.3 * random.normal(size=(len(which), dimensions)), 0)
                sources = [Source(1, 1, hashlib.sha256(str(row).encode()).digest()) for row in which]
                writer.write(which - first, {"avgpool": features.astype(np.float32)}, sources)
            writer.publish()
    return path
