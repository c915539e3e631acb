"""A network that nobody published weights of: what it computes, and what it answers when asked for some."""

from __future__ import annotations

import pytest
import torch

from pipeline.bases import ZOOS, feature_network, load_base
from pipeline.errors import BaseError


def test_two_convolutions_halve_the_image_twice() -> None:
    base = load_base("scratch:cnn", "none")
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    network = feature_network(base, ["pool5", "avgpool"])
    with torch.no_grad():
        maps, pooled = network(pixels)
    assert network.shapes == [(32, 56, 56), (32,)]
    torch.testing.assert_close(pooled, maps.mean((2, 3)))
    assert base.module(pixels).shape == (2, 1000)


def test_published_weights_are_refused_with_the_way_out() -> None:
    assert ZOOS["scratch:"].weights("cnn") == []
    with pytest.raises(BaseError, match="no published weights; train it from random ones with --weights none"):
        load_base("scratch:cnn")
