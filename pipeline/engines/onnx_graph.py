"""Feature networks as ONNX graphs, compared with torch before they are used."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.bases.taps import FeatureModule
from pipeline.engines.cache import OPSET
from pipeline.engines.onnx_runner import run, session
from pipeline.errors import EngineError
from pipeline.images.transform import InputTransform

#: One protocol buffer holds 2 GiB; larger networks run in torch.
LARGEST_BYTES = 1_900_000_000


class _FromBytes(nn.Module):
    """Module of normalisation and network: uint8 (B, H, W, 3) to the network's outputs."""

    def __init__(self, network: nn.Module, transform: InputTransform) -> None:
        super().__init__()
        self.network = network
        self.transform = transform

    def forward(self, pixels: Tensor) -> Any:
        return self.network(self.transform.normalize(pixels))


def make_graph(network: FeatureModule, transform: InputTransform) -> bytes:
    """Export `network`, as `export` says, and compare; raises `EngineError` where it gives other numbers than torch."""
    graph = export(network, transform)
    # Three images, as it was exported with two: a graph into which tracing wrote its batch size fails here.
    noise = np.random.default_rng(13).integers(0, 256, (3, *transform.size, 3), dtype=np.uint8)
    given = [torch.from_numpy(layer) for layer in run(session(graph, threads=1), noise)]
    with torch.inference_mode():
        wanted = network(transform.normalize(torch.from_numpy(noise)))
    if not matches(given, wanted):
        raise EngineError("its ONNX graph gives other numbers than torch")
    return graph


def export(network: FeatureModule, transform: InputTransform) -> bytes:
    """Export `network` as an ONNX graph: input ``pixels`` uint8 (B, H, W, 3) with any B, one output a layer.

    Raises `EngineError` where it cannot be expressed as a graph or would be too large for one.
    """
    outputs = [f"layer{number}" for number in range(len(network.shapes))]
    return trace(network, transform, outputs)


def trace(network: nn.Module, transform: InputTransform, outputs: Sequence[str]) -> bytes:
    """Export what takes normalised images and gives `outputs`, (B, ...) each, as `export` says."""
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > LARGEST_BYTES:
        raise EngineError(f"{size / 1e9:.1f} GB of weights do not fit into one ONNX file")
    file: Any = io.BytesIO()  # which the tracing exporter takes, though its signature does not say so
    try:
        with warnings.catch_warnings(), torch.no_grad(), _without_fused_attention():
            # The exporter by tracing is announced to go some day; the newer one needs two more packages and takes
            # up to a minute. What tracing may get wrong is caught by comparing the two engines afterwards.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _FromBytes(network, transform).eval(),
                (torch.zeros(2, *transform.size, 3, dtype=torch.uint8),),
                file,
                dynamo=False,
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=list(outputs),
                dynamic_axes={name: {0: "batch"} for name in ("pixels", *outputs)},
            )
    except (torch.onnx.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
        raise EngineError(f"it does not export to ONNX: {str(error).splitlines()[0]}") from None
    graph: bytes = file.getvalue()
    return graph


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Compute attention step by step: the fused operation that torch takes for inference is none of ONNX's."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def matches(given: Sequence[Tensor], wanted: Sequence[Tensor], *, tolerance: float = 1e-4) -> bool:
    """Return True where two engines agree within `tolerance` of the largest value of each layer."""
    return all(
        bool((one - other).abs().max() <= tolerance * other.abs().max())
        for one, other in zip(given, wanted, strict=True)
    )
