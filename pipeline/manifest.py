"""Any source to a `Manifest`: what images there are, in which order, and what is known of them.

A source is a folder (flat, one folder a class, or train/val/test), a CSV or Parquet file with a column of
images, a tar file, a text file of paths, or ``torchvision:NAME?root=DIR``. Listing reads no image: a file
that is missing or damaged is still a row, and says so when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import SourceSettings
from pipeline.errors import SourceError
from pipeline.sources.folder import read_folder
from pipeline.sources.records import FileImage, ImageRef, Manifest, Record, Target, as_id, shown
from pipeline.sources.tables import read_csv

__all__ = ["FileImage", "ImageRef", "Manifest", "Record", "Target", "from_paths", "read_manifest"]


def read_manifest(source: str | os.PathLike[str], settings: SourceSettings | None = None) -> Manifest:
    """List the images of a source, sorted by their unique ids.

    Raises `SourceError` if the source is not there, is empty, or can be understood in two ways, and
    `SettingsError` for an option that this kind of source does not have.
    """
    settings = settings or SourceSettings.of({})
    path = Path(source)
    if not path.exists():
        raise SourceError(f"there is no {shown(path)}")
    if path.is_dir():
        return read_folder(path, settings)
    return read_csv(path, settings)


def from_paths(paths: Sequence[str | os.PathLike[str]]) -> Manifest:
    """Images one by one, in the order given and under the names given, for prediction."""
    names = [os.fspath(path) for path in paths]
    records = [Record(index, as_id(name), FileImage(name), "") for index, name in enumerate(names)]
    if not records:
        raise SourceError("no image is named")
    return Manifest("the images named", records, {})
