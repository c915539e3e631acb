"""Images of a manifest as the batches of a training loop: shuffled, viewed, prepared while the step runs.

Every image is read once and kept decoded while there is room; past that it is read again each time. What a
view shows depends on the seed, the content of the file and the epoch alone: neither threads nor memory change
a number.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import pixels
from pipeline.augment import View, view_rng
from pipeline.errors import ImageError, SourceError
from pipeline.loading import load
from pipeline.manifest import Record
from pipeline.progress import Bar

Pixels = NDArray[np.uint8]
#: What of a decoded image is kept: all of it, or what the base sees.
Form = Callable[[Image.Image], Pixels]

#: Bytes of decoded images that are kept in memory.
ROOM = 2 * 2**30
#: Batches that are prepared ahead of the step.
AHEAD = 3


class Pictures:
    """The good ones among some records, uint8 (H, W, 3) by index; `bad` says what ails the others."""

    def __init__(self, records: Sequence[Record], form: Form, *, room: int = ROOM) -> None:
        self._records = {record.index: record for record in records}
        self._form = form
        self._room = room
        self._kept: dict[int, Pixels] = {}
        self.sha256: dict[int, bytes] = {}
        self.bad: dict[int, ImageError] = {}

    def read(self, bar: Bar, *, workers: int) -> None:
        """Look at every image once: which are bad, what their content is, and what fits in memory."""
        for batch in load(self._records.values(), self._shape, batch_size=16, workers=workers):
            for loaded in batch:
                if loaded.error is not None:
                    self.bad[loaded.index] = loaded.error
                elif loaded.pixels is not None and loaded.sha256 is not None:
                    self.sha256[loaded.index] = loaded.sha256
                    self._keep(loaded.index, loaded.pixels[0])
            bar.advance(len(batch))

    def __getitem__(self, index: int) -> Pixels:
        """One image; raises `SourceError` where its file is not what it was at the start."""
        kept = self._kept.get(index)
        return self._read_again(self._records[index]) if kept is None else kept

    def __len__(self) -> int:
        return len(self.sha256)

    def _shape(self, data: bytes, sha256: bytes) -> Pixels:
        return self._form(pixels.decode(data))[None]

    def _keep(self, index: int, image: Pixels) -> None:
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._kept[index] = image

    def _read_again(self, record: Record) -> Pixels:
        try:
            data = record.image.read(pixels.Limits().max_bytes)
        except ImageError as error:
            raise SourceError(f"{record.id} went away while the network was trained ({error})") from None
        if hashlib.sha256(data).digest() != self.sha256[record.index]:
            raise SourceError(f"{record.id} was changed while the network was trained; start again")
        return self._form(pixels.decode(data))


class Feeder:
    """Batches of pictures and their targets, prepared by `threads` ahead of the step that takes them.

    `targets` is by index: int64 codes or float32 numbers. Use as a context manager, so that the threads end.
    """

    def __init__(self, targets: NDArray[Any], *, batch_size: int, seed: int, threads: int) -> None:
        self._targets = targets
        self._batch_size = batch_size
        self._seed = seed
        self._threads = ThreadPoolExecutor(max(1, threads), thread_name_prefix="view")

    def __enter__(self) -> Feeder:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def epoch(self, pictures: Pictures, view: View, number: int) -> Iterator[tuple[Pixels, NDArray[Any]]]:
        """A shuffled pass of random views; order and views depend on the seed and the `number` alone."""
        order = np.random.default_rng([self._seed, number]).permutation(sorted(pictures.sha256))

        def draw(index: int) -> Pixels:
            rng = view_rng(self._seed, pictures.sha256[index], number)
            return np.asarray(view(Image.fromarray(pictures[index]), rng))

        return self._batches(groups(order, self._batch_size), draw)

    def plain(
        self, pictures: Pictures, form: Form, *, batch_size: int = 16
    ) -> Iterator[tuple[Pixels, NDArray[Any]]]:
        """A pass in the order of the indices, without chance."""

        def draw(index: int) -> Pixels:
            return form(Image.fromarray(pictures[index]))

        return self._batches(groups(np.array(sorted(pictures.sha256)), batch_size), draw)

    def _batches(
        self, parts: Iterable[NDArray[np.int64]], draw: Callable[[int], Pixels]
    ) -> Iterator[tuple[Pixels, NDArray[Any]]]:
        waiting: deque[tuple[NDArray[np.int64], list[Future[Pixels]]]] = deque()
        for part in parts:
            waiting.append((part, [self._threads.submit(draw, int(index)) for index in part]))
            if len(waiting) > AHEAD:
                yield self._stack(*waiting.popleft())
        while waiting:
            yield self._stack(*waiting.popleft())

    def _stack(
        self, part: NDArray[np.int64], futures: Sequence[Future[Pixels]]
    ) -> tuple[Pixels, NDArray[Any]]:
        return np.stack([future.result() for future in futures]), self._targets[part]


def groups(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Cut `order` into parts of `size`; a last one of a single row joins the part before it.

    Batch norm cannot learn from one row, and its gradient would count for as much as that of a whole batch.

    >>> [part.tolist() for part in groups(np.arange(5), 2)]
    [[0, 1], [2, 3, 4]]
    """
    starts = list(range(size, len(order), size))
    if starts and size > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    return np.split(order, starts)
