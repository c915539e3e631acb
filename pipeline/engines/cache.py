"""ONNX graphs, batch sizes and digests, worked out once for a base on a machine and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs

from pipeline.config import BaseSettings, Recipe
from pipeline.engines.batch_size import Size
from pipeline.files import TUNED, atomic_write
from pipeline.versions import versions

log = logging.getLogger(__name__)

#: Raise it when a graph made by the same recipe would be another one.
EXPORT_VERSION = 2
OPSET = 18
#: What makes a graph, runs it, or holds the code of its network.
_MAKERS = ("torch", "torchvision", "timm", "onnxruntime")
#: Folder in the cache folder of what passes the cuts of networks that are fine-tuned.
CUTS = "cuts"
#: Bytes of graphs that are kept; those used longest ago go first.
KEPT_BYTES = 4_000_000_000


def cache_folder() -> Path:
    """Return the cache folder: ``$PIPELINE_CACHE``, else the user's own. Raises `OSError` where there is none."""
    if given := os.environ.get("PIPELINE_CACHE"):
        return Path(given)
    folder: Path | None = None
    with suppress(RuntimeError):
        folder = platformdirs.user_cache_path("cached-feature-pipeline", appauthor=False)
    if folder is None or not folder.is_absolute():  # which of the two depends on the version of platformdirs
        raise FileNotFoundError("this user has no home folder; name a folder with PIPELINE_CACHE")
    return folder


def graph_key(recipe: Recipe) -> str:
    """Return a name for the graph of a recipe that no other has, made without its base: sha256 of what decides it.

    Which modules its layers are follows from the base's name and the versions.
    """
    parts = recipe.model_dump(mode="json", include={"base", "weights", "layers", "pool", "transform"})
    if recipe.calibration:
        parts["calibration"] = recipe.calibration.fingerprint()
    parts["versions"] = [EXPORT_VERSION, OPSET, versions(_MAKERS)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_cached(key: str) -> bytes | None:
    """Read the graph kept under `key`; None where there is none, or where it fails its digest."""
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
    """Read the fastest size that was measured under `key`; None where none was."""
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


@dataclass(frozen=True)
class KnownBase:
    """Digest of the weights of a base, and its transform as it describes itself: all that a recipe says of it."""

    weights: str
    transform: dict[str, Any]


def read_base(settings: BaseSettings) -> KnownBase | None:
    """Read what is known of the base of `settings` without loading it; None where its weights may be others now."""
    try:
        known = KnownBase(**json.loads(_base_path(settings).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return known if isinstance(known.weights, str) and isinstance(known.transform, dict) else None


def keep_base(settings: BaseSettings, known: KnownBase) -> None:
    """Keep what is known of a base for the next run, like a graph."""
    try:
        with atomic_write(_base_path(settings)) as file:
            file.write(json.dumps(asdict(known)).encode())
    except OSError as error:
        log.info("the digest of the weights is not kept for the next run: %s", error)


def _base_path(settings: BaseSettings) -> Path:
    """Return the file of a base; raise `OSError` where its weights are in no file, or in one that is not there."""
    file = _weights_place(settings)
    stat = file.stat()
    parts = settings.model_dump(mode="json", include={"base", "size", "fit", "weights"})
    # The change time too: a copy that keeps times, such as that of cp -p, has another.
    parts |= {"place": str(file.resolve()), "bytes": stat.st_size, "times_ns": [stat.st_mtime_ns, stat.st_ctime_ns]}
    parts["versions"] = [EXPORT_VERSION, versions(_MAKERS)]
    return cache_folder() / "bases" / hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _weights_place(settings: BaseSettings) -> Path:
    """Return the file of the weights; of published ones the folder of all, which changes with each that comes."""
    weights = settings.weights
    if weights == "none" or (Path(settings.base) / "model.json").exists():
        raise FileNotFoundError(f"the weights of {settings.base} are in no file of their own")
    if weights == "embedded":
        return Path(__file__).parents[1] / "bases" / "embedded" / f"{settings.base}.safetensors"
    if Path(weights).exists():
        return Path(weights) / TUNED if Path(weights).is_dir() else Path(weights)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("TORCH_HOME") or caches / "torch").expanduser() / "hub" / "checkpoints"


def _forget_oldest(folder: Path) -> None:
    """Keep the folder below `KEPT_BYTES`: what was used last stays."""
    files = sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for number, path in enumerate(files):
        total += path.stat().st_size
        if number and total > KEPT_BYTES:
            path.unlink(missing_ok=True)
