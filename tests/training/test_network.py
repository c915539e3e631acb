from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import without_numbers
from torch import nn
from torch.nn import functional

from pipeline.bases import Base, load_base
from pipeline.bases.weights import digest
from pipeline.errors import HeadError, SettingsError
from pipeline.training.network import (
    Network,
    blocks,
    build_network,
    folded_head,
    freeze,
    parameter_groups,
    put_back,
    restore,
    snapshot,
    standardise,
    start_from,
)


@pytest.fixture(scope="module")
def squeezenet() -> Base:
    return load_base("squeezenet1_1", "embedded")


@pytest.fixture(scope="module")
def resnet() -> Base:
    return load_base("resnet18", "none")


def images(count: int = 4, side: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def take_steps(network: Network, count: int = 2) -> None:
    network.train()
    optimizer = torch.optim.SGD(parameter_groups(network, lr=0.01), momentum=0.9)
    for _ in range(count):
        optimizer.zero_grad()
        functional.cross_entropy(network(images()), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()


def changed(network: Network, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of parameters and buffers that are not the same bits any more."""
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def copied(network: Network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_forward_is_the_base_and_one_linear_layer(squeezenet: Base) -> None:
    network = build_network(squeezenet, ["avgpool"], "none", outputs=3).eval()
    embedding = squeezenet.module.features(images()).mean((2, 3))  # type: ignore[operator]
    assert network.head.in_features == 512
    torch.testing.assert_close(network(images()), network.head(embedding))


def test_several_layers_are_joined_in_their_order(squeezenet: Base) -> None:
    network = build_network(squeezenet, ["avgpool", "features.5"], "avg", outputs=2).eval()
    assert network.head.in_features == 512 + 128
    early, late = squeezenet.module.features[:6], squeezenet.module.features  # type: ignore[index]
    joined = torch.cat([late(images()).mean((2, 3)), early(images()).mean((2, 3))], dim=1)  # type: ignore[operator]
    torch.testing.assert_close(network(images()), network.head(joined))


def test_only_the_head_moves(resnet: Base) -> None:
    network = build_network(resnet, ["avgpool"], "none", outputs=3)
    before = copied(network)
    freeze(network, ["head"])
    take_steps(network)
    assert changed(network, before) == {"head.weight", "head.bias"}


def test_only_named_modules_move_and_frozen_batch_norm_keeps_its_buffers(resnet: Base) -> None:
    network = build_network(resnet, ["avgpool"], "none", outputs=3)
    before = copied(network)
    freeze(network, ["layer4.1", "layer3.0.conv1"])
    take_steps(network)
    moved = changed(network, before)
    prefixes = ("features.network.layer4.1.", "features.network.layer3.0.conv1.", "head.")
    assert moved == {name for name in before if name.startswith(prefixes)}
    assert "features.network.layer4.1.bn2.running_mean" in moved


def test_everything_moves(resnet: Base) -> None:
    network = build_network(resnet, ["avgpool"], "none", outputs=3)
    before = copied(network)
    freeze(network, ["all"])
    take_steps(network)
    assert changed(network, before) == set(before) - {"mean", "std"}


def test_batch_norm_can_be_kept_where_all_the_rest_moves(resnet: Base) -> None:
    network = build_network(resnet, ["avgpool"], "none", outputs=3)
    before = copied(network)
    freeze(network, ["all"], freeze_norm=True)
    take_steps(network)
    buffers = {name for name, _ in network.named_buffers()}
    assert buffers
    assert changed(network, before) == set(before) - buffers


def test_dropout_is_on_only_where_training_is() -> None:
    alexnet = load_base("alexnet", "none")
    network = build_network(alexnet, ["fc7"], "none", outputs=2)
    dropouts = [part for part in network.modules() if isinstance(part, nn.Dropout)]
    assert len(dropouts) == 2
    freeze(network, ["head"])
    network.train()
    assert not any(part.training for part in dropouts)
    torch.testing.assert_close(network(images()), network.eval()(images()), rtol=0, atol=0)
    freeze(network, ["classifier"])
    network.train()
    assert all(part.training for part in dropouts)
    network.eval()
    assert not any(part.training for part in network.modules())


def test_freezing_again_starts_anew(squeezenet: Base) -> None:
    network = build_network(squeezenet, ["avgpool"], "none", outputs=2)
    freeze(network, ["all"])
    freeze(network, ["features.12"])
    free = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[3] for name in free if name.startswith("features.")} == {"12"}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("featurs.12", r"the base has no module 'featurs.12' \(did you mean 'features.12'\?\)"),
        ("haed", r"no module 'haed' \(did you mean 'head'\?\)"),
        ("", "the base has no module ''"),
        ("features.1", "module 'features.1' of the base has no weights"),
        ("classifier", "module 'classifier' of the base comes after the layers of the head"),
        ("classifier.1", "module 'classifier.1' of the base comes after the layers of the head"),
        ("classifier.*", "no module of the base with weights that can be trained matches 'classifier.\\*'"),
        ("last:0", "train='last:0': give last:1 to last:9, the number of blocks of the base"),
        ("last:10", "train='last:10': give last:1 to last:9"),
        ("last:-1", "give last:1 to last:9"),
        ("last:", "give last:1 to last:9"),
    ],
)
def test_wrong_modules_are_one_line(squeezenet: Base, train: str, message: str) -> None:
    network = build_network(squeezenet, ["avgpool"], "none", outputs=2)
    with pytest.raises(SettingsError, match=message) as caught:
        freeze(network, [train])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "module"), [("resnet10t", "fc"), ("mobilenetv3_small_050", "classifier")])
def test_a_classifier_that_is_reached_and_never_run_is_no_part_of_the_network(name: str, module: str) -> None:
    """The features of timm's models are the input of their classifier."""
    pytest.importorskip("timm")
    network = build_network(load_base(f"timm:{name}", "none"), ["avgpool"], "none", outputs=2)
    with pytest.raises(SettingsError, match=f"'{module}' of the base comes after the layers of the head"):
        freeze(network, [module])
    for train in ("last:1", "all"):
        freeze(network, [train])
        network.eval().zero_grad()
        network(images(side=224)).sum().backward()
        assert [one for one, part in network.named_parameters() if part.requires_grad and part.grad is None] == []


CHOICES = [
    ("squeezenet1_1", "last:2", {"features.11", "features.12"}),
    ("squeezenet1_1", "features.1?", {"features.10", "features.11", "features.12"}),
    ("resnet18", "last:1", {"layer4.1"}),
    ("resnet18", "last:3", {"layer3.1", "layer4"}),
    ("resnet18", "layer4.*.conv1", {"layer4.0.conv1", "layer4.1.conv1"}),
    ("vit_b_32", "last:2", {"encoder.layers.encoder_layer_10", "encoder.layers.encoder_layer_11", "encoder.ln"}),
    ("mobilenet_v3_small", "last:2", {"features.11", "features.12"}),
]


@pytest.mark.parametrize(("name", "train", "wanted"), CHOICES)
def test_modules_by_pattern_and_from_the_end(name: str, train: str, wanted: set[str]) -> None:
    network = build_network(without_numbers(name), ["avgpool"], "none", outputs=2)
    freeze(network, [train])
    moving = {named for named, one in network.features.network.named_parameters() if one.requires_grad}
    assert moving == {
        named
        for named, _ in network.features.network.named_parameters()
        if any(named.startswith(f"{module}.") for module in wanted)
    }


def test_it_starts_from_a_fitted_head_and_gives_it_back(squeezenet: Base) -> None:
    network = build_network(squeezenet, ["avgpool"], "none", outputs=2).eval()
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(2, 512)), np.array([1.0, 2.0])
    with torch.no_grad():
        features = network.embed(images())
        standardise(network, features)
        start_from(network, weight, bias)
        expected = features.numpy() @ weight.T + bias
        np.testing.assert_allclose(network(images()).numpy(), expected, rtol=1e-4, atol=1e-4)
    again, offset = folded_head(network)
    np.testing.assert_allclose(again, weight, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(offset, bias, rtol=1e-4)
    with pytest.raises(HeadError, match="weights 3 x 512, these classes and layers need 2 x 512"):
        start_from(network, np.zeros((3, 512)), np.zeros(3))


def test_the_head_sees_features_of_mean_0_and_spread_1_at_most(squeezenet: Base) -> None:
    network = build_network(squeezenet, ["avgpool"], "none", outputs=2).eval()
    features = torch.tensor([[0.0, 5.0, 1.0], [2.0, 5.0, 1.001]]).repeat(1, 171)[:, :512]
    standardise(network, features)
    seen = (features - network.mean) / network.std
    assert float(seen[:, 0].abs().max()) == 1.0
    assert float(seen[:, 1].abs().max()) == 0.0
    assert float(seen[:, 2].abs().max()) < 0.02, "what hardly moves is not blown up"
    standardise(network, torch.full((4, 512), 7.0))
    assert bool((network.std == 1).all())


def test_a_layer_of_small_numbers_is_not_lost_beside_one_of_large_ones(squeezenet: Base) -> None:
    network = build_network(squeezenet, ["features.3", "avgpool"], "avg", outputs=2)
    features = torch.randn(64, 128 + 512, generator=torch.Generator().manual_seed(0))
    features[:, :128] *= 1e-4
    standardise(network, features)
    seen = ((features - network.mean) / network.std).std(dim=0, correction=0)
    torch.testing.assert_close(seen, torch.ones_like(seen), rtol=1e-3, atol=1e-3)


def test_groups_have_their_own_rates(squeezenet: Base) -> None:
    network = build_network(squeezenet, ["avgpool"], "none", outputs=2)
    freeze(network, ["features.12"])
    base, head = parameter_groups(network, lr=0.1, base_lr=0.01)
    assert (base["lr"], head["lr"]) == (0.01, 0.1)
    assert len(base["params"]) == 6
    assert [tuple(parameter.shape) for parameter in head["params"]] == [(2, 512), (2,)]
    freeze(network, ["head"])
    assert [group["lr"] for group in parameter_groups(network, lr=0.1)] == [0.1]


def test_rates_fall_from_block_to_block_and_norms_and_biases_have_no_decay(resnet: Base) -> None:
    network = build_network(resnet, ["avgpool"], "none", outputs=2)
    count = len(blocks(network.features.network))
    freeze(network, [f"last:{count - 1}"])
    groups = parameter_groups(network, lr=1.0, layer_decay=0.5, weight_decay=0.1)
    names = {parameter: name for name, parameter in network.named_parameters()}
    found = {names[one]: (group["lr"], group["weight_decay"]) for group in groups for one in group["params"]}
    assert count == 9
    assert not any(".network.conv1." in name or ".network.bn1." in name for name in found), "the stem"
    assert found["features.network.layer4.1.conv2.weight"] == (0.5, 0.1)
    assert found["features.network.layer4.1.bn2.weight"] == (0.5, 0.0)
    assert found["features.network.layer4.0.downsample.0.weight"] == (0.25, 0.1)
    assert found["features.network.layer1.0.conv1.weight"] == (0.5**8, 0.1)
    assert found["features.network.layer1.0.bn1.bias"] == (0.5**8, 0.0)
    assert [found[name] for name in ("head.weight", "head.bias")] == [(1.0, 0.1), (1.0, 0.0)]
    assert names[groups[-1]["params"][-1]] == "head.bias", "whose rate is the one told"
    assert {name for name, one in network.named_parameters() if one.requires_grad} == set(found)
    slow = parameter_groups(network, lr=1.0, base_lr=0.01, layer_decay=0.5)
    assert max(group["lr"] for group in slow[:-1]) == 0.01


def test_what_is_in_no_block_moves_as_the_first() -> None:
    network = build_network(load_base("vit_b_16", "none", size=224), ["cls"], "none", outputs=2)
    count = len(blocks(network.features.network))
    groups = parameter_groups(network, lr=1.0, layer_decay=0.5)
    names = {parameter: name for name, parameter in network.named_parameters()}
    rates = {names[one]: group["lr"] for group in groups for one in group["params"]}
    assert rates["features.network.encoder.pos_embedding"] == rates["features.network.conv_proj.weight"] == 0.5**count


def test_a_snapshot_brings_back_every_bit(resnet: Base) -> None:
    network = build_network(resnet, ["avgpool"], "none", outputs=3)
    freeze(network, ["layer4"])
    kept, before = snapshot(network), copied(network)
    assert not any(name.endswith("layer3.0.conv1.weight") for name in kept)
    take_steps(network)
    assert changed(network, before)
    restore(network, kept)
    assert not changed(network, before)


def test_tuned_weights_go_back_into_the_base(squeezenet: Base) -> None:
    network = build_network(squeezenet, ["avgpool"], "none", outputs=3)
    freeze(network, ["features.12"])
    take_steps(network)
    own = load_base("squeezenet1_1", "embedded")
    put_back(network, own)
    names = {
        name
        for name, value in own.module.state_dict().items()
        if not torch.equal(value, squeezenet.module.state_dict()[name])
    }
    assert {name.rsplit(".", 2)[0] for name in names} == {"features.12"}
    assert digest(squeezenet.module) == squeezenet.digest, "the base itself is nobody's to change"
    torch.testing.assert_close(
        build_network(own, ["avgpool"], "none", outputs=3).features(images())[0],
        network.eval().features(images())[0],
    )
