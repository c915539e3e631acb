"""The request that a model is made by: command, settings, state of its inputs; it tells a run what is current."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.config import FinetuneSettings, Settings
from pipeline.errors import ImageError
from pipeline.sources import Manifest, Record
from pipeline.text import shown


def request_of(command: str, settings: Settings, inputs: str) -> dict[str, Any]:
    """Make the request that `model.json` keeps: two are equal where training again would give the same model.

    `inputs` is the fingerprint of a store, or of images as `fingerprint_images` gives it.
    """
    return {"command": command, "settings": chosen_settings(settings), "inputs": inputs}


def chosen_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that are not at their defaults: an option that a later version adds changes no request.

    Paths may hold bytes that are no UTF-8, and so no JSON: those are escaped.
    """
    chosen = settings.model_dump(mode="json", exclude_defaults=True)
    return {name: shown(value) if isinstance(value, str) else value for name, value in chosen.items()}


def recorded_request(model: Path) -> dict[str, Any] | None:
    """Read the request that a model folder was made by; None where there is no model, or it recorded none."""
    try:
        request = json.loads((model / "model.json").read_text(encoding="utf-8")).get("request")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return request if isinstance(request, dict) else None


def fingerprint_images(manifest: Manifest, files: Iterable[Path] = ()) -> str:
    """Compute the sha256, in hexadecimal, of ids, splits, labels, and size and time of every image and of `files`.

    No content is read.
    """
    digest = hashlib.sha256()
    for record in manifest.records:
        digest.update(repr((record.id, record.split, _state(record))).encode("utf-8", "surrogatepass"))
    for target in manifest.targets.values():
        digest.update(repr((target.name, target.names)).encode("utf-8", "surrogatepass"))
        digest.update(target.values.tobytes())
    for file in files:
        state = file.stat() if file.is_file() else None
        digest.update(repr((str(file), state and (state.st_size, state.st_mtime_ns))).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def start_files(settings: FinetuneSettings) -> list[Path]:
    """List the files that a training begins from, where they are the user's own: a model's record, or weights."""
    tuned = Path(settings.base) / "model.json"
    if settings.head is not None:
        return [Path(settings.head) / "model.json"]
    return [tuned] if tuned.is_file() else [Path(settings.weights)]


def _state(record: Record) -> tuple[int, int] | None:
    try:
        size, mtime_ns = record.image.stat()
    except ImageError:
        return None
    return size, mtime_ns
