"""A cut network in torch on any device, compiled or not: pixels in, features out."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pipeline.bases.taps import FeatureModule
from pipeline.engines.batch_size import Features, Pixels
from pipeline.errors import EngineError
from pipeline.images.transform import InputTransform

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchRunner:
    """Runner of PyTorch on any device: channels last, no gradients, pixels normalised where the base is."""

    name = "torch"

    def __init__(
        self, network: FeatureModule, transform: InputTransform, device: torch.device, precision: torch.dtype
    ) -> None:
        self._network = network.to(device).to(memory_format=torch.channels_last)
        self._transform = transform
        self._device = device
        self._precision = precision
        self._threads = threading.local()

    def on_one_core(self, pixels: Pixels) -> Features:
        """Compute one float32 array (B, ...) a layer of uint8 (B, H, W, 3), on any thread, on several at once."""
        if not hasattr(self._threads, "network"):
            torch.set_num_threads(1)
            self._threads.network = _twin(self._network)
        return self._features(self._threads.network, pixels)

    def on_all_cores(self, pixels: Pixels) -> Features:
        """Compute the same with all cores, or with the whole of a GPU, for one call."""
        return self._features(self._network, pixels)

    def uncompiled(self, pixels: Pixels) -> Features:
        """Compute the same as it stands, also where it is compiled for `on_all_cores`."""
        return self._features(self._network, pixels)

    @staticmethod
    @contextmanager
    def threads_kept() -> Iterator[None]:
        """Restore torch's number of threads: set on a core's thread, torch takes it for the whole process, too."""
        before = torch.get_num_threads()
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _features(self, network: Callable[[Tensor], tuple[Tensor, ...]], pixels: Pixels) -> Features:
        batch = torch.from_numpy(np.ascontiguousarray(pixels))
        if self._device.type == "cuda":
            batch = batch.pin_memory()
        with torch.inference_mode(), _repeatable(self._device), self._mixed():
            images = self._transform.normalize(batch.to(self._device, non_blocking=True))
            return [layer.float().cpu().numpy() for layer in network(images)]

    def _mixed(self) -> Any:
        if self._precision == torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._precision)


def _twin(network: FeatureModule) -> FeatureModule:
    """Copy the modules over the same weights, for another thread: a forward pass hangs its hooks on its modules."""
    shared = [*network.parameters(), *network.buffers()]
    twin: FeatureModule = copy.deepcopy(network, {id(tensor): tensor for tensor in shared})
    return twin


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Have CUDA take algorithms that give the same numbers every time, and fp32 that is fp32 and not TF32."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


class CompiledRunner(TorchRunner):
    """Runner of PyTorch with the network compiled for one batch size; smaller batches are filled up to it.

    Raises `EngineError` where it cannot be compiled.
    """

    backend = "inductor"

    def __init__(
        self, network: FeatureModule, transform: InputTransform, device: torch.device, precision: torch.dtype
    ) -> None:
        super().__init__(network, transform, device, precision)
        self._compiled: dict[int, Callable[[Tensor], tuple[Tensor, ...]]] = {}

    def on_all_cores(self, pixels: Pixels) -> Features:
        """Compute the same as `TorchRunner`; the first call of a size compiles."""
        size = min((known for known in self._compiled if known >= len(pixels)), default=len(pixels))
        missing = size - len(pixels)
        filled = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)]) if missing else pixels
        try:
            return [layer[: len(pixels)] for layer in self._features(self._forward, filled)]
        except torch.OutOfMemoryError:
            self._compiled.pop(size, None)
            raise

    def _forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = len(images)
        if size not in self._compiled:
            try:
                # Hooks and the early end of the forward pass are Python: what tracing leaves is a plain graph.
                graph = make_fx(self._network)(images)
                compiled = torch.compile(graph, backend=self.backend)
                compiled(images)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                why = str(error).splitlines()[0]
                raise EngineError(f"torch cannot compile it ({why}); leave out --compile") from None
            self._compiled[size] = compiled
        return self._compiled[size](images)
