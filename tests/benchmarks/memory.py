"""Does the memory of an extraction grow with the number of images?

    python tests/benchmarks/memory.py --images 1000 20000

Makes small JPEGs, extracts them with the embedded base in a process of its own, and prints its largest resident set.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, count: int) -> None:
    """`count` different JPEGs of 32 x 32, a thousand a folder."""
    random = np.random.default_rng(13)
    for number in range(count):
        parent = folder / f"{number // 1000:03}"
        parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(parent / f"{number:06}.jpg")


def largest_resident_set(folder: Path, store: Path) -> tuple[float, float]:
    """MB at the peak and seconds of one `pipeline extract`."""
    command = [sys.executable, "-m", "pipeline", "extract", str(folder), "-o", str(store), "--quiet"]
    command += ["--base", "squeezenet1_1", "--weights", "embedded"]
    started = time.perf_counter()
    child = os.posix_spawn(sys.executable, command, os.environ)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"extract ended with status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024, time.perf_counter() - started


def main() -> None:
    """Print a line for each number of images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 20000])
    counts = parser.parse_args().images
    with tempfile.TemporaryDirectory() as place:
        for count in counts:
            folder = Path(place) / str(count)
            write_images(folder, count)
            peak, seconds = largest_resident_set(folder, Path(place) / f"{count}.h5")
            print(f"{count:>7} images  {peak:7.1f} MB  {count / seconds:6.1f} images/s", flush=True)


if __name__ == "__main__":
    main()
