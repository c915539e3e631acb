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
    """Networks without published weights, for comparison with transferred features."""

    def names(self) -> list[str]:
        """List the networks; there is one."""
        return ["cnn"]

    def weights(self, name: str) -> list[str]:
        """List published weights: none."""
        return []

    def size(self, name: str) -> tuple[int, int] | None:
        """Return None: the size is known only when the network is built."""
        return None

    def plan(self, name: str, weights: str | None) -> Plan:
        """Plan the network, whatever the weights."""
        return Plan(
            family=family(mean_of("features"), Tap("features"), "classifier."),
            build=_two_layer_cnn,
            classes=1000,
            transform=InputTransform(resize=(224, 224), crop=(224, 224)),
            categories=None,
        )

    def fetch(self, name: str, weights: str) -> State:
        """Raise `BaseError`: there is nothing to fetch."""
        raise BaseError(f"scratch:{name} has no published weights; train it from random ones with --weights none")

    def adapt(self, name: str, state: State) -> State:
        """Return the state as it is: names have not changed."""
        return state


def _two_layer_cnn(classes: int) -> nn.Module:
    """Build two convolutions with batch norm and pooling, and a linear layer on the map of 32 x 56 x 56."""
    layers = [
        layer
        for before, after in ((3, 16), (16, 32))
        for layer in (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2))
    ]
    classifier = nn.Linear(32 * 56 * 56, classes)
    parts = {"features": nn.Sequential(*layers), "flatten": nn.Flatten(), "classifier": classifier}
    return nn.Sequential(OrderedDict(parts))
