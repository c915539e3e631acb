"""Versions and machine that a result was made with, for the record beside it."""

from __future__ import annotations

import hashlib
import platform
import socket
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "torch",
    "torchvision",
    "onnxruntime",
    "openvino",
    "scikit-learn",
    "numpy",
    "Pillow",
    "pillow-heif",
    "timm",
)


def versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Return the versions of what decides the numbers, or of `packages`; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in ("cached-feature-pipeline", *packages):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_digest() -> str:
    """Return the sha256 over this package's modules, in hexadecimal: equal where two machines have the same."""
    here, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(f"{path.relative_to(here).as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def machine() -> dict[str, str]:
    """Return name and kind of this machine."""
    return {"host": socket.gethostname(), "platform": platform.platform()}
