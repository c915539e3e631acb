"""Classification models of torchvision: their layers, widths, transforms and published weights."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torchvision import models

from pipeline.bases.taps import Tap
from pipeline.bases.weights import State, download
from pipeline.bases.zoo import Family, Plan, family, mean_of
from pipeline.errors import BaseError
from pipeline.images.transform import InputTransform

#: By torchvision's own module names. `avgpool` is the globally pooled embedding before the classifier,
#: `pool5` the last map before that pooling; where a network ends in a norm, the embedding is what comes out
#: of it.
FAMILIES: dict[str, Family] = {
    "alexnet": family(
        mean_of("features"), Tap("avgpool"), "classifier.6.", "classifier.",
        fc6=Tap("classifier.2"), fc7=Tap("classifier.5"),
    ),
    "convnext": family(Tap("classifier.1"), Tap("features"), "classifier.2.", "classifier."),
    "densenet": family(Tap("classifier", "input"), Tap("features", part="relu"), "classifier."),
    "efficientnet": family(mean_of("avgpool"), Tap("features"), "classifier."),
    "googlenet": family(mean_of("avgpool"), Tap("inception5b"), "fc.", "aux1.", "aux2."),
    "inception": family(mean_of("avgpool"), Tap("Mixed_7c"), "fc.", "AuxLogits."),
    "maxvit": family(Tap("classifier.2"), Tap("classifier", "input"), "classifier.5.", "classifier."),
    "mnasnet": family(Tap("classifier", "input"), Tap("layers"), "classifier."),
    "mobilenetv2": family(Tap("classifier", "input"), Tap("features"), "classifier."),
    "mobilenetv3": family(Tap("classifier", "input"), Tap("features"), "classifier.3.", "classifier."),
    "regnet": family(mean_of("avgpool"), Tap("trunk_output"), "fc."),
    "resnet": family(mean_of("avgpool"), Tap("layer4"), "fc."),
    "shufflenetv2": family(Tap("fc", "input"), Tap("conv5"), "fc."),
    "squeezenet": family(mean_of("features"), Tap("features"), "classifier.1."),
    "swin_transformer": Family(
        {"avgpool": Tap("head", "input"), "pool5": Tap("avgpool", "input")},
        "head.",
        channels_last=r"(features(?!\.0\.0)|norm)\b"
    ),
    "vgg": family(
        mean_of("features"), Tap("avgpool"), "classifier.6.", "classifier.",
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


class TorchvisionZoo:
    """Classification models of the installed torchvision."""

    def names(self) -> list[str]:
        """List the models, sorted."""
        return list(models.list_models(module=models))

    def weights(self, name: str) -> list[str]:
        """List the published weights of a model, the default first."""
        published = models.get_model_weights(name)
        default = published.DEFAULT.name
        return [default, *(entry.name for entry in published if entry.name != default)]

    def plan(self, name: str, weights: str | None) -> Plan:
        """Plan a model with the transform of `weights`; raise `BaseError` for a family without known layers."""
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
            raise BaseError(f"{name} is of the family {module!r}, whose layers are not known to this version")
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
        """Download published weights, or take them from the download folder; raise `BaseError`."""
        entry = models.get_model_weights(name)[weights]
        state = download(entry.url, base=name, weights=weights)
        if entry.meta.get("categories") is None:  # features only: what stands in the classifier is no number
            state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
        return state

    def size(self, name: str) -> tuple[int, int] | None:
        """Return length of the embedding and number of parameters, from `WIDTHS` and torchvision's records."""
        if name not in WIDTHS:
            return None
        return WIDTHS[name], models.get_model_weights(name).DEFAULT.meta["num_params"]

    def adapt(self, name: str, state: State) -> State:
        """Return weights with today's names for those that old files of densenets and MNASNets have."""
        if name.startswith("densenet"):  # published files have norm.1 for norm1: no name holds a dot any more
            old = re.compile(
                r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
            )
            return {old.sub(r"\1\2", key): value for key, value in state.items()}
        if name.startswith("mnasnet") and not hasattr(state, "_metadata"):
            return _Versioned(state)
        return state


class _Versioned(dict[str, torch.Tensor]):
    """A state dict with the version that MNASNet asks for, of published weights; safetensors files keep none."""

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
