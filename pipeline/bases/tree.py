"""The modules of a network as a tree: the names that layers and trained modules are given by."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.bases.taps import run_on_meta


@dataclass(frozen=True)
class Module:
    """One module of a network: its dotted `name`, the `kind` of its class, and its `parameters`, those inside included.

    `shape` is that of its output for one image, (C, H, W) of a map; None where it is not called, or gives no tensor, so
    that it cannot be a layer.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int

    @property
    def depth(self) -> int:
        """Number of the modules that it stands in."""
        return self.name.count(".")


def modules_of(network: nn.Module, input_size: tuple[int, int]) -> list[Module]:
    """List the modules of `network` as they stand in it, without itself; it is run on shapes of (height, width) alone.

    >>> for module in modules_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (32, 32)):
    ...     print(module.name, module.kind, module.shape, module.parameters)
    0 Conv2d (8, 30, 30) 224
    1 ReLU (8, 30, 30) 0
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(name: str, output: object) -> None:
        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, Tensor):
            shapes[name] = tuple(first.shape[1:])

    named = {name: module for name, module in network.named_modules() if name}
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name, module in named.items()
    ]
    try:
        run_on_meta(network, input_size)
    finally:
        for handle in handles:
            handle.remove()
    return [
        Module(name, type(module).__name__, shapes.get(name), sum(one.numel() for one in module.parameters()))
        for name, module in named.items()
    ]
