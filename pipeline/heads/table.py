"""Feature rows of a store as heads want them: layers side by side, views one after the other, streamed if large."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.rows import ArrayRows, Features, Rows, StreamedRows
from pipeline.store import FeatureStore

#: Copies of the features that exist while a head is trained in memory.
COPIES = 3

Indices = NDArray[np.int64]


class FeatureTable:
    """The features of some layers of `store`: for each image `views` rows of `dimensions` numbers, `widths` a layer."""

    def __init__(self, store: FeatureStore, layers: Sequence[str]) -> None:
        self._store = store
        self._layers = layers
        has_views = store.recipe.views > 0
        shapes = [store.layers[layer] for layer in layers]
        self.views = shapes[0][0] if has_views else 1
        self.widths = tuple(int(np.prod(shape[1:] if has_views else shape)) for shape in shapes)
        self.dimensions = sum(self.widths)

    def images(self, images: Indices) -> NDArray[np.float32]:
        """Features (n, views, D) of `images`."""
        parts = [
            self._store.features(layer, images).reshape(len(images), self.views, width)
            for layer, width in zip(self._layers, self.widths, strict=True)
        ]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        return whole.astype(np.float32, copy=False)

    def rows(self, images: Indices, *, memory: float) -> Rows:
        """Rows (n views, D) of `images`, in memory where `memory` GB are enough to train on them there."""
        if COPIES * len(images) * self.views * self.dimensions * 4 <= memory * 1e9:
            return ArrayRows(self.images(images).reshape(-1, self.dimensions))
        return StreamedRows(
            lambda which: self._feature_rows(images, which), np.arange(len(images) * self.views), self.dimensions
        )

    def _feature_rows(self, images: Indices, which: Indices) -> Features:
        if self.views == 1:
            return self.images(images[which])[:, 0]
        wanted, place = np.unique(which // self.views, return_inverse=True)
        return self.images(images[wanted])[place, which % self.views]
