"""What is known of a network without its weights, against what is measured."""

from __future__ import annotations

import pytest
from torch import nn

from pipeline.bases import ZOOS
from pipeline.bases.zoo import built, measured_size
from pipeline.errors import BaseError


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOOS[""].names())
def test_known_sizes_are_the_measured_ones(name: str) -> None:
    zoo = ZOOS[""]
    known, measured = zoo.size(name), measured_size(zoo.plan(name, None), name)
    assert known is not None
    assert known[0] == measured[0]
    assert known[1] == measured[1] or name == "googlenet"  # published without its auxiliary heads


def test_the_size_of_a_small_network_is_known_without_its_numbers() -> None:
    zoo = ZOOS[""]
    assert measured_size(zoo.plan("resnet18", None), "resnet18") == zoo.size("resnet18") == (512, 11_689_512)


def test_a_network_is_built_without_numbers_where_it_can_be() -> None:
    assert built(lambda: nn.Linear(2, 3), "small").weight.is_meta


def test_a_network_that_cannot_be_built_is_one_line() -> None:
    def build() -> nn.Module:
        raise RuntimeError("no such\nblock")

    with pytest.raises(BaseError, match=r"^timm:odd cannot be built: no such$"):
        built(build, "timm:odd")
