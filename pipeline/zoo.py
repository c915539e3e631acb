"""What is known of the networks that serve as bases: how each is built, where its layers are, what it wants
to see.

`ZOOS` maps a prefix of names to the collection behind it: none for torchvision's classification models,
``timm:`` for timm's models, ``scratch:`` for networks without published weights.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torchvision import models

from pipeline.errors import BaseError
from pipeline.images.transform import InputTransform
from pipeline.layers import FeatureNetwork, Tap
from pipeline.registry import nearest
from pipeline.weights import State, download, first_line, fit_state, without_memory

Aliases = Mapping[str, Tap]


@dataclass(frozen=True)
class Family:
    """The layers of a family of networks by the names that the field gives them.

    `last` is the prefix of its last layer's weights, `classifier` of all that only class scores need;
    `sideways` is a pattern of the modules whose maps are (B, H, W, C).
    """

    aliases: Aliases
    last: str
    classifier: tuple[str, ...] = ()
    sideways: str | None = None

    @property
    def replaceable(self) -> tuple[str, ...]:
        """Prefixes of the weights that a file may lack or have otherwise; the last layer's comes first."""
        return (self.last, *self.classifier)


def _mean(module: str, side: Any = "output") -> Tap:
    return Tap(module, side, "mean")


def _family(avgpool: Tap, pool5: Tap, last: str, *classifier: str, **others: Tap) -> Family:
    return Family({"avgpool": avgpool, "pool5": pool5, **others}, last, classifier)


#: By torchvision's own module names. `avgpool` is the globally pooled embedding before the classifier,
#: `pool5` the last map before that pooling; where a network ends in a norm, the embedding is what comes out
#: of it.
FAMILIES: dict[str, Family] = {
    "alexnet": _family(
        _mean("features"), Tap("avgpool"), "classifier.6.", "classifier.",
        fc6=Tap("classifier.2"), fc7=Tap("classifier.5"),
    ),
    "convnext": _family(Tap("classifier.1"), Tap("features"), "classifier.2.", "classifier."),
    "densenet": _family(Tap("classifier", "input"), Tap("features", part="relu"), "classifier."),
    "efficientnet": _family(_mean("avgpool"), Tap("features"), "classifier."),
    "googlenet": _family(_mean("avgpool"), Tap("inception5b"), "fc.", "aux1.", "aux2."),
    "inception": _family(_mean("avgpool"), Tap("Mixed_7c"), "fc.", "AuxLogits."),
    "maxvit": _family(Tap("classifier.2"), Tap("classifier", "input"), "classifier.5.", "classifier."),
    "mnasnet": _family(Tap("classifier", "input"), Tap("layers"), "classifier."),
    "mobilenetv2": _family(Tap("classifier", "input"), Tap("features"), "classifier."),
    "mobilenetv3": _family(Tap("classifier", "input"), Tap("features"), "classifier.3.", "classifier."),
    "regnet": _family(_mean("avgpool"), Tap("trunk_output"), "fc."),
    "resnet": _family(_mean("avgpool"), Tap("layer4"), "fc."),
    "shufflenetv2": _family(Tap("fc", "input"), Tap("conv5"), "fc."),
    "squeezenet": _family(_mean("features"), Tap("features"), "classifier.1."),
    "swin_transformer": Family(
        {"avgpool": Tap("head", "input"), "pool5": Tap("avgpool", "input")},
        "head.",
        sideways=r"(features(?!\.0\.0)|norm)\b"
    ),
    "vgg": _family(
        _mean("features"), Tap("avgpool"), "classifier.6.", "classifier.",
        fc6=Tap("classifier.1"), fc7=Tap("classifier.4"),
    ),
    "vision_transformer": Family(
        {
            "avgpool": Tap("heads", "input"),
            "cls": Tap("encoder", part="class token"),
            "tokens": Tap("encoder", part="tokens"),
        },
        "heads.",
    ),
}  # fmt: skip


#: Length of the embedding of every base, so that listing them builds none; a test measures them again.
# fmt: off
WIDTHS = {
    "alexnet": 256, "convnext_base": 1024, "convnext_large": 1536, "convnext_small": 768, "convnext_tiny":
    768, "densenet121": 1024, "densenet161": 2208, "densenet169": 1664, "densenet201": 1920,
    "efficientnet_b0": 1280, "efficientnet_b1": 1280, "efficientnet_b2": 1408, "efficientnet_b3": 1536,
    "efficientnet_b4": 1792, "efficientnet_b5": 2048, "efficientnet_b6": 2304, "efficientnet_b7": 2560,
    "efficientnet_v2_l": 1280, "efficientnet_v2_m": 1280, "efficientnet_v2_s": 1280, "googlenet": 1024,
    "inception_v3": 2048, "maxvit_t": 512, "mnasnet0_5": 1280, "mnasnet0_75": 1280, "mnasnet1_0": 1280,
    "mnasnet1_3": 1280, "mobilenet_v2": 1280, "mobilenet_v3_large": 960, "mobilenet_v3_small": 576,
    "regnet_x_16gf": 2048, "regnet_x_1_6gf": 912, "regnet_x_32gf": 2520, "regnet_x_3_2gf": 1008,
    "regnet_x_400mf": 400, "regnet_x_800mf": 672, "regnet_x_8gf": 1920, "regnet_y_128gf": 7392,
    "regnet_y_16gf": 3024, "regnet_y_1_6gf": 888, "regnet_y_32gf": 3712, "regnet_y_3_2gf": 1512,
    "regnet_y_400mf": 440, "regnet_y_800mf": 784, "regnet_y_8gf": 2016, "resnet101": 2048, "resnet152": 2048,
    "resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnext101_32x8d": 2048, "resnext101_64x4d": 2048,
    "resnext50_32x4d": 2048, "shufflenet_v2_x0_5": 1024, "shufflenet_v2_x1_0": 1024, "shufflenet_v2_x1_5":
    1024, "shufflenet_v2_x2_0": 2048, "squeezenet1_0": 512, "squeezenet1_1": 512, "swin_b": 1024, "swin_s":
    768, "swin_t": 768, "swin_v2_b": 1024, "swin_v2_s": 768, "swin_v2_t": 768, "vgg11": 512, "vgg11_bn": 512,
    "vgg13": 512, "vgg13_bn": 512, "vgg16": 512, "vgg16_bn": 512, "vgg19": 512, "vgg19_bn": 512, "vit_b_16":
    768, "vit_b_32": 768, "vit_h_14": 1280, "vit_l_16": 1024, "vit_l_32": 1024, "wide_resnet101_2": 2048,
    "wide_resnet50_2": 2048,
}
# fmt: on


@dataclass(frozen=True)
class Plan:
    """One base with one set of weights, before it is built."""

    family: Family
    build: Callable[[int], nn.Module]
    classes: int
    transform: InputTransform
    categories: tuple[str, ...] | None


class Zoo(Protocol):
    """A collection of networks."""

    def names(self) -> list[str]:
        """Every network, sorted."""

    def weights(self, name: str) -> list[str]:
        """The published weights of a network, the default first."""

    def plan(self, name: str, weights: str | None) -> Plan:
        """How to build `name` for `weights` (a name from `weights`), or for the default ones with None."""

    def fetch(self, name: str, weights: str) -> State:
        """Published weights; raises `BaseError` where they cannot be had."""

    def size(self, name: str) -> tuple[int, int] | None:
        """Length of the embedding and number of parameters, where they are known without building it."""

    def adapt(self, name: str, state: State) -> State:
        """Weights under the names that networks have today."""


class TorchvisionZoo:
    """Every classification model of the installed torchvision."""

    def names(self) -> list[str]:
        return list(models.list_models(module=models))

    def weights(self, name: str) -> list[str]:
        published = models.get_model_weights(name)
        default = published.DEFAULT.name
        return [default, *(entry.name for entry in published if entry.name != default)]

    def plan(self, name: str, weights: str | None) -> Plan:
        published = models.get_model_weights(name)
        entry = published[weights or published.DEFAULT.name]
        categories = entry.meta.get("categories")
        return Plan(
            family=self._family(name),
            build=lambda classes: self._build(name, classes, entry),
            classes=1000,
            transform=_of_torchvision(entry.transforms()),
            categories=tuple(categories) if categories else None,
        )

    def _family(self, name: str) -> Family:
        module = models.get_model_builder(name).__module__.rsplit(".", 1)[-1]
        if module not in FAMILIES:
            raise BaseError(f"{name} is of the family {module!r}, whose layers are not known here yet")
        return FAMILIES[module]

    def _build(self, name: str, classes: int, entry: Any) -> nn.Module:
        options: dict[str, Any] = {"num_classes": classes}
        if name in ("googlenet", "inception_v3"):
            # As with published weights: they expect another normalisation and translate the usual one.
            options |= {"transform_input": True, "aux_logits": True, "init_weights": True}
        if name.startswith("vit_"):
            options["image_size"] = entry.meta["min_size"][0]
        return models.get_model_builder(name)(weights=None, **options)  # type: ignore[no-any-return]

    def fetch(self, name: str, weights: str) -> State:
        entry = models.get_model_weights(name)[weights]
        state = download(entry.url, base=name, weights=weights)
        if entry.meta.get("categories") is None:  # features only: what stands in the classifier is no number
            state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
        return state

    def size(self, name: str) -> tuple[int, int] | None:
        if name not in WIDTHS:
            return None
        return WIDTHS[name], models.get_model_weights(name).DEFAULT.meta["num_params"]

    def adapt(self, name: str, state: State) -> State:
        if name.startswith("densenet"):
            old = re.compile(
                r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
            )
            return {old.sub(r"\1\2", key): value for key, value in state.items()}
        if name.startswith("mnasnet") and not hasattr(state, "_metadata"):
            return _Versioned(state)
        return state


class _Versioned(dict[str, torch.Tensor]):
    """MNASNet asks for a version, which safetensors files do not keep; published weights are of this one."""

    _metadata = {"": {"version": 2}}  # noqa: RUF012 - an attribute by torch's convention


def _of_torchvision(preset: Any) -> InputTransform:
    side, crop = preset.resize_size[0], preset.crop_size[0]
    return InputTransform(
        resize=(side, side),
        crop=(crop, crop),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


class TimmZoo:
    """Every model of timm, with its own data configuration."""

    def names(self) -> list[str]:
        return list(_timm().list_models())

    def weights(self, name: str) -> list[str]:
        tags = [full.partition(".")[2] or "DEFAULT" for full in _timm().list_pretrained(f"{name}.*")]
        config = _timm().get_pretrained_cfg(name)
        default = config.tag if config is not None else None
        return sorted(tags, key=lambda tag: tag != default)

    def plan(self, name: str, weights: str | None) -> Plan:
        full = f"{name}.{weights}" if weights else name
        network = built(lambda: _timm().create_model(full, pretrained=False), f"timm:{name}")
        config = network.pretrained_cfg
        classifiers = config.get("classifier") or "head"
        classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
        if classifiers[0] not in dict(network.named_modules()):
            raise BaseError(f"timm:{name} has no classifier, so that it is not known which layer is its embedding")
        return Plan(
            family=_timm_family(network, classifiers),
            build=lambda classes: _timm().create_model(full, pretrained=False, num_classes=classes),
            classes=config.get("num_classes", 1000),
            transform=_of_timm(_timm().data.resolve_model_data_config(network)),
            categories=None,
        )

    def fetch(self, name: str, weights: str) -> State:
        full = f"{name}.{weights}" if weights != "DEFAULT" else name
        config = built(lambda: _timm().create_model(full, pretrained=False), f"timm:{name}").pretrained_cfg
        url, file_name = config.get("url"), f"timm-{full}.safetensors"
        if config.get("hf_hub_id"):
            url = f"https://huggingface.co/{config['hf_hub_id']}/resolve/main/model.safetensors"
        if not url:
            raise BaseError(f"timm:{name} has no published weights {weights}; give --weights FILE, or none")
        return download(url, base=f"timm:{name}", weights=weights, file_name=file_name)

    def size(self, name: str) -> tuple[int, int] | None:
        return None

    def adapt(self, name: str, state: State) -> State:
        return state


def _timm() -> Any:
    try:
        import timm
        import timm.data
    except ImportError:
        raise BaseError(
            "bases named timm:... need timm; install it with pip install 'cached-feature-pipeline[timm]'"
        ) from None
    return timm


def _timm_family(network: Any, classifiers: tuple[str, ...]) -> Family:
    modules = dict(network.named_modules())
    aliases = {"avgpool": _mean(classifiers[0], "input")}
    pooling = next((name for name in ("global_pool", "head.global_pool") if name in modules), None)
    if pooling is not None:
        aliases["pool5"] = Tap(pooling, "input", channels_last=_is_sideways(network))
    if hasattr(network, "cls_token") and "norm" in modules:
        aliases["cls"] = Tap("norm", part="class token")
        aliases["tokens"] = Tap("norm", part="tokens", prefix=getattr(network, "num_prefix_tokens", 1))
    last, *others = (f"{name}." for name in classifiers)
    return Family(aliases, last, tuple(others), sideways="" if _is_sideways(network) else None)


def _is_sideways(network: Any) -> bool:
    return str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")


def _of_timm(config: dict[str, Any]) -> InputTransform:
    height, width = config["input_size"][-2:]
    share = config["crop_pct"]
    fits = {"center": "shortest", "squash": "stretch", "border": "longest"}
    return InputTransform(
        resize=(int(height / share), int(width / share)),
        crop=(height, width),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        fit=fits[config["crop_mode"]],  # type: ignore[arg-type]
    )


class ScratchZoo:
    """Networks that nobody published weights of: what transferred features are compared with."""

    def names(self) -> list[str]:
        return ["cnn"]

    def weights(self, name: str) -> list[str]:
        return []

    def size(self, name: str) -> tuple[int, int] | None:
        return None

    def plan(self, name: str, weights: str | None) -> Plan:
        return Plan(
            family=_family(_mean("features"), Tap("features"), "classifier."),
            build=_two_layer_cnn,
            classes=1000,
            transform=InputTransform(resize=(224, 224), crop=(224, 224)),
            categories=None,
        )

    def fetch(self, name: str, weights: str) -> State:
        raise BaseError(f"scratch:{name} has no published weights; train it from random ones with --weights none")

    def adapt(self, name: str, state: State) -> State:
        return state


def _two_layer_cnn(classes: int) -> nn.Module:
    """Two convolutions with batch norm and pooling, and a linear layer on the map of 32 x 56 x 56."""
    layers = [
        layer
        for before, after in ((3, 16), (16, 32))
        for layer in (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2))
    ]
    classifier = nn.Linear(32 * 56 * 56, classes)
    parts = {"features": nn.Sequential(*layers), "flatten": nn.Flatten(), "classifier": classifier}
    return nn.Sequential(OrderedDict(parts))


ZOOS: dict[str, Zoo] = {"": TorchvisionZoo(), "timm:": TimmZoo(), "scratch:": ScratchZoo()}


def prefix_of(base: str) -> str:
    """What stands before the name of a base and says which collection it is in; empty for torchvision's."""
    return next((prefix for prefix in ZOOS if prefix and base.startswith(prefix)), "")


def find_zoo(base: str) -> tuple[Zoo, str]:
    """The collection that `base` is in and its name there. Raises `BaseError` with the near name."""
    prefix = prefix_of(base)
    zoo, name = ZOOS[prefix], base.removeprefix(prefix)
    known = zoo.names()
    if name not in known:
        near = (not prefix and _elsewhere(name)) or nearest(base, [prefix + one for one in known])
        listing = f"pipeline bases {prefix}".strip()
        raise BaseError(f"unknown base {base!r}{near}; {listing} lists the {len(known)} there are")
    return zoo, name


def _elsewhere(name: str) -> str:
    """A network of timm, where that is installed, whose name holds `name`."""
    try:
        holding = sorted((known for known in ZOOS["timm:"].names() if name in known), key=len)
    except BaseError:
        return ""
    return f" (did you mean 'timm:{holding[0]}'?)" if holding else ""


def built(build: Callable[[], Any], name: str) -> Any:
    """The network that `build` makes, without its numbers where it can be made so. Raises `BaseError`.

    Some networks run themselves while they are made, for which they need numbers.
    """
    try:
        with without_memory():
            return build()
    except (NotImplementedError, RuntimeError):
        try:
            return build()
        except Exception as error:  # the code of a thousand networks raises what it likes
            raise BaseError(f"{name} cannot be built: {first_line(error)}") from error


def measured_size(plan: Plan, name: str) -> tuple[int, int]:
    """Length of the embedding and number of parameters, from building the network without its numbers."""
    network = built(lambda: plan.build(plan.classes), name).eval()
    taps = [plan.family.aliases["avgpool"]]
    (shape,) = FeatureNetwork(network, taps, "flatten", input_size=plan.transform.size).shapes
    return shape[0], sum(parameter.numel() for parameter in network.parameters())


def fitted(plan: Plan, state: State, *, source: str) -> tuple[nn.Module, frozenset[str]]:
    """The network with `state`, and the names that it lacks; raises `BaseError` where they do not fit."""

    def build(classes: int) -> nn.Module:
        network: nn.Module = built(lambda: plan.build(classes), source)
        return network

    return fit_state(state, build, classes=plan.classes, classifier=plan.family.replaceable, source=source)
