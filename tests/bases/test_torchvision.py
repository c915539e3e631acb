"""torchvision's networks: every family against an embedding written down by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import Reference, hooked, images
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from pipeline.bases import ZOOS, Base, feature_network, load_base
from pipeline.bases.torchvision import FAMILIES, WIDTHS
from pipeline.errors import BaseError


def mean_of_features(network: nn.Module, images: Tensor) -> Tensor:
    return network.features(images).mean((2, 3))


#: A small member of each family, a size that it takes, and its embedding written down by hand.
REFERENCES: dict[str, tuple[str, int, Reference]] = {
    "alexnet": ("alexnet", 96, mean_of_features),
    "convnext": ("convnext_tiny", 64, lambda n, x: n.classifier[1](n.classifier[0](n.avgpool(n.features(x))))),
    "densenet": ("densenet121", 64, lambda n, x: functional.relu(n.features(x)).mean((2, 3))),
    "efficientnet": ("efficientnet_b0", 64, mean_of_features),
    "googlenet": ("googlenet", 64, hooked("avgpool")),
    "inception": ("inception_v3", 96, hooked("avgpool")),
    "maxvit": ("maxvit_t", 224, hooked("classifier.2")),
    "mnasnet": ("mnasnet0_5", 64, lambda n, x: n.layers(x).mean((2, 3))),
    "mobilenetv2": ("mobilenet_v2", 64, mean_of_features),
    "mobilenetv3": ("mobilenet_v3_small", 64, mean_of_features),
    "regnet": ("regnet_x_400mf", 64, hooked("avgpool")),
    "resnet": ("resnet18", 64, hooked("avgpool")),
    "shufflenetv2": ("shufflenet_v2_x0_5", 64, lambda n, x: hooked("conv5")(n, x).unflatten(1, (1024, -1)).mean(2)),
    "squeezenet": ("squeezenet1_0", 64, mean_of_features),
    "swin_transformer": ("swin_t", 64, lambda n, x: n.norm(n.features(x)).mean((1, 2))),
    "vgg": ("vgg11", 64, mean_of_features),
    "vision_transformer": ("vit_b_32", 224, lambda n, x: hooked("encoder")(n, x).unflatten(1, (50, 768))[:, 0]),
}


def test_every_family_has_a_reference() -> None:
    assert set(REFERENCES) == set(FAMILIES)
    zoo = ZOOS[""]
    assert {zoo._family(name) is not None for name in zoo.names()} == {True}


@pytest.mark.parametrize("family", REFERENCES)
def test_embedding_of_every_family(base_of: Callable[[str], Base], family: str) -> None:
    name, size, reference = REFERENCES[family]
    base = base_of(name)
    before = {key: value.clone() for key, value in base.module.state_dict().items()}
    network = feature_network(base, ["avgpool", "pool5"] if "pool5" in base.family.aliases else ["avgpool"])
    with torch.no_grad():
        expected = reference(copy.deepcopy(base.module), images(size))
        embedding, *maps = network(images(size))
    assert embedding.shape == expected.shape == (2, WIDTHS[name])
    assert network.shapes[0] == (WIDTHS[name],)
    scale = expected.abs().max()
    assert (embedding - expected).abs().max() <= 1e-5 * max(1.0, float(scale))
    assert all(found.ndim == 4 for found in maps)
    assert not any(module.training for module in base.module.modules())
    assert not any(parameter.requires_grad for parameter in base.module.parameters())
    assert all(torch.equal(value, before[key]) for key, value in base.module.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOOS[""].names())
def test_every_base_gives_two_images_their_embeddings(name: str) -> None:
    base = load_base(name, "none")
    network = feature_network(base, ["avgpool"])
    pixels = torch.randint(0, 256, (2, *base.transform.size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        (embedding,) = network(base.transform.normalize(pixels))
    assert embedding.shape == (2, WIDTHS[name])
    assert bool(embedding.isfinite().all())


def test_inception_takes_its_aux_heads_and_its_input_as_published() -> None:
    base = load_base("inception_v3", "none")
    assert base.transform.size == (299, 299)
    assert base.module.transform_input
    with pytest.raises(BaseError, match=r"module 'AuxLogits.fc' takes no part in the forward pass"):
        feature_network(base, ["AuxLogits.fc"])


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("mnasnet0_5", {}),
        pytest.param("densenet121", {".norm1.": ".norm.1.", ".conv2.": ".conv.2."}, marks=pytest.mark.slow),
        pytest.param("vit_b_32", {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}, marks=pytest.mark.slow),
    ],
)
def test_old_names_and_files_without_a_version(tmp_path: Path, name: str, old: dict[str, str]) -> None:
    base = load_base(name, "none")
    state = base.module.state_dict()
    for new, before in old.items():
        state = {key.replace(new, before): value for key, value in state.items()}
    save_file(state, tmp_path / "old.safetensors")
    assert load_base(name, str(tmp_path / "old.safetensors")).digest == base.digest


def test_old_names_of_densenet() -> None:
    old = {"features.denseblock1.denselayer1.norm.1.weight": torch.zeros(1), "features.norm0.weight": torch.zeros(1)}
    assert list(ZOOS[""].adapt("densenet121", old)) == [
        "features.denseblock1.denselayer1.norm1.weight",
        "features.norm0.weight",
    ]


def test_features_only_weights_have_no_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"features.0.weight": torch.zeros(2), "classifier.0.weight": torch.full((2,), torch.nan)}
    monkeypatch.setattr("pipeline.bases.torchvision.download", lambda *_, **__: dict(state))
    assert set(ZOOS[""].fetch("vgg16", "IMAGENET1K_FEATURES")) == {"features.0.weight"}
