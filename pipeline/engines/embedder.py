"""Images to features by a recipe, on one device: read and decoded on the cores' threads while the base computes.

records --load--> batches of pixels --engine--> batches of features
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe, RunSettings
from pipeline.devices import CoreThreads
from pipeline.engines import forward, make_engine
from pipeline.errors import ImageError
from pipeline.images.loading import Loaded, Timings, load
from pipeline.images.preprocess import make_preprocess
from pipeline.images.transform import InputTransform
from pipeline.sources import Record

if TYPE_CHECKING:
    from pipeline.bases import Base
    from pipeline.bases.taps import FeatureModule


@dataclass
class Embedded:
    """A batch of images without their pixels, and the features of those that are good: (n, ...) a layer, in order."""

    images: list[Loaded]
    layers: list[NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def good(self) -> list[Loaded]:
        """The images that have features."""
        return [image for image in self.images if image.is_good]

    @property
    def indices(self) -> list[int]:
        """The indices of the images that have features."""
        return [image.index for image in self.good]

    def finite(self) -> Embedded:
        """Return the same batch, where images whose features hold NaN or infinity are bad ones."""
        if not self.layers:
            return self
        flat = [layer.reshape(len(layer), -1) for layer in self.layers]
        finite = np.logical_and.reduce([np.isfinite(layer).all(axis=1) for layer in flat])
        for image, is_right in zip(self.good, finite, strict=True):
            if not is_right:
                image.error = ImageError("non-finite", "the base gives NaN or infinity for it")
        return Embedded(self.images, [layer[finite] for layer in self.layers])

    def beside(self, other: Embedded) -> Embedded:
        """Put the layers of the `other` beside these, of the images that are good in both."""
        both = {image.index for image in self.good} & set(other.indices)
        layers = [
            layer[[image.index in both for image in batch.good]] for batch in (self, other) for layer in batch.layers
        ]
        for mine, theirs in zip(self.images, other.images, strict=True):
            mine.error = mine.error or theirs.error
        return Embedded(self.images, layers if both else [])


class Embedder:
    """A base that is ready to give the features of a recipe; use it in a ``with`` block to end its threads early.

    `shapes` are those of one image's features, one a layer, without views.

    >>> with Embedder(base_of(recipe, "DEFAULT", seed=13), recipe, settings) as embedder:  # doctest: +SKIP
    ...     for batch in embedder.run(records):
    ...         print(batch.indices, batch.layers[0].shape)
    """

    def __init__(
        self,
        base: Base | Callable[[], Base],
        recipe: Recipe,
        settings: RunSettings,
        *,
        network: FeatureModule | None = None,
    ) -> None:
        """Make the engine for `base`, which is the one of `recipe`, or is loaded by a call where it is needed.

        `network` is as `make_engine` says.

        Raises `EngineError` as `make_engine` does.
        """
        transform = InputTransform.from_description(recipe.transform)
        self._threads = CoreThreads(settings.workers)
        self._engine = make_engine(base, recipe, settings, self._threads, network)
        self._preprocess = make_preprocess(recipe, transform, max_pixels=settings.max_pixels)
        self._views = recipe.views + 1
        self.timings = Timings()
        self.name = self._engine.name
        self.device = self._engine.device
        self.shapes = self._engine.shapes

    @property
    def dimensions(self) -> int:
        """Numbers that all layers give of one view of an image."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def batch_size(self) -> int:
        """Images a batch: as many as have, with all their views, the size that suits the engine."""
        return max(1, self._engine.batch_size // self._views)

    @property
    def seconds(self) -> float:
        """Seconds in forward passes."""
        return self._engine.seconds

    def run(
        self, records: Iterable[Record], *, batch_size: int | None = None, seen: Callable[[bytes], bool] | None = None
    ) -> Iterator[Embedded]:
        """Embed every record once, in their order; `seen` is asked as `load` says."""
        return self.compute(self.load(records, batch_size=batch_size, seen=seen))

    def load(
        self, records: Iterable[Record], *, batch_size: int | None = None, seen: Callable[[bytes], bool] | None = None
    ) -> Generator[list[Loaded], None, None]:
        """Load batches of pixels, ahead of their use, as the base wants them."""
        return load(
            records,
            self._preprocess,
            batch_size=batch_size or self.batch_size,
            threads=self._threads,
            seen=seen,
            timings=self.timings,
        )

    def compute(self, batches: Generator[list[Loaded], None, None]) -> Iterator[Embedded]:
        """Compute the features of batches whose pixels are uint8 (V, H, W, 3), and drop the pixels.

        A batch is computed while whoever asked for it does something else with the one before, such as writing it.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="device") as device, closing(batches):
            computed: Future[Embedded] | None = None
            for batch in batches:
                earlier, computed = computed, device.submit(self._embedded, batch)
                if earlier is not None:
                    yield earlier.result()
            if computed is not None:
                yield computed.result()

    def _embedded(self, batch: list[Loaded]) -> Embedded:
        images = [loaded.pixels for loaded in batch if loaded.pixels is not None]
        layers = forward(self._engine, images) if images else []
        for loaded in batch:
            loaded.pixels = None
        return Embedded(batch, layers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()


class EmbeddersBeside:
    """Embedders of several bases that are asked about the same images: their layers side by side."""

    def __init__(self, embedders: Sequence[Embedder]) -> None:
        self._embedders = embedders

    @property
    def dimensions(self) -> int:
        """Numbers that all layers of all bases give of one view of an image."""
        return sum(one.dimensions for one in self._embedders)

    def run(
        self, records: Sequence[Record], *, batch_size: int, seen: Callable[[bytes], bool] | None = None
    ) -> Iterator[Embedded]:
        """Embed every record with every base; an image that is bad for one of them is bad."""
        running = [one.run(records, batch_size=batch_size, seen=seen) for one in self._embedders]
        for first, *others in zip(*running, strict=True):
            yield reduce(Embedded.beside, others, first)
