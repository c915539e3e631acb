"""Sources as the tests of their readers make and list them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from pipeline.config import SourceSettings
from pipeline.errors import SettingsError, SourceError
from pipeline.sources import Manifest, read_manifest


def listed(source: str | Path, **options: object) -> Manifest:
    return read_manifest(source, SourceSettings.of(options))


def ids(manifest: Manifest) -> list[str]:
    return [record.id for record in manifest.records]


def labels(manifest: Manifest, target: str = "class") -> list[str | None]:
    found = manifest.targets[target]
    assert found.names is not None
    return [found.names[code] if code >= 0 else None for code in found.values]


def refusal(source: str | Path, **options: object) -> str:
    """The one line that a source is refused with."""
    with pytest.raises((SourceError, SettingsError)) as caught:
        listed(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def table(folder: Path, text: str, name: str = "photos.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def make_shard(path: Path, members: dict[str, bytes], *, format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
