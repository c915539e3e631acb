"""What is known of a network that serves as a base: how it is built, where its layers are, what it wants to see.

A collection of networks is a `Zoo`, one file each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from pipeline.bases.taps import FeatureNetwork, Tap
from pipeline.bases.weights import State, first_line, fit_state, without_memory
from pipeline.errors import BaseError
from pipeline.images.transform import InputTransform

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


def mean_of(module: str, side: Any = "output") -> Tap:
    return Tap(module, side, "mean")


def family(avgpool: Tap, pool5: Tap, last: str, *classifier: str, **others: Tap) -> Family:
    return Family({"avgpool": avgpool, "pool5": pool5, **others}, last, classifier)


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
