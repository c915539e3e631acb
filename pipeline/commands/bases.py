"""`pipeline bases`: the networks that can serve as bases, and the modules of one of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.bases import ZOOS, Base, blank_base, feature_network, prefix_of
from pipeline.bases.tree import Module, modules_of
from pipeline.bases.weights import first_line
from pipeline.bases.zoo import Zoo, measured_size
from pipeline.commands.results import Result
from pipeline.text import shown
from pipeline.training.network import Network, build_network, freeze

EMBEDDED = "squeezenet1_1"


@dataclass(frozen=True)
class BaseInfo:
    """One base: `dimensions` is the length of its `avgpool` embedding, `weights` are the published ones."""

    name: str
    layers: tuple[str, ...]
    dimensions: int
    parameters: int
    weights: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def summary(self) -> str:
        """Format one line of a table."""
        size = f"{self.parameters / 1e6:.1f} M"
        weights = ", ".join(self.weights) or "none published"
        return f"{self.name:<28} {self.dimensions:>5}  {size:>8}  {' '.join(self.layers)}  ({weights})"


@dataclass(frozen=True)
class Unusable:
    """A name that is listed and cannot serve as a base, and why."""

    name: str
    cause: str

    def summary(self) -> str:
        """Format one line of the same table."""
        return f"{self.name:<28} cannot be a base: {self.cause}"


def list_bases(filter: str = "") -> list[BaseInfo]:
    """List every base whose name holds `filter` or matches it as a pattern; those of timm for timm:FILTER.

    scratch:FILTER lists networks that have no published weights. Networks that cannot serve as a base are left out.

    >>> [base.name for base in list_bases("resnet18")]
    ['resnet18']
    """
    return [found for found in find_bases(filter) if isinstance(found, BaseInfo)]


def find_bases(filter: str = "") -> Iterator[BaseInfo | Unusable]:
    """Yield what `list_bases` finds, one by one, and what is unusable: to measure the bases of timm takes minutes."""
    prefix = prefix_of(filter)
    wanted = filter.removeprefix(prefix)
    pattern = wanted if any(sign in wanted for sign in "*?[") else f"*{wanted}*"
    zoo = ZOOS[prefix]
    for name in zoo.names():
        if fnmatch.fnmatchcase(name, pattern):
            try:
                yield _info(zoo, prefix, name)
            except Exception as error:  # noqa: BLE001 - the code of a thousand networks raises what it likes
                yield Unusable(prefix + name, first_line(error).removeprefix(f"{prefix}{name} "))


def _info(zoo: Zoo, prefix: str, name: str) -> BaseInfo:
    plan = zoo.plan(name, None)
    dimensions, parameters = zoo.size(name) or measured_size(plan, prefix + name)
    published = zoo.weights(name)
    embedded = ["embedded"] if prefix + name == EMBEDDED else []
    return BaseInfo(
        name=prefix + name,
        layers=tuple(plan.family.aliases),
        dimensions=dimensions,
        parameters=parameters,
        weights=(*published, *embedded),
    )


@dataclass(frozen=True)
class ModuleState:
    """A module, and what becomes of its parameters: trained, partly trained, frozen or unused; nothing where unasked.

    Unused are the modules behind the layers that the head takes.
    """

    module: Module
    state: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the module's fields, and the state where it was asked for."""
        return asdict(self.module) | ({"state": self.state} if self.state else {})


@dataclass(frozen=True)
class ModulesResult(Result):
    """The modules of a base; `layers` are the shapes of the layers that have a name in every base of its family.

    `trained` counts the base's parameters that would be trained, None where that was not asked.
    """

    base: str
    input: tuple[int, int]
    layers: dict[str, tuple[int, ...]]
    modules: list[ModuleState]
    parameters: int
    trained: int | None = None

    def summary(self) -> str:
        """Format the tree, a line a module."""
        rows = [("layer or module", "kind", "output", "parameters", "")]
        rows += [(name, "layer", _times(shape), "", "") for name, shape in self.layers.items()]
        for one in self.modules:
            indented = "  " * one.module.depth + shown(one.module.name)
            count = f"{one.module.parameters:,}" if one.module.parameters else ""
            rows.append((indented, one.module.kind, _times(one.module.shape), count, one.state))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        signs = "<<<><"
        lines = [
            "  ".join(f"{cell:{sign}{width}}" for cell, sign, width in zip(row, signs, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, self._total()])

    def _total(self) -> str:
        size = f"{self.base}, input 3 x {_times(self.input)}: {self.parameters:,} parameters"
        return size if self.trained is None else f"{size}, {self.trained:,} trained beside the head"


def _times(shape: Sequence[int] | None) -> str:
    return "-" if shape is None else " x ".join(map(str, shape))


def describe_modules(name: str, *, train: Sequence[str] = (), layer: Sequence[str] = ()) -> ModulesResult:
    """Describe the modules of the base `name`, which is built without weights: nothing is downloaded.

    `train` are the modules that a fine-tuning would train, `layer` the layers that its head would take (avgpool where
    one of the two is given). Raises `BaseError` for a base or a layer that does not exist, `SettingsError` for a module
    that cannot be trained.

    >>> result = describe_modules("resnet18", train=["layer4"])
    >>> result.layers["avgpool"], result.trained
    ((512,), 8393728)
    """
    base = blank_base(name)
    size = base.transform.size
    aliases = list(base.family.aliases)
    shapes = dict(zip(aliases, feature_network(base, aliases).shapes, strict=True))
    modules = [ModuleState(module) for module in modules_of(base.module, size)]
    parameters = sum(one.numel() for one in base.module.parameters())
    if not (train or layer):
        return ModulesResult(name, size, shapes, modules, parameters)
    network = _frozen(base, train or ("all",), layer or ("avgpool",))
    states = [ModuleState(one.module, _state(network, one.module)) for one in modules]
    trained = sum(one.numel() for one in network.features.parameters() if one.requires_grad)
    return ModulesResult(name, size, shapes, states, parameters, trained)


def _frozen(base: Base, train: Sequence[str], layers: Sequence[str]) -> Network:
    """Return the network that fine-tuning would make, frozen as it would."""
    network = build_network(base, layers, "avg", outputs=1)
    freeze(network, train)
    return network


def _state(network: Network, module: Module) -> str:
    if not module.parameters:
        return ""
    if any(f"{module.name}.".startswith(f"{cut}.") for cut in network.features.unused):
        return "unused"
    learns = {one.requires_grad for one in network.features.network.get_submodule(module.name).parameters()}
    if len(learns) == 2:
        return "partly trained"
    return "trained" if learns == {True} else "frozen" if learns else "unused"
