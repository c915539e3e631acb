"""Preprocessing: the bytes of an image file to the views that a base sees, by a recipe."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import MAX_PIXELS, Recipe
from pipeline.images import augment, decoding
from pipeline.images.loading import Preprocess
from pipeline.images.transform import InputTransform


def make_preprocess(recipe: Recipe, transform: InputTransform, *, max_pixels: int = MAX_PIXELS) -> Preprocess:
    """Return a function of the bytes of an image file to its views, uint8 (V, H, W, 3); it raises `ImageError`.

    The plain view comes first. Random views depend on the seed and the content of the file alone.
    """
    fast = recipe.decode == "fast"
    limits = decoding.Limits(max_pixels=max_pixels)
    least = transform.least_size if fast else None

    def plain(image: Image.Image) -> NDArray[np.uint8]:
        return transform.preprocess(image, fast=fast)

    view = augment.build_view(recipe.augment, size=transform.size, plain=plain, interpolation=transform.resampling)

    def preprocess(data: bytes, sha256: bytes) -> NDArray[np.uint8]:
        image = decoding.decode(data, limits, at_least=least, refuse=None if fast else transform.refuse_thin)
        rngs = (augment.view_rng(recipe.seed or 0, sha256, number) for number in range(1, recipe.views + 1))
        return np.stack([plain(image), *(np.asarray(view(image, rng)) for rng in rngs)])

    return preprocess
