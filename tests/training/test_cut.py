from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from networks import images
from torch import Tensor, nn
from torch.nn import functional

from pipeline.bases import load_base
from pipeline.bases.taps import FeatureNetwork, Tap
from pipeline.errors import SettingsError
from pipeline.training.cut import Cut, find_cut
from pipeline.training.network import Network, build_network, freeze


def cut_base(name: str, train: Sequence[str], *, layers: Sequence[str] = ("avgpool",), size: int = 64) -> Cut:
    base = load_base(name, "none", size=size)
    network = build_network(base, layers, "none", outputs=2)
    freeze(network, train)
    return find_cut(network.features, base.transform.size)


def places(cut: Cut) -> list[str]:
    return [name.partition("@")[0] for name in cut.prefix.names]


CUTS = [
    ("squeezenet1_1", ["features.11", "features.12"], ["features.10"]),
    ("resnet18", ["layer4"], ["layer3"]),
    ("resnet18", ["layer4.1.conv2"], ["layer4.0", "layer4.1.relu"]),
    ("resnet18", ["head"], ["avgpool"]),
    ("shufflenet_v2_x0_5", ["stage4"], ["stage3"]),
    ("mobilenet_v3_small", ["features.12"], ["features.11"]),
]


@pytest.mark.parametrize(("name", "train", "wanted"), CUTS)
def test_it_is_made_where_what_is_frozen_ends(name: str, train: list[str], wanted: list[str]) -> None:
    assert places(cut_base(name, train)) == wanted


def test_all_that_a_dense_block_takes_passes() -> None:
    cut = cut_base("densenet121", ["features.denseblock4.denselayer3"])
    block = "features.denseblock4.denselayer"
    assert places(cut) == ["features.transition3", f"{block}1", f"{block}2"]
    assert cut.prefix.shapes == [(512, 2, 2), (32, 2, 2), (32, 2, 2)]


def test_a_frozen_layer_of_the_head_is_cached_beside() -> None:
    cut = cut_base("resnet18", ["layer4"], layers=("layer1", "avgpool"))
    assert places(cut) == ["layer1", "layer3"]


def test_names_are_those_of_one_graph() -> None:
    one, same = (cut_base("squeezenet1_1", [train]) for train in ("features.11", "features.11.squeeze"))
    assert one.prefix.names == same.prefix.names
    pooled, whole = (cut_base("squeezenet1_1", ["head"], layers=[layer]) for layer in ("avgpool", "features.12"))
    assert pooled.prefix.names != whole.prefix.names


def test_nothing_frozen_is_no_cut() -> None:
    with pytest.raises(SettingsError, match="nothing is frozen before the first module that is trained"):
        cut_base("resnet18", ["conv1"])
    with pytest.raises(SettingsError, match="nothing is frozen"):
        cut_base("resnet18", ["all"])


# --- code between modules


class Odd(nn.Module):
    """Code that joins modules in the ways of the wild: constants, sizes of the batch, tuples, in-place operations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(4, 5)
        self.one_by_one = False
        self.random = False

    def forward(self, image: Tensor, scale: float = 2.0) -> Tensor:
        kept = self.first(image)
        one, other = torch.relu_(kept).chunk(2, dim=1)
        count = kept.shape[0]
        tokens = kept.reshape(count, 4, -1).transpose(1, 2)
        tokens = torch.cat([self.token.expand(count, -1, -1), tokens], dim=1)
        if self.random:
            tokens = functional.dropout(tokens, 0.5, self.training)
        if self.one_by_one:
            tokens = torch.stack([2 * one for one in tokens])
        tail = torch.cat([half.flatten(2).mean(2) for half in (one, other)], dim=1).reshape(count, 4)
        answer: Tensor = self.last(self.drop(tokens[:, 0])) * scale + self.last(tail)
        return answer


def odd_features(**ways: bool) -> tuple[Odd, FeatureNetwork]:
    network = Odd()
    for name, way in ways.items():
        setattr(network, name, way)
    wrapped = nn.Sequential(network)
    return network, FeatureNetwork(wrapped, [Tap("0")], "none", input_size=(8, 8))


def trained(features: FeatureNetwork, *names: str) -> FeatureNetwork:
    Network(features, nn.Linear(5, 2)).train_only([features.network.get_submodule(name) for name in names])
    return features


def test_the_parts_of_odd_code_give_what_the_whole_gives() -> None:
    features = trained(odd_features()[1], "0.last")
    cut = find_cut(features, (8, 8))
    for count in (1, 2, 5):
        given, wanted = cut.suffix(*cut.prefix(images(8, count))), features.eval()(images(8, count))
        assert torch.allclose(given[0], wanted[0], atol=1e-6)


def test_gradients_are_those_of_the_whole() -> None:
    features = trained(odd_features()[1], "0.last")
    cut = find_cut(features, (8, 8))
    last = features.network.get_parameter("0.last.weight")
    given = torch.autograd.grad(cut.suffix(*cut.prefix(images(8)))[0].square().sum(), last)
    wanted = torch.autograd.grad(features(images(8))[0].square().sum(), last)
    assert torch.allclose(given[0], wanted[0], rtol=1e-5)


def test_dropout_that_moves_ends_what_is_frozen() -> None:
    cut = find_cut(trained(odd_features()[1], "0.drop", "0.last"), (8, 8))
    once, again = (cut.suffix(*cut.prefix(images(8)))[0] for _ in range(2))
    assert not torch.equal(once, again)
    frozen = find_cut(trained(odd_features()[1], "0.last"), (8, 8))
    once, again = (frozen.suffix(*frozen.prefix(images(8)))[0] for _ in range(2))
    assert torch.equal(once, again)


def test_code_that_cannot_be_traced_is_the_reason() -> None:
    with pytest.raises(SettingsError, match="cannot be traced: Proxy object cannot be iterated"):
        find_cut(trained(odd_features(one_by_one=True)[1], "0.last"), (8, 8))


def test_code_that_is_random_in_training_is_not_cut_through() -> None:
    """The tap lies within the trained module, so that its own code is traced."""
    network = odd_features(random=True)[0]
    features = FeatureNetwork(nn.Sequential(nn.Identity(), network), [Tap("1.last")], "none", input_size=(8, 8))
    with pytest.raises(SettingsError, match="is another in training than in evaluation"):
        find_cut(trained(features, "1"), (8, 8))


#: A module in the middle of one network of each family of torchvision.
FAMILIES = [
    ("alexnet", 64, "features.8"),
    ("convnext_tiny", 64, "features.5"),
    ("densenet121", 64, "features.denseblock3"),
    ("efficientnet_b0", 64, "features.5"),
    ("efficientnet_v2_s", 64, "features.5"),
    ("googlenet", 64, "inception4c"),
    ("inception_v3", 96, "Mixed_6c"),
    ("maxvit_t", 224, "blocks.2"),
    ("mnasnet0_5", 64, "layers.11"),
    ("mobilenet_v2", 64, "features.12"),
    ("mobilenet_v3_small", 64, "features.8"),
    ("regnet_x_400mf", 64, "trunk_output.block3"),
    ("regnet_y_400mf", 64, "trunk_output.block3"),
    ("resnet18", 64, "layer3.0"),
    ("resnet50", 64, "layer3.2.conv2"),
    ("resnext50_32x4d", 64, "layer3"),
    ("shufflenet_v2_x0_5", 64, "stage3.2"),
    ("squeezenet1_0", 64, "features.8"),
    ("swin_t", 64, "features.5"),
    ("swin_v2_t", 64, "features.5"),
    ("vgg11", 64, "features.11"),
    ("vgg11_bn", 64, "features.15"),
    ("vit_b_16", 224, "encoder.layers.encoder_layer_6"),
    ("wide_resnet50_2", 64, "layer3"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "module"), FAMILIES)
def test_a_cut_in_the_middle_of_each_family_gives_its_features(name: str, size: int, module: str) -> None:
    base = load_base(name, "none", size=size)
    network = build_network(base, ["avgpool"], "none", outputs=2)
    freeze(network, [module])
    cut = find_cut(network.features, base.transform.size)
    network.eval()
    with torch.inference_mode():
        wanted = network.features(images(size, 3))[0]
        given = cut.suffix(*cut.prefix(images(size, 3)))[0]
    difference = float((given - wanted).abs().max() / wanted.abs().max())
    print(f"{name} before {module}: {places(cut)} {cut.prefix.shapes}, {difference:.1e}")
    assert difference <= 1e-5
