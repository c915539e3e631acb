"""Networks without published weights, to be trained from random ones: names begin with ``scratch:``."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from pipeline.bases.taps import Tap
from pipeline.bases.weights import State
from pipeline.bases.zoo import Plan, family, mean_of
from pipeline.errors import BaseError
from pipeline.images.transform import InputTransform


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
            family=family(mean_of("features"), Tap("features"), "classifier."),
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
