"""Taps: named layers of a network that was written to give class scores.

A tap is a place in a network: the input or the output of one of its modules. `FeatureNetwork` runs a network
up to its last tap and no further, and keeps a copy of what passed at each, so that an in-place operation that
follows (``ReLU(inplace=True)``) cannot change it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from pipeline.config import Pool
from pipeline.errors import BaseError, SettingsError
from pipeline.registry import refuse_unknown

Side = Literal["input", "output"]
Part = Literal["all", "mean", "relu", "class token", "tokens"]


@dataclass(frozen=True)
class Tap:
    """A place in a network: the input or output of module `module`, or a part of it.

    ``mean`` is the global average of a map, ``relu`` the map after a ReLU that is no module of its own, and
    of a sequence (B, tokens, D) the ``class token`` is the first and ``tokens`` the mean of those after
    `prefix`.
    """

    module: str
    side: Side = "output"
    part: Part = "all"
    channels_last: bool = False
    prefix: int = 1


class _Finished(Exception):
    """A signal that the last tap has been passed, to leave the forward pass there."""


class FeatureModule(nn.Module):
    """A network of normalised images (B, 3, H, W) to one tensor (B, ...) a layer; `shapes` are those of one image."""

    shapes: list[tuple[int, ...]]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run it."""
        return cast(tuple[Tensor, ...], super().__call__(*inputs))


class FeatureNetwork(FeatureModule):
    """A network cut after the last of its `taps`; forward gives one tensor a tap, in their order.

    `events` is how often taps are passed on the way. The modules that come after the last tap are not in it. Its
    weights are its own: it can be moved and cast.
    """

    def __init__(self, network: nn.Module, taps: Sequence[Tap], pool: Pool, *, input_size: tuple[int, int]) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.pool = pool
        trace = _trace(network, self.taps, input_size)
        self.events = len(trace.events)
        self.unused = trace.unused
        modules = dict(network.named_modules())
        stand_ins: dict[int, Any] = {id(modules[name]): nn.Identity() for name in self.unused}
        self.network: nn.Module = copy.deepcopy(network, stand_ins)
        self._kept = frozenset(self.network.state_dict())
        self.shapes = [
            tuple(_pooled(_part(value, tap), pool, tap).shape[1:])
            for value, tap in zip(trace.values, self.taps, strict=True)
        ]
        self.shapes = [shape or (1,) for shape in self.shapes]

    def depends_on(self, parameter: str) -> bool:
        """Return True where a parameter or buffer of the whole network is in what is left of it."""
        return parameter in self._kept

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run normalised images (B, 3, H, W); return one tensor (B, ...) a tap."""
        values: dict[int, Tensor] = {}
        passed = 0

        def keep(number: int, value: Tensor) -> None:
            nonlocal passed
            passed += 1
            finished = passed == self.events
            values[number] = value if finished else value.clone()
            if finished:
                raise _Finished

        with _tapped(self.network, self.taps, keep):
            try:
                self.network(images)
            except _Finished:
                return tuple(
                    _pooled(_part(values[number], tap), self.pool, tap) for number, tap in enumerate(self.taps)
                )
        raise BaseError("the network ran its layers in another order than for an empty image, so they cannot be tapped")


@dataclass
class _Trace:
    """A trial run: taps in the order in which they were passed, the last value at each, modules that ran afterwards."""

    events: list[int]
    values: list[Tensor]
    unused: frozenset[str]


def _trace(network: nn.Module, taps: Sequence[Tap], input_size: tuple[int, int]) -> _Trace:
    """Run `network` on the meta device, where tensors have shapes and no values."""
    called: list[str] = []
    events: list[int] = []
    values: dict[int, Tensor] = {}
    called_before_last_tap = 0

    def keep(number: int, value: Tensor) -> None:
        nonlocal called_before_last_tap
        events.append(number)
        values[number] = value
        called_before_last_tap = len(called)

    handles = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: called.append(name))
        for name, module in network.named_modules()
    ]
    try:
        with torch.no_grad(), _tapped(network, taps, keep):
            run_on_meta(network, input_size)
    finally:
        for handle in handles:
            handle.remove()
    silent = next((tap.module for number, tap in enumerate(taps) if number not in values), None)
    if silent is not None:
        raise BaseError(f"module {silent!r} takes no part in the forward pass, so it has no features")
    needed = {*called[:called_before_last_tap], *(tap.module for tap in taps)}
    last = taps[events[-1]]
    if last.side == "input" and called[:called_before_last_tap].count(last.module) == 1:
        needed.remove(last.module)  # it is reached, and never run
    unused = frozenset([*called[called_before_last_tap:], last.module]) - needed
    return _Trace(events, [values[number] for number in range(len(taps))], unused)


def run_on_meta(network: nn.Module, input_size: tuple[int, int]) -> None:
    """Run one image of (height, width) as shapes without values; raise what the network raises."""
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shadows = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    torch.func.functional_call(network, shadows, torch.empty(1, 3, *input_size, device="meta"))


@contextmanager
def _tapped(network: nn.Module, taps: Sequence[Tap], keep: Any) -> Iterator[None]:
    """Call `keep(number, value)` whenever something passes a tap, while inside."""
    modules = dict(network.named_modules())
    handles = [_listen(modules[tap.module], number, tap, keep) for number, tap in enumerate(taps)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _listen(module: nn.Module, number: int, tap: Tap, keep: Any) -> RemovableHandle:
    if tap.side == "input":
        return module.register_forward_pre_hook(lambda _module, inputs: keep(number, _tensor(inputs, tap)))
    return module.register_forward_hook(lambda _module, _inputs, output: keep(number, _tensor(output, tap)))


def _tensor(value: Any, tap: Tap) -> Tensor:
    """Return the tensor itself, or the first of several: attention modules give (values, weights)."""
    if isinstance(value, tuple | list) and value:
        value = value[0]
    if not isinstance(value, Tensor):
        raise BaseError(f"module {tap.module!r} gives a {type(value).__name__}, not a tensor")
    return value


def pooled_tap(value: Any, tap: Tap, pool: Pool) -> Tensor:
    """Return what a network gives for `tap`, of what passed there."""
    return _pooled(_part(_tensor(value, tap), tap), pool, tap)


def _part(value: Tensor, tap: Tap) -> Tensor:
    match tap.part:
        case "relu":
            return functional.relu(value)
        case "mean":
            return _pooled(value, "avg", tap)
        case "class token":
            return value[:, 0]
        case "tokens":
            return value[:, tap.prefix :].mean(1)
        case _:
            return value


def _pooled(value: Tensor, pool: Pool, tap: Tap) -> Tensor:
    """Pool a map (B, C, H, W), channels last (B, H, W, C), or a sequence (B, N, C) to rows."""
    if pool == "none":
        return value
    if pool == "flatten":
        return value.flatten(1)
    if value.ndim <= 2:
        return value
    first = 1 if value.ndim == 3 or tap.channels_last else 2
    dims = tuple(range(first, first + value.ndim - 2))
    return value.mean(dims) if pool == "avg" else value.amax(dims)


def check_pool(pool: str) -> Pool:
    """Return `pool` itself; raise `SettingsError` for an unknown one."""
    refuse_unknown("pool", pool, get_args(Pool))
    return cast(Pool, pool)


def find_taps(
    base: str, network: nn.Module, aliases: Mapping[str, Tap], layers: Sequence[str], *, channels_last: str | None
) -> list[Tap]:
    """Return the taps that `layers` name: an alias of this base, else a module; raise `BaseError` with the near name.

    `channels_last` is a pattern of the modules whose maps are (B, H, W, C).
    """
    if not layers:
        raise SettingsError("no layer is given; give at least one, for example avgpool")
    repeated = next((name for name in layers if list(layers).count(name) > 1), None)
    if repeated is not None:
        raise SettingsError(f"layer {repeated!r} is given twice; give it once")
    modules = dict(network.named_modules())
    return [aliases.get(layer) or _module_tap(base, modules, aliases, layer, channels_last) for layer in layers]


def _module_tap(
    base: str, modules: Mapping[str, nn.Module], aliases: Mapping[str, Tap], layer: str, channels_last: str | None
) -> Tap:
    refuse_unknown("layer", layer, [*aliases, *filter(None, modules)], where=base, error=BaseError)
    is_named = channels_last is not None and re.match(channels_last, layer) is not None
    return Tap(layer, channels_last=is_named or _works_on_last(modules[layer]))


def _works_on_last(module: nn.Module) -> bool:
    """Return True for linear layers and layer norms: their maps are channels last, whatever is usual around them."""
    kind = type(module).__name__
    return isinstance(module, nn.Linear) or (kind.startswith("LayerNorm") and not kind.endswith("2d"))
