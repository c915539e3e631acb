"""Base and head as one network, of which only the wanted parts are trained.

    images -> base, up to the layers that the head takes -> joined, standardised -> linear -> logits or number

The rest is frozen, exactly as it was: no gradients, and evaluation mode, so that dropout is off and batch norm neither
uses the batch nor updates its buffers, whatever mode the network is put into.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.bases import Base, feature_network
from pipeline.bases.taps import FeatureNetwork
from pipeline.config import Pool
from pipeline.errors import HeadError, SettingsError
from pipeline.registry import refuse_unknown

State = dict[str, Tensor]
#: Normalised images, float (B, 3, H, W), or what passes a cut, one tensor (B, ...) for each place of it.
Given = Tensor | tuple[Tensor, ...]


class Network(nn.Module):
    """A base up to the layers that its head takes, and the head: one linear layer on standardised features.

    `mean` and `std` (D,) are those of the features; 0 and 1 until `standardise` sets them. They keep one
    learning rate right for every base: without, a step is as large as the base's features happen to be.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: FeatureNetwork, head: nn.Linear) -> None:
        super().__init__()
        self.features = features
        self.head = head
        self.register_buffer("mean", torch.zeros(head.in_features))
        self.register_buffer("std", torch.ones(head.in_features))
        self._behind_cut: tuple[nn.Module, ...] = ()  # in a tuple: its modules are those of the network, under one name
        self.train_only([features, head])

    def forward(self, given: Given) -> Tensor:
        """Compute logits (B, C), or values (B, 1), of normalised images (B, 3, H, W), or of what passes a cut."""
        outputs: Tensor = self.head((self.embed(given) - self.mean) / self.std)
        return outputs

    def embed(self, given: Given) -> Tensor:
        """Compute the features (B, D): the wanted layers side by side."""
        layers = self.features(given) if isinstance(given, Tensor) else self._behind_cut[0](*given)
        return torch.cat([layer.flatten(1) for layer in layers], dim=1)

    @property
    def suffix(self) -> nn.Module | None:
        """The part of the network behind its cut; None where it is not cut."""
        return self._behind_cut[0] if self._behind_cut else None

    def cut_before(self, suffix: nn.Module) -> None:
        """Take what passes a cut, too: `suffix` makes the wanted layers of it, with the modules of this network."""
        self._behind_cut = (suffix,)

    def train(self, mode: bool = True) -> Self:
        """Put the trained modules into training mode; the rest stays in evaluation mode."""
        super().train(False)
        self.training = mode
        for module in self._trained:
            module.train(mode)
        for module in self._kept_in_eval:
            module.eval()
        return self

    def train_only(self, modules: Sequence[nn.Module], *, keep_in_eval: Sequence[nn.Module] = ()) -> None:
        """Train `modules` and freeze all others; of the modules, `keep_in_eval` stay in evaluation mode."""
        self.requires_grad_(False)
        for module in modules:
            module.requires_grad_(True)
        self._trained, self._kept_in_eval = tuple(modules), tuple(keep_in_eval)
        self.train(self.training)


def build_network(base: Base, layers: Sequence[str], pool: Pool, *, outputs: int) -> Network:
    """Copy `base` with a fresh linear layer of `outputs` on its `layers`, drawn from torch's randomness.

    Raises `BaseError` for a layer that the base does not have.
    """
    features = feature_network(base, layers, pool)
    width = sum(math.prod(shape) for shape in features.shapes)
    return Network(features, nn.Linear(width, outputs))


def standardise(network: Network, features: Tensor) -> None:
    """Take mean and standard deviation from `features` (N, D) of the base as it is; the head stays the same numbers."""
    std = features.std(dim=0, correction=0)
    # A feature that hardly varies here may do so once the base is trained: divided by its own deviation it would be
    # blown up. So none is divided by less than a tenth of the mean deviation of its layer; layers have their own units.
    widths = [math.prod(shape) for shape in network.features.shapes]
    floor = torch.cat([0.1 * layer.mean().expand_as(layer) for layer in torch.split(std, widths)])
    network.mean.copy_(features.mean(dim=0))
    network.std.copy_(torch.where(floor > 0, torch.maximum(std, floor), torch.ones_like(std)))


def start_from(network: Network, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> None:
    """Start from a fitted linear head, `weight` (C, D) and `bias` (C,): the outputs become its own.

    Raises `HeadError` where the shapes are not those of these classes and layers.
    """
    wanted = tuple(network.head.weight.shape)
    if weight.shape != wanted or bias.shape != wanted[:1]:
        raise HeadError(
            f"the head has weights {weight.shape[0]} x {weight.shape[-1]}, these classes and layers need "
            f"{wanted[0]} x {wanted[1]}"
        )
    slopes, offset = torch.from_numpy(weight).double(), torch.from_numpy(bias).double()
    with torch.no_grad():
        network.head.weight.copy_(slopes * network.std.cpu().double())
        network.head.bias.copy_(offset + slopes @ network.mean.cpu().double())


def folded_head(network: Network) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight (C, D) and bias (C,) of the head on the base's own features: the inverse of `start_from`."""
    slopes = network.head.weight.detach().cpu().double() / network.std.cpu().double()
    offset = network.head.bias.detach().cpu().double() - slopes @ network.mean.cpu().double()
    return slopes.numpy(), offset.numpy()


def freeze(network: Network, train: Sequence[str], *, freeze_norm: bool = False) -> None:
    """Freeze everything but `train`: ``head``, ``all``, or modules of the base, the head with them.

    Modules are given by name, by a pattern such as ``features.1?``, or as ``last:N``: the last N blocks.
    `freeze_norm` leaves batch norm as in evaluation where the modules around it train: its running mean and
    variance stay, its weight and bias learn (https://arxiv.org/abs/2202.10054).
    Raises `SettingsError` for a module that the base does not have, or that has nothing to train.
    """
    trained = _modules(network, train)
    norms = [part for one in trained for part in one.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
    network.train_only(trained, keep_in_eval=norms if freeze_norm else ())


def _modules(network: Network, train: Sequence[str]) -> list[nn.Module]:
    if "all" in train:
        return [network.features, network.head]
    return [*(module for name in train if name != "head" for module in _named(network, name)), network.head]


def _named(network: Network, name: str) -> list[nn.Module]:
    """Find the modules that `name` says. Raises `SettingsError` where there are none, or not so many."""
    if name.startswith("last:"):
        return _last(network.features.network, name)
    if not any(mark in name for mark in "*?["):
        return [_module(network, name)]
    with_weights = [
        module
        for known, module in network.features.network.named_modules()
        if fnmatch.fnmatchcase(known, name) and next(module.parameters(), None) is not None
    ]
    if not with_weights:
        raise SettingsError(f"no module of the base with weights that can be trained matches {name!r}")
    return with_weights


def _last(network: nn.Module, name: str) -> list[nn.Module]:
    found = blocks(network)
    count = name.removeprefix("last:")
    if not (count.isascii() and count.isdecimal() and 0 < int(count) <= len(found)):
        raise SettingsError(f"train={name!r}: give last:1 to last:{len(found)}, the number of blocks of the base")
    return [module for block in found[-int(count) :] for module in block]


def blocks(network: nn.Module) -> list[list[nn.Module]]:
    """List the blocks of a network in their order: modules with matrices, each with the norms that follow it."""
    found: list[list[nn.Module]] = []
    for module in _blocks(network, network):
        sizes = [one.ndim for one in module.parameters()]
        if sizes and (max(sizes) > 1 or not found):
            found.append([module])
        elif sizes:
            found[-1].append(module)
    return found


def _blocks(module: nn.Module, whole: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a network in their order: what its sequences hold, and modules beside these.

    A module that holds more than half of all weights is a part of the way to them: the encoder of a transformer.
    """
    size = sum(one.numel() for one in module.parameters())
    is_way = isinstance(module, nn.Sequential | nn.ModuleList) or 2 * size > sum(o.numel() for o in whole.parameters())
    if not is_way or next(module.children(), None) is None:
        yield module
        return
    for child in module.children():
        yield from _blocks(child, whole)


def _module(network: Network, name: str) -> nn.Module:
    known: dict[str, nn.Module] = dict(network.features.network.named_modules())
    if any(f"{name}.".startswith(f"{cut}.") for cut in network.features.unused):
        raise SettingsError(
            f"module {name!r} of the base comes after the layers of the head, which stands in its place; it cannot be"
            " trained: give head, or a module before it"
        )
    refuse_unknown("module", name, ["head", "all", *filter(None, known)], where="the base")
    if next(known[name].parameters(), None) is None:
        raise SettingsError(f"module {name!r} of the base has no weights, so nothing in it can be trained")
    return known[name]


def parameter_groups(
    network: Network,
    *,
    lr: float,
    base_lr: float | None = None,
    layer_decay: float = 1.0,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """List the trained parameters as an optimizer takes them, those of the head last, each with its rate.

    The rate of the base's last block is `base_lr`, or that of the head times `layer_decay`; that of each block before
    is less by the same factor, and what is in no block, such as the embedding of positions, has that of the first.
    Norms and biases have no `weight_decay`: it would pull them to 0, where they mean something else than weights.
    """
    found = blocks(network.features.network)
    depths = {one: depth for depth, block in enumerate(found) for module in block for one in module.parameters()}
    grouped: dict[tuple[float, float], list[nn.Parameter]] = {}
    for one in network.features.parameters():
        if one.requires_grad:
            rate = (base_lr or lr * layer_decay) * layer_decay ** (len(found) - 1 - depths.get(one, 0))
            grouped.setdefault((rate, weight_decay if one.ndim > 1 else 0.0), []).append(one)
    base = [{"params": some, "lr": rate, "weight_decay": decay} for (rate, decay), some in grouped.items()]
    head = network.head.parameters()
    if not weight_decay:
        return [*base, {"params": list(head), "lr": lr, "weight_decay": 0.0}]
    return [*base, *({"params": [o], "lr": lr, "weight_decay": weight_decay * (o.ndim > 1)} for o in head)]


def snapshot(network: Network) -> State:
    """Copy everything that training can change: trained parameters, and buffers."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: value.clone() for name, value in network.state_dict().items() if name not in frozen}


def restore(network: Network, state: State) -> None:
    """Put a `snapshot` back."""
    network.load_state_dict(state, strict=False)


def put_back(network: Network, base: Base) -> None:
    """Give `base` the weights of its copy in `network`; modules behind the wanted layers keep their own."""
    base.module.load_state_dict(network.features.network.state_dict(), strict=False)


def write_base(base: Base, path: Path) -> None:
    """Write the weights of `base` as a safetensors file that `load_base` reads."""
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in base.module.state_dict().items()
        if name not in base.missing
    }
    save_file(state, path)
