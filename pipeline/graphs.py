"""Feature networks as ONNX graphs, made once and kept in the user's cache folder under the digest of all they hold."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import onnxruntime
import platformdirs
import torch
from torch import Tensor, nn

from pipeline.bases import Base
from pipeline.bases.taps import FeatureNetwork
from pipeline.batching import Size
from pipeline.errors import EngineError
from pipeline.files import atomic_write
from pipeline.images.transform import InputTransform

log = logging.getLogger(__name__)

#: Raise it when a graph made from the same network would be another one.
EXPORT_VERSION = 1
OPSET = 18
#: One protocol buffer holds 2 GiB; larger networks run in torch.
LARGEST_BYTES = 1_900_000_000
KEPT_BYTES = 4_000_000_000


class _FromBytes(nn.Module):
    """Normalisation and network in one: uint8 (B, H, W, 3) to the network's outputs."""

    def __init__(self, network: FeatureNetwork, transform: InputTransform) -> None:
        super().__init__()
        self.network = network
        self.transform = transform

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.network(self.transform.normalize(pixels))
        return outputs


def export(network: FeatureNetwork, transform: InputTransform) -> bytes:
    """The ONNX graph of `network`: input ``pixels`` uint8 (B, H, W, 3) with any B, one output a layer.

    Raises `EngineError` where it cannot be expressed as a graph or would be too large for one.
    """
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > LARGEST_BYTES:
        raise EngineError(f"{size / 1e9:.1f} GB of weights do not fit into one ONNX file")
    outputs = [f"layer{number}" for number in range(len(network.shapes))]
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
                output_names=outputs,
                dynamic_axes={name: {0: "batch"} for name in ("pixels", *outputs)},
            )
    except (torch.onnx.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
        raise EngineError(f"it does not export to ONNX: {str(error).splitlines()[0]}") from None
    graph: bytes = file.getvalue()
    return graph


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Attention step by step: the fused operation that torch takes for inference has no counterpart in ONNX."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def graph_key(base: Base, network: FeatureNetwork) -> str:
    """A name for the graph of `network` that no other graph has: weights, layers, transform and versions."""
    parts: dict[str, Any] = {
        "digest": base.digest,
        "name": base.name,
        "taps": [astuple(tap) for tap in network.taps],
        "pool": network.pool,
        "transform": base.transform.describe(),
        "versions": [EXPORT_VERSION, OPSET, torch.__version__, onnxruntime.__version__],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    """Where graphs are kept: ``$PIPELINE_CACHE``, else the user's cache folder; `OSError` where there is none."""
    if given := os.environ.get("PIPELINE_CACHE"):
        return Path(given)
    folder: Path | None = None
    with suppress(RuntimeError):
        folder = platformdirs.user_cache_path("cached-feature-pipeline", appauthor=False)
    if folder is None or not folder.is_absolute():  # which of the two depends on the version of platformdirs
        raise FileNotFoundError("this user has no home folder; name a folder with PIPELINE_CACHE")
    return folder


def read_cached(key: str) -> bytes | None:
    """The graph kept under `key`; None where there is none, or where its bytes are not those that were kept."""
    try:
        path = _path(key)
        content = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    digest, graph = content[:32], content[32:]
    if hashlib.sha256(graph).digest() != digest:
        log.warning("%s is damaged; it is made again", path)
        return None
    return graph


def keep_cached(key: str, graph: bytes) -> None:
    """Keep `graph` for the next run. A folder that cannot be written costs that run some seconds, nothing else."""
    try:
        with atomic_write(_path(key)) as file:
            file.write(hashlib.sha256(graph).digest())
            file.write(graph)
        _forget_oldest(_path(key).parent)
    except OSError as error:
        log.info("the graph is not kept for the next run: %s", error)


def _path(key: str) -> Path:
    return cache_folder() / "onnx" / f"{key}.onnx"


def read_size(key: str) -> Size | None:
    """How many images at once were found to be the fastest under `key`; None where that was not measured."""
    try:
        size = Size(**json.loads((cache_folder() / "sizes" / key).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    are_counts = type(size.images) is int and type(size.bytes) is int
    return size if are_counts and size.images > 0 and size.bytes >= 0 else None


def keep_size(key: str, size: Size) -> None:
    """Keep `size` for the next run, like a graph."""
    try:
        with atomic_write(cache_folder() / "sizes" / key) as file:
            file.write(json.dumps(asdict(size)).encode())
    except OSError as error:
        log.info("the batch size is not kept for the next run: %s", error)


def _forget_oldest(folder: Path) -> None:
    """Keep the folder below `KEPT_BYTES`: what was used last stays."""
    files = sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for number, path in enumerate(files):
        total += path.stat().st_size
        if number and total > KEPT_BYTES:
            path.unlink(missing_ok=True)


def matches(given: Sequence[Tensor], wanted: Sequence[Tensor], *, tolerance: float = 1e-4) -> bool:
    """Whether two engines agree, relative to the largest value of each layer."""
    return all(
        bool((one - other).abs().max() <= tolerance * other.abs().max())
        for one, other in zip(given, wanted, strict=True)
    )
