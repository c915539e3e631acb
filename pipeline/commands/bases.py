"""`pipeline bases`: the networks that can serve as bases, with their layers, widths and published weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.bases import ZOOS, prefix_of
from pipeline.bases.weights import first_line
from pipeline.bases.zoo import Zoo, measured_size

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
