"""The list of bases, and its filters."""

from __future__ import annotations

import numpy as np
import pytest
from torchvision import models

from pipeline.bases import load_base
from pipeline.commands.bases import describe_modules, list_bases
from pipeline.errors import BaseError, SettingsError
from pipeline.training.network import build_network, freeze


def test_the_list_holds_every_classification_model() -> None:
    found = list_bases()
    assert [info.name for info in found] == models.list_models(module=models)
    by_name = {info.name: info for info in found}
    assert by_name["squeezenet1_1"].weights == ("IMAGENET1K_V1", "embedded")
    assert by_name["resnet50"].weights == ("IMAGENET1K_V2", "IMAGENET1K_V1")
    assert by_name["vgg16"].layers == ("avgpool", "pool5", "fc6", "fc7")
    assert (by_name["resnet18"].dimensions, by_name["resnet18"].parameters) == (512, 11_689_512)
    assert by_name["resnet18"].to_json()["dimensions"] == 512


def test_filters_of_the_list() -> None:
    assert [info.name for info in list_bases("vit_b")] == ["vit_b_16", "vit_b_32"]
    assert [info.name for info in list_bases("resnet?8")] == ["resnet18"]
    assert list_bases("nothing") == []
    (info,) = list_bases("timm:tf_efficientnet_lite0")
    assert (info.name, info.dimensions) == ("timm:tf_efficientnet_lite0", 1280)
    assert np.isclose(info.parameters, 4_652_008)


def test_modules_are_told_without_weights_or_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", "/nowhere")
    result = describe_modules("vgg16")
    assert result.layers == {"avgpool": (512,), "pool5": (512, 7, 7), "fc6": (4096,), "fc7": (4096,)}
    by_name = {one.module.name: one for one in result.modules}
    assert (by_name["features"].module.shape, by_name["features"].module.parameters) == ((512, 7, 7), 14_714_688)
    assert (result.parameters, result.trained, by_name["features"].state) == (138_357_544, None, "")
    assert "state" not in result.to_json()["modules"][0]


def test_marked_is_what_a_fine_tuning_trains() -> None:
    result = describe_modules("resnet18", train=["layer4.1", "bn1"])
    states = {one.module.name: one.state for one in result.modules}
    assert (states["bn1"], states["layer4"], states["layer4.0"]) == ("trained", "partly trained", "frozen")
    assert (states["layer4.1.conv2"], states["fc"], states["layer4.1.relu"]) == ("trained", "unused", "")
    network = build_network(load_base("resnet18", "none"), ["avgpool"], "none", outputs=2)
    freeze(network, ["layer4.1", "bn1"])
    assert result.trained == sum(p.numel() for p in network.features.parameters() if p.requires_grad)
    whole = describe_modules("resnet18", train=["all"])
    assert whole.trained == whole.parameters - 513_000
    assert describe_modules("resnet18", train=["head"]).trained == 0
    early = {one.module.name: one.state for one in describe_modules("resnet18", layer=["layer2"]).modules}
    assert (early["layer2"], early["layer3"]) == ("trained", "unused")


def test_what_cannot_be_described_says_so() -> None:
    with pytest.raises(SettingsError, match="'fc' of the base comes after"):
        describe_modules("resnet18", train=["fc"])
    with pytest.raises(SettingsError, match="did you mean 'layer4'"):
        describe_modules("resnet18", train=["layer44"])
    with pytest.raises(BaseError, match="did you mean 'resnet18'"):
        describe_modules("resnt18")
    with pytest.raises(BaseError, match="'fc7'"):
        describe_modules("resnet18", layer=["fc7"])


def test_each_line_of_the_tree_is_a_module() -> None:
    heading, *lines, total = describe_modules("squeezenet1_1", train=["features.12"]).summary().splitlines()
    assert heading.split() == ["layer", "or", "module", "kind", "output", "parameters"]
    assert lines[0].split() == ["avgpool", "layer", "512"]
    assert "      features.12.squeeze     Conv2d" not in lines  # two spaces a step
    assert any(line.startswith("    features.12.squeeze  ") and line.endswith("trained") for line in lines)
    assert total == "squeezenet1_1, input 3 x 224 x 224: 1,235,496 parameters, 197,184 trained beside the head"
