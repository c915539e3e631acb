"""The loop of an extraction: rows that a feature file lacks, from images to their place in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.workers import Computer
from pipeline.images.loading import Loaded
from pipeline.progress import Bar
from pipeline.sources import Manifest
from pipeline.store.reuse import Source
from pipeline.store.writer import StoreWriter


class Extraction:
    """The loop of one extraction, and its counts: rows computed and adopted, seconds by stage."""

    def __init__(self, writer: StoreWriter, manifest: Manifest, computer: Computer, names: Sequence[str]) -> None:
        self._writer = writer
        self._records = manifest.records
        self._computer = computer
        self._names = names
        self._met: set[bytes] = set()
        self._met_lock = threading.Lock()
        self._copies: list[tuple[int, Source]] = []
        self.computed = 0
        self.adopted = 0
        self.failed = 0
        self._written = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage. Reading, decoding and forward passes share the cores: theirs are as if they took turns."""
        timings = self._computer.timings
        return {
            "read": timings.read,
            "decode": timings.decode,
            "forward": self._computer.seconds,
            "write": self._written,
            "wait": timings.wait,
        }

    def compute(self, pending: NDArray[np.int64], bar: Bar) -> None:
        """Give every pending row a final status, in batches."""
        for done in self._computer.run([self._records[row] for row in pending], seen=self._seen):
            good = done.good
            self._write(good, dict(zip(self._names, done.layers, strict=bool(good))))
            self._settle([loaded for loaded in done.images if not loaded.is_good])
            bar.advance(len(done))
        for index, source in self._copies:
            self._copy(index, source)

    def _seen(self, sha256: bytes) -> bool:
        """Return True where this content has, or will have, features without being shown to the base again."""
        with self._met_lock:
            if sha256 in self._met or self._writer.knows(sha256):
                return True
            self._met.add(sha256)
            return False

    def _write(self, batch: Sequence[Loaded], layers: dict[str, NDArray[np.float32]]) -> None:
        """Write the features of the images that could be read."""
        if not batch:
            return
        started = time.perf_counter()
        self._writer.write([loaded.index for loaded in batch], layers, [source_of(loaded) for loaded in batch])
        self._written += time.perf_counter() - started
        self.computed += len(batch)

    def _settle(self, batch: Sequence[Loaded]) -> None:
        """Settle images without pixels: bad ones get their reason, copies of others wait until those are done."""
        for loaded in batch:
            source = source_of(loaded)
            if loaded.error is None:
                self._copies.append((loaded.index, source))
            else:
                self.failed += 1
                self._writer.fail(loaded.index, loaded.error.reason, source)

    def _copy(self, index: int, source: Source) -> None:
        self._writer.adopt(index, source)
        self.adopted += 1


def source_of(loaded: Loaded) -> Source:
    """Return what a store keeps of the file that an image came from."""
    return Source(loaded.size, loaded.mtime_ns, loaded.sha256)
