"""timm's networks against timm's own forward pass, and its transforms."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from networks import images

from pipeline.bases import ZOOS, feature_network, load_base
from pipeline.errors import BaseError


def test_timm_uses_its_own_data_configuration(real_data: Path) -> None:
    base = load_base(
        "timm:tf_efficientnet_lite0", str(real_data / "weights/tf_efficientnet_lite0-imagenet.safetensors")
    )
    assert base.transform.mean == base.transform.std == (0.5, 0.5, 0.5)
    assert base.transform.interpolation == "bicubic"
    assert base.transform.resize == (256, 256)
    network = feature_network(base, ["avgpool", "pool5"])
    with torch.no_grad():
        embedding, maps = network(images(224))
        expected = base.module.forward_head(base.module.forward_features(images(224)), pre_logits=True)
    assert torch.allclose(embedding, expected, rtol=0, atol=1e-5)
    assert maps.shape == (2, 1280, 7, 7)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vit_tiny_patch16_224", ["avgpool", "cls", "tokens"]),
        ("convnext_atto", ["avgpool", "pool5"]),
        ("swin_tiny_patch4_window7_224", ["avgpool", "pool5"]),
    ],
)
def test_timm_embeddings_are_those_before_its_classifier(name: str, layers: list[str]) -> None:
    base = load_base(f"timm:{name}", "none")
    assert list(base.family.aliases) == layers
    network = feature_network(base, layers, "avg")
    with torch.no_grad():
        found = network(images(224))
        expected = base.module.forward_head(base.module.forward_features(images(224)), pre_logits=True)
    assert torch.allclose(found[0], expected, rtol=0, atol=1e-5)
    assert {rows.shape for rows in found} == {expected.shape}


@pytest.mark.parametrize("name", ["resnet50", "vit_base_patch16_224", "convnext_tiny", "efficientnet_b0"])
def test_the_default_weights_of_timm_come_first_and_have_their_own_transform(name: str) -> None:
    zoo = ZOOS["timm:"]
    default = timm.get_pretrained_cfg(name).tag
    assert zoo.weights(name)[0] == default
    assert zoo.plan(name, None).transform == zoo.plan(name, default).transform


def test_without_timm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(BaseError, match=r"pip install 'cached-feature-pipeline\[timm\]'"):
        load_base("timm:resnet18", "none")
