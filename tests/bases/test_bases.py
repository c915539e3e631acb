"""Tests of the bases: every family against an independent reference, layers, weights, and what can be wrong."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from pipeline.bases import ZOOS, Base, feature_network, load_base
from pipeline.bases import weights as weights_module
from pipeline.bases.torchvision import FAMILIES, WIDTHS
from pipeline.bases.zoo import measured_size
from pipeline.commands.bases import list_bases
from pipeline.errors import BaseError, SettingsError

Reference = Callable[[nn.Module, Tensor], Tensor]


def hooked(module: str) -> Reference:
    """What comes out of `module` in a plain forward pass, as rows."""

    def run(network: nn.Module, images: Tensor) -> Tensor:
        kept: list[Tensor] = []
        handle = network.get_submodule(module).register_forward_hook(lambda *call: kept.append(call[-1].clone()))
        network(images)
        handle.remove()
        return kept[-1].flatten(1)

    return run


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

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def base_of() -> Callable[[str], Base]:
    """Bases with random weights, loaded once."""
    kept: dict[str, Base] = {}

    def get(name: str) -> Base:
        if name not in kept:
            kept.clear()  # one at a time: some are large
            kept[name] = load_base(name, "none")
        return kept[name]

    return get


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5))


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOOS[""].names())
def test_known_sizes_are_the_measured_ones(name: str) -> None:
    zoo = ZOOS[""]
    known, measured = zoo.size(name), measured_size(zoo.plan(name, None))
    assert known is not None
    assert known[0] == measured[0]
    assert known[1] == measured[1] or name == "googlenet"  # published without its auxiliary heads


# --- layers


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


def without_numbers(name: str) -> Base:
    """A base that has shapes only."""
    plan = ZOOS[""].plan(name, None)
    with weights_module.without_memory():
        module = plan.build(1000).eval()
    return Base(name, "none", "", module, plan.transform, None, plan.family)


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


def test_inception_takes_its_aux_heads_and_its_input_as_published() -> None:
    base = load_base("inception_v3", "none")
    assert base.transform.size == (299, 299)
    assert base.module.transform_input
    with pytest.raises(BaseError, match=r"module 'AuxLogits.fc' takes no part in the forward pass"):
        feature_network(base, ["AuxLogits.fc"])


@pytest.mark.parametrize(
    ("layers", "pool", "kind", "message"),
    [
        (["avgpol"], "none", BaseError, r"squeezenet1_1 has no layer 'avgpol' \(did you mean 'avgpool'\?\)"),
        (["features.20"], "none", BaseError, r"has no layer 'features.20' \(did you mean 'features.2'"),
        ([""], "none", BaseError, "has no layer ''"),
        ([], "none", SettingsError, "no layer is asked for"),
        (["avgpool", "avgpool"], "none", SettingsError, "'avgpool' is asked for twice"),
        (["avgpool"], "mean", SettingsError, "unknown pool 'mean'"),
    ],
)
def test_layers_that_are_none(layers: list[str], pool: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        feature_network(load_base("squeezenet1_1", "embedded"), layers, pool)


# --- weights


def test_embedded_weights_know_a_cat(real_data: Path) -> None:
    from pipeline.images import decoding

    base = load_base("squeezenet1_1", "embedded")
    assert base.classes is not None
    right = 0
    files = sorted((real_data / "data/cats_dogs/cat").glob("*.jpg"))[:20]
    for file in files:
        shaped = base.transform.shape(decoding.decode(file.read_bytes()))
        with torch.inference_mode():
            scores = base.module(base.transform.normalize(torch.from_numpy(shaped.copy())[None]))
        right += "cat" in base.classes[int(scores.argmax())] or "tabby" in base.classes[int(scores.argmax())]
    assert right >= 12


def test_random_weights_are_seeded_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    before = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING):
        first = load_base("squeezenet1_1", "none")
    assert "RANDOM" in caplog.text
    assert torch.equal(before, torch.random.get_rng_state())
    assert load_base("squeezenet1_1", "none").digest == first.digest
    assert load_base("squeezenet1_1", "none", seed=14).digest != first.digest


def changed(state: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    merged = {**state, **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in merged.items() if value is not None}


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    return load_base("resnet18", "none").module.state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("wrapped", ["bare", "module.", "state_dict"])
def test_the_same_tensors_have_the_same_digest_whatever_holds_them(
    tmp_path: Path, resnet: dict[str, Tensor], suffix: str, wrapped: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {f"module.{name}": value for name, value in resnet.items()} if wrapped == "module." else resnet
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": state} if wrapped == "state_dict" else state, path)
    base = load_base("resnet18", str(path))
    assert base.digest == load_base("resnet18", "none").digest
    assert base.classes is None
    assert base.missing == frozenset()


def test_half_precision_is_read_as_float(tmp_path: Path, resnet: dict[str, Tensor]) -> None:
    save_file(
        {name: value.half() if value.is_floating_point() else value for name, value in resnet.items()},
        tmp_path / "half.safetensors",
    )
    base = load_base("resnet18", str(tmp_path / "half.safetensors"))
    assert {value.dtype for value in base.module.parameters()} == {torch.float32}


def test_another_number_of_classes_is_built(tmp_path: Path, resnet: dict[str, Tensor]) -> None:
    state = changed(resnet, fc__weight=torch.zeros(2, 512), fc__bias=torch.zeros(2))
    save_file(state, tmp_path / "two.safetensors")
    base = load_base("resnet18", str(tmp_path / "two.safetensors"))
    assert feature_network(base, ["fc"]).shapes == [(2,)]


@pytest.mark.parametrize("extra", [{}, {"fc.1.weight": torch.zeros(9, 512), "fc.1.bias": torch.zeros(9)}])
def test_a_classifier_that_is_missing_or_another_is_no_matter_until_it_is_asked_for(
    tmp_path: Path, resnet: dict[str, Tensor], extra: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    state = {**changed(resnet, fc__weight=None, fc__bias=None), **extra}
    save_file(state, tmp_path / "trunk.safetensors")
    base = load_base("resnet18", str(tmp_path / "trunk.safetensors"))
    assert "no classifier that fits" in caplog.text
    with torch.no_grad():
        assert bool(feature_network(base, ["avgpool"])(images(64))[0].isfinite().all())
    with pytest.raises(BaseError, match=r"layer fc of resnet18 needs fc.bias, which .*trunk.safetensors does not have"):
        feature_network(base, ["fc"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv1__weight": None}, r"does not fit: 1 missing \(conv1.weight\)$"),
        ({"stem__weight": torch.zeros(1)}, r"does not fit: 1 unexpected \(stem.weight\)$"),
        (
            {"conv1__weight": torch.zeros(64, 1, 7, 7)},
            r"does not fit: 1 of another shape \(conv1.weight is \(64, 1, 7, 7\) for \(64, 3, 7, 7\)\)$",
        ),
    ],
)
def test_a_file_that_does_not_fit_says_where(
    tmp_path: Path, resnet: dict[str, Tensor], changes: dict[str, Tensor | None], message: str
) -> None:
    save_file(changed(resnet, **changes), tmp_path / "wrong.safetensors")
    with pytest.raises(BaseError, match=message):
        load_base("resnet18", str(tmp_path / "wrong.safetensors"))


def test_weights_of_another_network_are_refused_in_one_line(tmp_path: Path, resnet: dict[str, Tensor]) -> None:
    save_file(resnet, tmp_path / "resnet.safetensors")
    with pytest.raises(BaseError, match=r"missing \(.*, \.\.\.\); 122 unexpected") as caught:
        load_base("squeezenet1_1", str(tmp_path / "resnet.safetensors"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


class Planted:
    """What a malicious file would run."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("planted code ran",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "does not exist"),
        ("text.pt", b"hello", "cannot be read"),
        ("text.safetensors", b"hello", "cannot be read"),
        ("code.pt", Planted(), "cannot be read"),
        ("list.pt", [1, 2], "holds no state dict"),
    ],
)
def test_files_that_hold_no_weights(
    tmp_path: Path, name: str, content: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(BaseError, match=message) as caught:
        load_base("resnet18", str(path))
    assert "\n" not in str(caught.value)
    assert "planted" not in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet81", "none", r"unknown base 'resnet81' \(did you mean 'resnet18'\?\)"),
        ("timm:resnet81", "none", r"unknown base 'timm:resnet81' \(did you mean"),
        ("resnet18", "IMAGENET1K_V3", r"resnet18 has no weights 'IMAGENET1K_V3' \(did you mean 'IMAGENET1K_V1'\?\)"),
        ("resnet18", "embedded", "resnet18 has no embedded weights; squeezenet1_1 has"),
        ("timm:resnet18", "a9_in1k", r"has no weights 'a9_in1k' \(did you mean 'a"),
    ],
)
def test_bases_and_weights_that_are_none(name: str, weights: str, message: str) -> None:
    with pytest.raises(BaseError, match=message):
        load_base(name, weights)


@pytest.mark.parametrize(
    ("name", "file"), [("resnet18", "resnet18-f37072fd.pth"), ("timm:resnet18", "timm-resnet18.a1_in1k.safetensors")]
)
def test_without_a_network_the_error_says_which_file_goes_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.OpenerDirector.open", refuse)
    with pytest.raises(BaseError, match="Network is unreachable") as caught:
        load_base(name)
    assert file in str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints") in str(caught.value)
    assert "--weights FILE" in str(caught.value)
    assert not list(tmp_path.rglob("*.partial"))


def test_weights_in_the_download_folder_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet: dict[str, Tensor]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(resnet, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    base = load_base("resnet18")
    assert base.classes is not None
    assert base.classes[:2] == ("tench", "goldfish")
    assert load_base("resnet18", "IMAGENET1K_V1").digest == base.digest


def test_features_only_weights_have_no_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"features.0.weight": torch.zeros(2), "classifier.0.weight": torch.full((2,), torch.nan)}
    monkeypatch.setattr("pipeline.bases.torchvision.download", lambda *_, **__: dict(state))
    assert set(ZOOS[""].fetch("vgg16", "IMAGENET1K_FEATURES")) == {"features.0.weight"}


# --- timm


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


# --- lists


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
