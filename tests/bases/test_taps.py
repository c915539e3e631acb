"""Layers by name: what is kept is what the network computes there, pooled as asked."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from networks import hooked, images, without_numbers

from pipeline.bases import Base, feature_network, load_base
from pipeline.errors import BaseError, SettingsError


def test_in_place_operations_do_not_reach_what_was_kept(base_of: Callable[[str], Base]) -> None:
    base = base_of("resnet50")
    plain = copy.deepcopy(base.module)
    with torch.no_grad():
        expected = plain.bn1(plain.conv1(images(64)))
        first, pooled = feature_network(base, ["bn1", "avgpool"])(images(64))
        alone = feature_network(base, ["bn1"])(images(64))[0]
    assert torch.equal(first, expected)
    assert torch.equal(alone, expected)
    assert float(first.min()) < 0
    assert pooled.shape == (2, 2048)


def test_alexnet_before_its_first_relu_and_its_fully_connected_layers(base_of: Callable[[str], Base]) -> None:
    base = base_of("alexnet")
    plain = copy.deepcopy(base.module)
    with torch.no_grad():
        first, pool5, fc6, fc7 = feature_network(base, ["features.0", "pool5", "fc6", "fc7"])(images(224))
        assert torch.equal(first, plain.features[0](images(224)))
        hidden = plain.avgpool(plain.features(images(224)))
        assert torch.equal(pool5, hidden)
        six = plain.classifier[2](plain.classifier[1](hidden.flatten(1)))
        assert torch.allclose(fc6, six, rtol=0, atol=1e-6)
        assert torch.allclose(fc7, plain.classifier[5](plain.classifier[4](six)), rtol=0, atol=1e-6)
    assert fc7.shape == (2, 4096)
    assert float(fc7.min()) == 0.0


def test_vgg16_pool5_flattened_is_25088_wide() -> None:
    base = without_numbers("vgg16")
    assert feature_network(base, ["pool5"], "flatten").shapes == [(25088,)]
    assert feature_network(base, ["pool5", "fc6", "fc7"]).shapes == [(512, 7, 7), (4096,), (4096,)]


def test_what_follows_the_last_layer_is_left_out(base_of: Callable[[str], Base]) -> None:
    network = feature_network(base_of("alexnet"), ["features.2"])
    assert sum(parameter.numel() for parameter in network.parameters()) == 3 * 64 * 11 * 11 + 64
    assert network.depends_on("features.0.weight")
    assert not network.depends_on("features.3.weight")


@pytest.mark.parametrize(
    ("pool", "shape"), [("none", (512, 13, 13)), ("avg", (512,)), ("max", (512,)), ("flatten", (86528,))]
)
def test_pools(pool: str, shape: tuple[int, ...]) -> None:
    base = load_base("squeezenet1_1", "embedded")
    network = feature_network(base, ["pool5"], pool)
    with torch.no_grad():
        (rows,) = network(images(224))
        maps = base.module.features(images(224))
    expected = {"none": maps, "avg": maps.mean((2, 3)), "max": maps.amax((2, 3)), "flatten": maps.flatten(1)}[pool]
    assert list(network.shapes) == [shape]
    assert torch.allclose(rows, expected, rtol=0, atol=1e-5)


def test_tokens_and_maps_that_keep_their_channels_last(base_of: Callable[[str], Base]) -> None:
    vit = base_of("vit_b_32")
    with torch.no_grad():
        whole = hooked("encoder")(vit.module, images(224)).unflatten(1, (50, 768))
        cls, tokens, inner = feature_network(vit, ["cls", "tokens", "encoder"], "avg")(images(224))
    assert torch.allclose(cls, whole[:, 0], rtol=0, atol=1e-6)
    assert torch.allclose(tokens, whole[:, 1:].mean(1), rtol=0, atol=1e-6)
    assert torch.allclose(inner, whole.mean(1), rtol=0, atol=1e-6)
    swin = without_numbers("swin_t")
    assert feature_network(swin, ["features.3", "features.0.0", "pool5"], "avg").shapes == [(192,), (96,), (768,)]
    assert feature_network(swin, ["features.3"], "none").shapes == [(28, 28, 192)]
    convnext = without_numbers("convnext_tiny")
    assert feature_network(convnext, ["features.1.0.block.3", "features.1"], "max").shapes == [(384,), (96,)]


def test_a_layer_that_runs_twice_is_kept_as_it_was_last() -> None:
    base = load_base("resnet18", "none")
    with torch.no_grad():
        (twice,) = feature_network(base, ["layer1.0.relu"])(images(64))
        (block,) = feature_network(base, ["layer1.0"])(images(64))
    assert torch.equal(twice, block)


def test_one_image_equals_the_same_image_in_a_batch() -> None:
    base = load_base("efficientnet_b0", "none")
    network = feature_network(base, ["avgpool"])
    with torch.inference_mode():
        batch = network(images(64, count=5))[0]
        single = network(images(64, count=5)[2:3])[0]
    assert single.shape == (1, 1280)
    assert torch.allclose(single[0], batch[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "pool", "kind", "message"),
    [
        (["avgpol"], "none", BaseError, r"squeezenet1_1 has no layer 'avgpol' \(did you mean 'avgpool'\?\)"),
        (["features.20"], "none", BaseError, r"has no layer 'features.20' \(did you mean 'features.2'"),
        ([""], "none", BaseError, "has no layer ''"),
        ([], "none", SettingsError, "no layer is given"),
        (["avgpool", "avgpool"], "none", SettingsError, "'avgpool' is given twice"),
        (["avgpool"], "mean", SettingsError, "unknown pool 'mean'"),
    ],
)
def test_layers_that_are_none(layers: list[str], pool: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        feature_network(load_base("squeezenet1_1", "embedded"), layers, pool)
