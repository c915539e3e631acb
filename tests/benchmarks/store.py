"""How fast a feature file is read with its checksums, against plain h5py on the same file, in alternating pairs.

python tests/benchmarks/store.py --rows 100000 --width 512 --pairs 15
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cheap import recipe  # noqa: E402

from pipeline.sources import FileImage, Manifest, Record, Target  # noqa: E402
from pipeline.store import Environment, FeatureStore, LayerSpec, Source, StoreWriter  # noqa: E402


def write(path: Path, rows: int, width: int) -> tuple[float, float]:
    """A store of random features; seconds to write and to publish it."""
    image = path.with_name("image.jpg")
    image.write_bytes(b"image")
    records = [Record(index, f"class/{index:07}.jpg", FileImage(str(image)), "") for index in range(rows)]
    manifest = Manifest("bench", records, {"class": Target("class", np.arange(rows) % 2, ("a", "b"))})
    sources = [Source(5, image.stat().st_mtime_ns, index.to_bytes(32, "big")) for index in range(1, rows + 1)]
    random = np.random.default_rng(0)
    layers = [LayerSpec("avgpool", (width,))]
    with StoreWriter.open(path, manifest=manifest, layers=layers, recipe=recipe(), environment=Environment()) as writer:
        started = time.perf_counter()
        for start in range(0, rows, 256):
            stop = min(start + 256, rows)
            values = random.random((stop - start, width), np.float32)
            writer.write(np.arange(start, stop), {"avgpool": values}, sources[start:stop])
        written = time.perf_counter()
        writer.publish()
        return written - started, time.perf_counter() - written


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def read_plainly(path: Path) -> object:
    """All features, by h5py."""
    with h5py.File(path, "r") as file:
        return file["features/avgpool"][:]


def read_checked(path: Path) -> object:
    """All features, every block checked."""
    with FeatureStore.open(path) as store:
        return store.features("avgpool")


def main() -> None:
    """Print the ratio of the paired runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.h5"
        writing, publishing = write(path, options.rows, options.width)
        read_plainly(path), read_checked(path)
        pairs = [
            (seconds(lambda: read_plainly(path)), seconds(lambda: read_checked(path))) for _ in range(options.pairs)
        ]
        size = options.rows * options.width * 4 / 2**30
        plain, checked = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = sorted(plain / checked for plain, checked in pairs)
        with FeatureStore.open(path) as store:
            picks = np.random.default_rng(1).integers(0, options.rows, 1000)
            one = seconds(lambda: [store.features("avgpool", picks[[number]]) for number in range(1000)]) / 1000
    print(f"written {size / writing:.2f} GiB/s, published {size / publishing:.2f} GiB/s")
    print(f"read plainly {size / plain:.2f} GiB/s, checked {size / checked:.2f} GiB/s")
    print(f"checked against plain, median of {options.pairs} pairs: {statistics.median(ratios):.2f}")
    print(f"  from {ratios[0]:.2f} to {ratios[-1]:.2f}; one row at random: {one * 1e6:.0f} us")


if __name__ == "__main__":
    main()
