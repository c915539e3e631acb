"""Loading: records to batches of pixels, in order, on threads, a bounded number of batches ahead.

Threads, not processes: Pillow decodes and resizes without holding Python's lock, pixels need no copy, and no worker
can die alone. A bad image is an entry with an error; it is never dropped and nothing takes its place.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.devices import CoreThreads
from pipeline.errors import ImageError, SourceError
from pipeline.images import decoding
from pipeline.sources import Record
from pipeline.text import shown

log = logging.getLogger(__name__)

#: A function of the bytes of an image file and their sha256 to its views, uint8 (V, H, W, 3); raises `ImageError`.
Preprocess = Callable[[bytes, bytes], NDArray[np.uint8]]

#: Batches being loaded while one is used: with one alone, threads would idle while its last image is decoded.
BATCHES_AHEAD = 2
#: Images a batch where it is more important to have the first soon than to have all a little sooner.
BATCH = 16


@dataclass
class Loaded:
    """One image: its `pixels` uint8 (V, H, W, 3), or its `error`, or neither for a `duplicate`."""

    index: int
    size: int = -1
    mtime_ns: int = -1
    sha256: bytes | None = None
    pixels: NDArray[np.uint8] | None = None
    error: ImageError | None = None
    duplicate: bool = False

    @property
    def is_good(self) -> bool:
        """True where it has pixels, or had them until its features were computed."""
        return self.error is None and not self.duplicate


@dataclass
class Timings:
    """Seconds that loading spent on its parts.

    `read` and `decode` are as if all threads did one thing at a time, `wait` is that of the one who asked for batches.
    """

    read: float = 0.0
    decode: float = 0.0
    wait: float = 0.0


@dataclass
class _Job:
    loaded: Loaded
    read: float
    decode: float


def load(
    records: Iterable[Record],
    preprocess: Preprocess,
    *,
    batch_size: int = BATCH,
    workers: int | Literal["auto"] = "auto",
    seen: Callable[[bytes], bool] | None = None,
    threads: CoreThreads | None = None,
    timings: Timings | None = None,
) -> Generator[list[Loaded], None, None]:
    """Yield batches of images in the order of `records`, loaded ahead of their use.

    `seen` is asked, on a loading thread, whether the content with this sha256 is known already; such an image is a
    duplicate and is not decoded. `threads` does the work, else `workers` threads of its own. `timings` is added to.
    An error that is no `ImageError` ends the iteration: it is a mistake of ours, not of an image.
    """
    timings = timings if timings is not None else Timings()
    waiting = iter(records)
    told: set[str] = set()
    with nullcontext(threads) if threads is not None else CoreThreads(workers) as crew:
        share = 1 / crew.count
        queue: deque[list[Future[_Job]]] = deque()

        def order_next() -> None:
            if part := list(islice(waiting, batch_size)):
                queue.append([crew.submit(_load, record, preprocess, seen) for record in part])

        try:
            for _ in range(BATCHES_AHEAD):
                order_next()
            while queue:
                batch = _collect(queue.popleft(), timings, share)
                order_next()
                _tell_missing_decoders(batch, told)
                yield batch
        finally:
            for future in (future for futures in queue for future in futures):
                future.cancel()


def _collect(futures: list[Future[_Job]], timings: Timings, share: float) -> list[Loaded]:
    started = time.perf_counter()
    try:
        jobs = [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
    timings.wait += time.perf_counter() - started
    timings.read += share * sum(job.read for job in jobs)
    timings.decode += share * sum(job.decode for job in jobs)
    return [job.loaded for job in jobs]


def _tell_missing_decoders(batch: Iterable[Loaded], told: set[str]) -> None:
    """Say once in a run what would let it read these images: their rows have a reason of one word."""
    lacks = {loaded.error.detail for loaded in batch if loaded.error} & set(decoding.MISSING_DECODERS.values())
    for detail in sorted(lacks - told):
        log.warning("some images cannot be read here: %s", detail)
    told |= lacks


def _load(record: Record, preprocess: Preprocess, seen: Callable[[bytes], bool] | None) -> _Job:
    job = _Job(Loaded(record.index), read=0.0, decode=0.0)
    loaded = job.loaded
    started = time.perf_counter()
    try:
        loaded.size, loaded.mtime_ns = record.image.stat()
        data = record.image.read(decoding.Limits().max_bytes)
        loaded.sha256 = hashlib.sha256(data).digest()
        job.read = time.perf_counter() - started
        if seen is not None and seen(loaded.sha256):
            loaded.duplicate = True
        else:
            with decoding.preprocessing():
                loaded.pixels = preprocess(data, loaded.sha256)
    except ImageError as error:
        loaded.error = error
    except MemoryError:
        loaded.error = decoding.short_of_memory()
    job.decode = time.perf_counter() - started - job.read
    return job


#: A handful of bad images never stops a run, however few images there are.
ALWAYS_TOLERATED = 10


def refuse_too_many_bad(bad: dict[str, str], rows: int, share: float, source: str, *, kept: str = "nothing") -> None:
    """Raise `SourceError` where no image is good, or more than a handful and `share` of all are bad.

    `kept` says what is left of the work where some are good.
    """
    if len(bad) < rows and len(bad) <= max(ALWAYS_TOLERATED, share * rows):
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(bad.values()).most_common())
    ways_out = "" if len(bad) == rows else f", or allow them with --max-bad 1; {kept} is kept"
    raise SourceError(
        f"{shown(source)}: {len(bad)} of {rows} images are bad ({reasons}; the first is {shown(next(iter(bad)))}); "
        f"fix or remove them and run the same command again{ways_out}"
    )
