"""The tree of a network's modules against the layers that can be taken of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.bases import blank_base, feature_network
from pipeline.bases.tree import modules_of
from pipeline.errors import BaseError


@pytest.mark.parametrize("name", ["squeezenet1_1", "scratch:cnn", "googlenet", "vit_b_32"])
def test_each_module_with_a_shape_is_a_layer_of_that_shape_and_no_other_is(name: str) -> None:
    base = blank_base(name)
    modules = modules_of(base.module, base.transform.size)
    assert [module.name for module in modules] == [name for name, _ in base.module.named_modules() if name]
    named = set(base.family.aliases)  # as a layer, avgpool is the embedding, whatever a module of that name gives
    layers = {one.name: one.shape for one in modules if one.shape is not None and one.name not in named}
    assert feature_network(base, list(layers)).shapes == list(layers.values())
    for silent in [module.name for module in modules if module.shape is None][:3]:
        with pytest.raises(BaseError, match="no features"):
            feature_network(base, [silent])


def test_parameters_are_those_inside_and_shared_ones_count_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 3, 1)
            self.both = nn.Sequential(self.one, nn.Sequential(self.one, nn.Conv2d(3, 5, 1)))

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, str]:
            return self.both(images), "and more"

    network = Shared()
    found = {module.name: module for module in modules_of(network, (8, 6))}
    assert {name: module.parameters for name, module in found.items()} == {
        "one": 12,
        "both": 32,
        "both.1": 32,
        "both.1.1": 20,
    }
    assert (found["both.1.1"].shape, found["both.1.1"].depth) == ((5, 8, 6), 2)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_network_that_fails_keeps_no_hook() -> None:
    network = nn.Sequential(nn.Linear(7, 2))
    with pytest.raises(RuntimeError):
        modules_of(network, (8, 8))
    assert not network[0]._forward_hooks
