"""Images of a manifest as the batches of a training loop: shuffled, viewed, prepared while the step runs.

An image that was read is kept decoded while there is room; past that it is read again each time. What a
view shows depends on the seed, the content of the file and the epoch alone: neither threads nor memory change
a number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, NotRequired, Self, TypedDict, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import MAX_PIXELS
from pipeline.errors import ImageError, SourceError
from pipeline.files import digest_bytes
from pipeline.images import decoding
from pipeline.images.augment import View, view_rng
from pipeline.images.loading import load
from pipeline.images.transform import InputTransform
from pipeline.progress import Bar
from pipeline.sources import Record
from pipeline.training.processes import Team

Pixels = NDArray[np.uint8]
Indices = NDArray[np.int64]
#: Preprocessed images, uint8 (B, H, W, 3), or what passes a cut, (B, ...) for each place of it.
Inputs = Pixels | tuple[NDArray[Any], ...]
#: The inputs and their targets, (B,).
Batch = tuple[Inputs, NDArray[Any]]
Prepared = TypeVar("Prepared")

#: Bytes of pixels that are kept in memory.
ROOM = 2 * 2**30
#: Batches that are prepared ahead of the step.
AHEAD = 3


class Images:
    """The good images among some records, by their index; `bad` says what is wrong with the others.

    `whole` is the decoded image, `preprocessed` what the base sees of it: uint8 (H, W, 3) both.
    """

    def __init__(
        self, records: Sequence[Record], transform: InputTransform, *, room: int = ROOM, max_pixels: int = MAX_PIXELS
    ) -> None:
        self._records = {record.index: record for record in records}
        self._transform = transform
        self._room = room
        self._limits = decoding.Limits(max_pixels=max_pixels)
        self._whole: dict[int, Pixels] = {}
        self._preprocessed: dict[int, Pixels] = {}
        self._plain: set[int] = set()
        self._lock = Lock()
        self.sha256: dict[int, bytes] = {}
        self.bad: dict[int, ImageError] = {}

    def read(self, bar: Bar, *, workers: int) -> None:
        """Read every image once: list the bad ones, hash the others, and keep as many as there is room for."""
        for batch in load(self._records.values(), self._decode, batch_size=16, workers=workers):
            for loaded in batch:
                if loaded.error is not None:
                    self.bad[loaded.index] = loaded.error
                elif loaded.pixels is not None and loaded.sha256 is not None:
                    self.sha256[loaded.index] = loaded.sha256
                    self._keep(self._whole, loaded.index, loaded.pixels[0])
            bar.advance(len(batch))

    def know(self, sha256: Mapping[int, bytes], bad: Mapping[int, ImageError]) -> None:
        """Take over what is known of the images, in place of reading them."""
        self.sha256.update(sha256)
        self.bad.update(bad)

    def contents(self, indices: Indices) -> NDArray[np.uint8]:
        """sha256 (n, 32) of these images."""
        return np.frombuffer(b"".join(self.sha256[index] for index in indices.tolist()), np.uint8).reshape(-1, 32)

    def keep_preprocessed(self, indices: Indices, bar: Bar) -> None:
        """Keep of these images only what the base sees: nothing else of them is needed from now on.

        Those that are not held are left for when they are asked for.
        """
        self._plain.update(indices.tolist())
        for index in indices.tolist():
            held = self._whole.pop(index, None)
            if held is not None:
                with self._lock:
                    self._room += held.nbytes
                self._keep(self._preprocessed, index, self._transform.preprocess(Image.fromarray(held)))
            bar.advance()

    def whole(self, index: int) -> Pixels:
        """Return one decoded image, uint8 (H, W, 3). Raises `SourceError` where its file was changed or deleted."""
        kept = self._whole.get(index)
        if kept is None:
            kept = self._read_again(index)
            if index not in self._plain:
                self._keep(self._whole, index, kept)
        return kept

    def preprocessed(self, index: int) -> Pixels:
        """Return one image as the base sees it, uint8 (H, W, 3). Raises as `whole` does."""
        kept = self._preprocessed.get(index)
        if kept is None:
            kept = self._transform.preprocess(Image.fromarray(self.whole(index)))
            if index in self._plain:
                self._keep(self._preprocessed, index, kept)
        return kept

    def _decode(self, data: bytes, sha256: bytes) -> Pixels:
        return np.asarray(decoding.decode(data, self._limits, refuse=self._transform.refuse_thin))[None]

    def _keep(self, where: dict[int, Pixels], index: int, image: Pixels) -> None:
        with self._lock:
            if image.nbytes <= self._room and index not in where:
                self._room -= image.nbytes
                where[index] = image

    def _read_again(self, index: int) -> Pixels:
        record = self._records[index]
        try:
            data = record.image.read(decoding.Limits().max_bytes)
        except ImageError as error:
            raise SourceError(f"{record.id} was deleted during training ({error}); start again") from None
        if digest_bytes(data) != self.sha256[index]:
            raise SourceError(f"{record.id} was changed during training; start again")
        return np.asarray(decoding.decode(data, self._limits))


class Feeding(TypedDict):
    """Size of batches, seed of their order and views, threads that prepare them; the `team` shares each batch."""

    batch_size: int
    seed: int
    threads: int
    team: NotRequired[Team]


class Feeder:
    """Batches of images and their targets, prepared by `threads` ahead of the step that takes them.

    `targets` (N,) is by index: int64 codes or float32 numbers. A context manager: at its end the threads end.
    """

    def __init__(
        self,
        images: Images,
        targets: NDArray[Any],
        **feeding: Unpack[Feeding],
    ) -> None:
        self._team = feeding.get("team") or Team()
        self._images = images
        self._targets = targets
        self._batch_size = feeding["batch_size"]
        self._seed = feeding["seed"]
        self._threads = ThreadPoolExecutor(feeding["threads"], thread_name_prefix="view")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def random(self, indices: Indices, view: View, epoch: int, *, crops: bool) -> Iterator[Batch]:
        """Yield the batches of one epoch, shuffled, in random views.

        `view` is shown the whole image where it `crops`, else what the base sees. Order and views depend on the seed
        and the `epoch` alone.
        """
        read = self._random_view(view, epoch, crops)
        return self._batches(self._shares(indices, epoch), read)

    def first(
        self, indices: Indices, view: View, epoch: int, *, crops: bool, most: int
    ) -> Iterator[tuple[int, Pixels]]:
        """Yield index and pixels of the first images, `most` of them, of the first batch that `random` yields."""
        read = self._random_view(view, epoch, crops)
        for index in self._shuffled(indices, epoch)[0][:most].tolist():
            yield index, read(index)

    def _shuffled(self, indices: Indices, epoch: int) -> list[Indices]:
        return groups(np.random.default_rng([self._seed, epoch]).permutation(indices), self._batch_size)

    def _shares(self, indices: Indices, epoch: int) -> list[Indices]:
        """Return the rows of each batch of an epoch that are this process's."""
        return [self._team.share(part) for part in self._shuffled(indices, epoch)]

    def _random_view(self, view: View, epoch: int, crops: bool) -> Callable[[int], Pixels]:
        read = self._images.whole if crops else self._images.preprocessed

        def random_view(index: int) -> Pixels:
            rng = view_rng(self._seed, self._images.sha256[index], epoch)
            return np.asarray(view(Image.fromarray(read(index)), rng))

        return random_view

    def plain(self, indices: Indices, *, batch_size: int = 16, parted: bool = False) -> Iterator[Batch]:
        """Yield batches in the order of the indices, without chance; where they are `parted`, those of this process."""
        return self._batches(self._plain_parts(indices, batch_size, parted), self._images.preprocessed)

    def _plain_parts(self, indices: Indices, batch_size: int, parted: bool) -> list[Indices]:
        parts = groups(indices, batch_size)
        return parts[self._team.rank :: self._team.count] if parted else parts

    def _ahead(
        self, parts: Iterable[Indices], read: Callable[[Indices], Prepared]
    ) -> Iterator[tuple[Indices, Prepared]]:
        """Yield each part with what is read of it, read ahead of its use."""
        waiting: deque[tuple[Indices, Future[Prepared]]] = deque()
        for part in parts:
            waiting.append((part, self._threads.submit(read, part)))
            if len(waiting) > AHEAD:
                first, prepared = waiting.popleft()
                yield first, prepared.result()
        while waiting:
            first, prepared = waiting.popleft()
            yield first, prepared.result()

    def _batches(self, parts: Iterable[Indices], read: Callable[[int], Pixels]) -> Iterator[Batch]:
        waiting: deque[tuple[Indices, list[Future[Pixels]]]] = deque()
        for part in parts:
            waiting.append((part, [self._threads.submit(read, int(index)) for index in part]))
            if len(waiting) > AHEAD:
                yield self._stack(*waiting.popleft())
        while waiting:
            yield self._stack(*waiting.popleft())

    def _stack(self, part: Indices, futures: Sequence[Future[Pixels]]) -> Batch:
        return np.stack([future.result() for future in futures]) if len(part) else (), self._targets[part]


def groups(order: Indices, size: int) -> list[Indices]:
    """Cut `order` into parts of `size`; a last one of a single row joins the part before it.

    Batch norm cannot learn from one row, and its gradient would count for as much as that of a whole batch.

    >>> [part.tolist() for part in groups(np.arange(5), 2)]
    [[0, 1], [2, 3, 4]]
    """
    starts = list(range(size, len(order), size))
    if starts and size > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    return np.split(order, starts)
