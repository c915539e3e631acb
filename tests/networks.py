"""Networks as the tests of bases and engines ask them: what they are given, and what they should answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cheap import recipe_for
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.bases import ZOOS, Base, feature_network
from pipeline.bases import weights as weights_module
from pipeline.config import EngineSettings
from pipeline.devices import CoreThreads
from pipeline.engines import Engine, GpuEngine, make_engine
from pipeline.engines.torch_runner import TorchRunner

Reference = Callable[[nn.Module, Tensor], Tensor]


def hooked(module: str) -> Reference:
    """What comes out of `module` in a plain forward pass, as rows."""

    def run(network: nn.Module, images: Tensor) -> Tensor:
        kept: list[Tensor] = []
        handle = network.get_submodule(module).register_forward_hook(lambda *call: kept.append(call[-1].clone()))
        network(images)
        handle.remove()
        return kept[-1].flatten(1)

    return run


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5))


def without_numbers(name: str) -> Base:
    """A base that has shapes only."""
    plan = ZOOS[""].plan(name, None)
    with weights_module.without_memory():
        module = plan.build(1000).eval()
    return Base(name, "none", "", module, plan.transform, None, plan.family)


def noise(base: Base, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (count, *base.transform.size, 3), dtype=np.uint8)


def engine_of(
    base: Base,
    *layers: str,
    precision: str = "fp32",
    threads: CoreThreads | None = None,
    device: str = "cpu",
    **options: Any,
) -> Engine:
    recipe = recipe_for(base, layers=layers or ("avgpool",), precision=precision)
    return make_engine(base, recipe, EngineSettings.of({"device": device, **options}), threads or CoreThreads())


def largest_difference(given: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Relative to the largest value."""
    return float(np.abs(given - wanted).max() / np.abs(wanted).max())


def gpu_engine(base: Base, runner: type[TorchRunner] = TorchRunner, **options: Any) -> GpuEngine:
    """The engine of GPUs, on the CPU."""
    network, place = feature_network(base, ["avgpool"]), torch.device("cpu")
    ready = runner(network, base.transform, place, torch.float32)
    return GpuEngine(ready, network.shapes, base.transform, place, **{"batch_size": "auto", "room": 10**9, **options})
