"""Sources as the tests of their readers make and list them."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded, photo

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


def make_parquet(root: Path) -> str:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [encoded(photo(seed)) for seed in range(4)]
    columns = {"image": images, "class": ["ants", "bees", "ants", "bees"], "name": ["d", "b", "a", "c"]}
    pq.write_table(pa.table(columns), root / "photos.parquet", row_group_size=3)
    return str(root / "photos.parquet")


def make_torchvision(root: Path) -> str:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name in names:
        pixels = random.integers(0, 256, (2, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1]}))
    classes = ["airplane", "automobile", *(f"class {number}" for number in range(8))]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    return f"torchvision:CIFAR10?root={root}"
