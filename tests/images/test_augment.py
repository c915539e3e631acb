from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from pipeline.errors import SettingsError
from pipeline.images import augment
from pipeline.images.augment import build_view, view_rng

SIZE = (48, 64)  # height, width: unequal, so that a swap shows


def photo(width: int = 150, height: int = 110) -> Image.Image:
    """A smooth ramp with a bright corner, so that every flip and shift shows."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], axis=-1).astype(np.uint8)
    pixels[:20, :20] = 255
    return Image.fromarray(pixels)


def plain(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(ImageOps.fit(image, (SIZE[1], SIZE[0])))


def look(*names: str, seed: int = 13, digest: bytes = bytes(32), view: int = 1) -> NDArray[np.uint8]:
    image = build_view(names, size=SIZE, plain=plain)(photo(), view_rng(seed, digest, view))
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("name", list(augment.CHANGES))
def test_every_change_keeps_the_size_and_repeats(name: str) -> None:
    assert look(name).shape == (*SIZE, 3)
    assert np.array_equal(look(name), look(name))


def test_seed_content_and_number_of_the_view_each_change_it() -> None:
    views = [
        look("crop"),
        look("crop", seed=14),
        look("crop", digest=bytes(31) + b"\1"),
        look("crop", view=2),
    ]
    assert all(not np.array_equal(a, b) for i, a in enumerate(views) for b in views[i + 1 :])


def test_without_a_change_it_is_the_bases_own_view() -> None:
    assert np.array_equal(look(), plain(photo()))


def test_mirror_always_mirrors_and_flips_mirror_half_of_the_time() -> None:
    straight = plain(photo())
    assert np.array_equal(look("mirror"), straight[:, ::-1])
    for name, flipped in (("flip", straight[:, ::-1]), ("vflip", straight[::-1])):
        views = [look(name, view=k) for k in range(200)]
        turned = sum(np.array_equal(view, flipped) for view in views)
        assert turned + sum(np.array_equal(view, straight) for view in views) == 200
        assert 75 <= turned <= 125


def test_brightness_scales_within_its_limits() -> None:
    grey = Image.new("RGB", (64, 48), (100, 100, 100))
    view = build_view(["brightness"], size=SIZE, plain=plain)
    values = [np.asarray(view(grey, view_rng(13, bytes(32), k)))[0, 0, 0] for k in range(200)]
    assert 80 <= min(values) < 85
    assert 115 < max(values) <= 120


def test_rotation_turns_and_leaves_no_black_corner() -> None:
    white = build_view(["rotate"], size=SIZE, plain=plain)(Image.new("RGB", (64, 48), "white"), view_rng(1, b"", 1))
    assert np.asarray(white).min() == 255
    assert not np.array_equal(look("rotate"), plain(photo()))


def test_the_order_asked_in_does_not_matter() -> None:
    assert np.array_equal(look("brightness", "flip", "crop"), look("crop", "flip", "brightness"))


def test_a_crop_equals_torchvision_given_the_same_box() -> None:
    left, top, right, bottom = augment.random_box(photo().size, view_rng(13, bytes(32), 1))
    expected = tv.resized_crop(photo(), top, left, bottom - top, right - left, list(SIZE))
    assert np.array_equal(look("crop"), np.asarray(expected))


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (2000, 100), (100, 2000), (1, 1), (1, 50), (3, 2)])
def test_boxes_stay_inside_and_are_distributed_as_in_torchvision(size: tuple[int, int]) -> None:
    width, height = size
    boxes = np.array([augment.random_box(size, view_rng(13, b"", k)) for k in range(1500)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left < right).all()
    assert (right <= width).all()
    assert (top < bottom).all()
    assert (bottom <= height).all()

    torch.manual_seed(0)
    blank = Image.new("RGB", size)
    theirs = np.array(
        [RandomResizedCrop.get_params(blank, list(augment.SCALE), list(augment.RATIO)) for _ in range(1500)]
    )
    mine = np.stack([top, left, bottom - top, right - left], axis=1)
    spread = np.maximum(theirs.std(axis=0), 0.5)
    assert (np.abs(mine.mean(axis=0) - theirs.mean(axis=0)) < 0.15 * spread + 0.1).all()


def test_wrong_names_are_one_line() -> None:
    with pytest.raises(SettingsError, match=r"unknown augmentation 'flp' \(did you mean 'flip'\?\)"):
        build_view(["crop", "flp"], size=SIZE, plain=plain)
    with pytest.raises(SettingsError, match="'flip' is given twice"):
        build_view(["flip", "crop", "flip"], size=SIZE, plain=plain)
