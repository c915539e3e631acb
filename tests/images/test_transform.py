"""Tests of the input transforms: bit for bit what the makers of the weights do."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from packaging.version import Version
from PIL import Image
from torchvision import models

from pipeline.bases import ZOOS, InputTransform
from pipeline.errors import BaseError, ImageError

SIZES = ((500, 400), (333, 501), (64, 64), (700, 90), (232, 256), (1, 40))


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


def seen(transform: InputTransform, picture: Image.Image) -> torch.Tensor:
    return transform.normalize(torch.from_numpy(transform.preprocess(picture).copy())[None])[0]


def presets() -> dict[InputTransform, str]:
    """Each transform that torchvision's weights use, with one of them."""
    zoo = ZOOS[""]
    return {
        zoo.plan(name, weights).transform: f"{name}:{weights}" for name in zoo.names() for weights in zoo.weights(name)
    }


@pytest.mark.parametrize(("transform", "example"), presets().items(), ids=presets().values())
def test_equals_torchvision_bit_for_bit(transform: InputTransform, example: str) -> None:
    name, _, weights = example.partition(":")
    reference = models.get_model_weights(name)[weights].transforms()
    for picture in pictures():
        if max(picture.size) / min(picture.size) < 40 or transform.crop[0] < 300:  # a giant otherwise
            assert torch.equal(seen(transform, picture), reference(picture))


@pytest.mark.parametrize(
    "name",
    ["tf_efficientnet_lite0", "convnext_tiny", "vit_base_patch16_siglip_224", "eva02_tiny_patch14_336", "resnetv2_50"],
)
def test_equals_timm_bit_for_bit(name: str) -> None:
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    reference = timm.data.create_transform(**config)
    transform = ZOOS["timm:"].plan(name, None).transform
    for picture in pictures()[:5]:
        assert torch.equal(seen(transform, picture), reference(picture))


@pytest.mark.parametrize("size", [(96, 64), (64, 96)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_every_way_of_timm_to_fit_an_oblong_input(size: tuple[int, int], mode: str, interpolation: str) -> None:
    from pipeline.bases.timm import _of_timm

    if (mode, interpolation) == ("center", "bicubic") and Version(timm.__version__) < Version("1.0.30"):
        pytest.skip("this timm takes bilinear whatever the config says")
    config = {"input_size": (3, *size), "interpolation": interpolation, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
    config |= {"crop_pct": 0.9, "crop_mode": mode}
    reference = timm.data.create_transform(**config)
    for picture in pictures()[:4]:
        assert torch.equal(seen(_of_timm(config), picture), reference(picture))


def test_description_goes_through_json_and_back() -> None:
    transform = InputTransform(resize=(236, 236), crop=(224, 224), interpolation="bicubic", mean=(0.5, 0.5, 0.5))
    assert InputTransform.from_description(json.loads(json.dumps(transform.describe()))) == transform


def test_another_size_shows_the_same_part_of_an_image() -> None:
    transform = InputTransform(resize=(256, 256), crop=(224, 224))
    larger = transform.at_size(448)
    assert (larger.resize, larger.crop) == ((512, 512), (448, 448))
    assert transform.at_size(224) == transform
    oblong = InputTransform(resize=(100, 200), crop=(80, 160), fit="stretch").at_size(40)
    assert (oblong.resize, oblong.crop) == ((50, 100), (40, 80))
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((800, 600))
    halved = Image.fromarray(larger.preprocess(smooth)).resize((224, 224), Image.Resampling.BOX)
    off = np.abs(np.asarray(halved).astype(int) - transform.preprocess(smooth).astype(int))
    assert off.mean() < 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic'"),
        ({"fit": "tight"}, "unknown fit 'tight'"),
        ({"padding": 4}, "not the description of an input transform"),
        ({"crop": [8]}, "crop of an input transform is two numbers"),
        ({"crop": [8, 10**6]}, "crop of an input transform is two numbers"),
        ({"resize": ["8", "8"]}, "resize of an input transform is two numbers"),
        ({"resize": 8}, "not the description of an input transform"),
        ({"mean": [0.5]}, "mean of an input transform is a number for each colour"),
        ({"std": ["a", "b", "c"]}, "std of an input transform is a number for each colour"),
    ],
)
def test_descriptions_that_are_none(change: dict[str, object], message: str) -> None:
    good = InputTransform(resize=(8, 8), crop=(8, 8)).describe()
    with pytest.raises(BaseError, match=message):
        InputTransform.from_description({**good, **change})


def test_fast_is_close_to_exact_and_not_equal() -> None:
    noise = np.random.default_rng(1)
    coarse = Image.fromarray(noise.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    smooth = coarse.resize((1600, 1200), Image.Resampling.BICUBIC)
    transform = InputTransform(resize=(256, 256), crop=(224, 224))
    exact, fast = transform.preprocess(smooth).astype(int), transform.preprocess(smooth, fast=True).astype(int)
    assert exact.shape == fast.shape == (224, 224, 3)
    assert 0 < np.abs(exact - fast).mean() < 1.0


def test_fast_of_an_image_smaller_than_the_input() -> None:
    transform = InputTransform(resize=(64, 64), crop=(64, 64))
    assert transform.preprocess(Image.new("RGB", (10, 7)), fast=True).shape == (64, 64, 3)
    assert transform.least_size == (64, 64)


# ---- thin images ----


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "hamming", "box"])
@pytest.mark.parametrize("size", [(1, 300), (300, 1), (3, 1111), (1111, 3), (17, 900), (31, 31), (32, 500)])
def test_a_thin_image_is_as_if_all_of_it_were_resized(
    interpolation: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = noise(*size)
    for resize, crop in (((40, 40), (32, 32)), ((37, 37), (37, 37)), ((33, 33), (48, 48)), ((40, 60), (32, 48))):
        transform = InputTransform(resize=resize, crop=crop, interpolation=interpolation)
        whole = transform.preprocess(picture)
        monkeypatch.setattr("pipeline.images.transform.RESIZED_WHOLE", 0)
        assert np.array_equal(transform.preprocess(picture), whole)
        monkeypatch.undo()


def test_a_thin_image_that_was_fine_is_the_same_as_ever() -> None:
    transform = InputTransform(resize=(256, 256), crop=(224, 224))
    for size, pillow in (((1, 300), (256, 76800)), ((400, 2), (51200, 256)), ((1, 700), (256, 179200))):
        picture = noise(*size)
        whole = picture.resize(pillow, Image.Resampling.BILINEAR)
        left, top = round((pillow[0] - 224) / 2), round((pillow[1] - 224) / 2)
        assert np.array_equal(transform.preprocess(picture), np.asarray(whole.crop((left, top, left + 224, top + 224))))


@pytest.mark.parametrize("size", [(1, 40_000), (1, 10**6), (6 * 10**7, 1), (260, 250_000)])
def test_an_image_that_is_too_thin_has_a_reason(size: tuple[int, int]) -> None:
    transform = InputTransform(resize=(256, 256), crop=(224, 224))
    with pytest.raises(ImageError, match=r"too-large: .* so thin that resizing makes") as caught:
        transform.refuse_thin(*size)
    assert caught.value.reason == "too-large"
    with pytest.raises(ImageError, match="too-large"):
        transform.preprocess(Image.new("RGB", (1, 17_000)))
    stretched = InputTransform(resize=(256, 256), crop=(224, 224), fit="stretch")
    assert stretched.preprocess(Image.new("RGB", (1, 40_000))).shape == (224, 224, 3)


@pytest.mark.parametrize("field", ["mean", "std"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308, 10**400])
def test_colours_are_numbers_that_can_be_computed_with(field: str, value: float) -> None:
    description = {"resize": [8, 8], "crop": [8, 8], field: [value, 0.5, 0.5]}
    with pytest.raises(BaseError, match=f"{field} of an input transform is a number for each colour"):
        InputTransform.from_description(description)


@pytest.mark.parametrize("value", [0.0, -0.1])
def test_colours_are_divided_by_what_is_positive(value: float) -> None:
    with pytest.raises(BaseError, match="std of an input transform is positive"):
        InputTransform.from_description({"resize": [8, 8], "crop": [8, 8], "std": [value, 0.5, 0.5]})


def test_a_fit_that_is_asked_for_shows_the_whole_image() -> None:
    image = Image.new("RGB", (300, 100), (200, 10, 10))
    image.paste((10, 10, 200), (0, 0, 20, 100))  # a blue edge, which a centre crop cuts off
    made = InputTransform(resize=(256, 256), crop=(224, 224))
    assert made.with_fit("shortest") == made
    seen = {fit: made.with_fit(fit).preprocess(image) for fit in ("shortest", "longest", "stretch")}
    blue = {fit: int((pixels[..., 2] > 150).sum()) for fit, pixels in seen.items()}
    assert {pixels.shape for pixels in seen.values()} == {(224, 224, 3)}
    assert blue["shortest"] == 0
    assert blue["longest"] == pytest.approx(224 * 224 / 3 * 20 / 300, rel=0.1)
    assert blue["stretch"] == pytest.approx(224 * 224 * 20 / 300, rel=0.1)
    mean = tuple(round(255 * value) for value in made.mean)
    assert tuple(seen["longest"][0, 0].tolist()) == mean  # filled with what normalisation makes zero
    assert made.at_size(288).with_fit("stretch").resize == made.with_fit("stretch").at_size(288).crop
