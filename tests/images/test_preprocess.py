"""From bytes to views by a recipe: the plain view first, the others by seed and content alone."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from cheap import recipe
from pictures import encoded, photo

from pipeline.errors import ImageError
from pipeline.images.decoding import decode
from pipeline.images.preprocess import make_preprocess
from pipeline.images.transform import InputTransform

TRANSFORM = InputTransform(resize=(48, 48), crop=(32, 32))
DATA = encoded(photo(3))
DIGEST = hashlib.sha256(DATA).digest()


def test_the_plain_view_is_the_transform_of_the_decoded_image() -> None:
    (plain,) = make_preprocess(recipe(), TRANSFORM)(DATA, DIGEST)
    np.testing.assert_array_equal(plain, TRANSFORM.preprocess(decode(DATA)))
    assert (plain.shape, plain.dtype) == ((32, 32, 3), np.uint8)


def test_views_depend_on_seed_and_content_alone() -> None:
    augmented = recipe(views=3, augment=("crop", "mirror"), seed=5)
    views = make_preprocess(augmented, TRANSFORM)(DATA, DIGEST)
    assert views.shape == (4, 32, 32, 3)
    np.testing.assert_array_equal(views, make_preprocess(augmented, TRANSFORM)(DATA, DIGEST))
    np.testing.assert_array_equal(views[0], make_preprocess(recipe(), TRANSFORM)(DATA, DIGEST)[0])
    assert len({view.tobytes() for view in views}) == 4
    other = make_preprocess(recipe(views=3, augment=("crop", "mirror"), seed=6), TRANSFORM)(DATA, DIGEST)
    assert (views[1:] != other[1:]).any()


def test_an_image_over_the_limit_of_pixels_has_a_reason() -> None:
    with pytest.raises(ImageError, match="too-large"):
        make_preprocess(recipe(), TRANSFORM, max_pixels=100)(DATA, DIGEST)
