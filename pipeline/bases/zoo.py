"""Collections of networks: the build, the layers and the input transform of each that can be a base.

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
    """A family of networks: its layers by the names that the field gives them.

    `last` is the prefix of its last layer's weights, `classifier` of all that only class scores need;
    `channels_last` is a pattern of the modules whose maps are (B, H, W, C).
    """

    aliases: Aliases
    last: str
    classifier: tuple[str, ...] = ()
    channels_last: str | None = None

    @property
    def replaceable(self) -> tuple[str, ...]:
        """Prefixes of the weights that a file may lack or have otherwise; the last layer's comes first."""
        return (self.last, *self.classifier)


def mean_of(module: str, side: Any = "output") -> Tap:
    """Return the tap on the global average of a module's map."""
    return Tap(module, side, "mean")


def family(avgpool: Tap, pool5: Tap, last: str, *classifier: str, **others: Tap) -> Family:
    """Return a family with the two layers that every convolutional network has, and `others` by name."""
    return Family({"avgpool": avgpool, "pool5": pool5, **others}, last, classifier)


@dataclass(frozen=True)
class Plan:
    """A base with one set of weights, before it is built."""

    family: Family
    build: Callable[[int], nn.Module]
    classes: int
    transform: InputTransform
    categories: tuple[str, ...] | None


class Zoo(Protocol):
    """A collection of networks."""

    def names(self) -> list[str]:
        """List every network, sorted."""

    def weights(self, name: str) -> list[str]:
        """List the published weights of a network, the default first."""

    def plan(self, name: str, weights: str | None) -> Plan:
        """Plan the build of `name` for `weights` (a name from `weights`), or for the default ones with None."""

    def fetch(self, name: str, weights: str) -> State:
        """Return published weights; raise `BaseError` where they cannot be had."""

    def size(self, name: str) -> tuple[int, int] | None:
        """Return length of the embedding and number of parameters, where they are known without building it."""

    def adapt(self, name: str, state: State) -> State:
        """Return weights under the names that networks have today."""


def built(build: Callable[[], Any], name: str) -> Any:
    """Return the network that `build` makes, without its numbers where it can be made so; raise `BaseError`.

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
    """Return length of the embedding and number of parameters, by building the network without its numbers."""
    network = built(lambda: plan.build(plan.classes), name).eval()
    taps = [plan.family.aliases["avgpool"]]
    (shape,) = FeatureNetwork(network, taps, "flatten", input_size=plan.transform.size).shapes
    return shape[0], sum(parameter.numel() for parameter in network.parameters())


def fitted(plan: Plan, state: State, *, source: str) -> tuple[nn.Module, frozenset[str]]:
    """Build the network with `state`; return it and the names that it lacks; raise `BaseError` where they misfit."""

    def build(classes: int) -> nn.Module:
        network: nn.Module = built(lambda: plan.build(classes), source)
        return network

    return fit_state(state, build, classes=plan.classes, classifier=plan.family.replaceable, source=source)
