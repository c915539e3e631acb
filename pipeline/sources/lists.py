"""Text files with the path of one image a line."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.config import SourceSettings
from pipeline.errors import SourceError
from pipeline.sources.manifest import FileImage, Manifest, Row, as_id, make_manifest, shown
from pipeline.sources.tables import find_files, image_root


def read_list(source: Path, settings: SourceSettings) -> Manifest:
    """List the images that a text file names, relative to its own folder or to the image root."""
    name = shown(source)
    root = image_root(source.parent, settings)
    try:
        text = os.fsdecode(source.read_bytes())
    except OSError as error:
        raise SourceError(f"cannot read {name}: {error.strerror}") from error
    lines = [line.strip("\r\t ") for line in text.removeprefix("\ufeff").split("\n")]
    numbers = [number for number, line in enumerate(lines, 1) if line]
    paths, notices = find_files(
        root, [line for line in lines if line], name, lambda row: f"{name}, line {numbers[row]}"
    )
    prefix = os.fspath(root)
    rows = [Row(as_id(path), FileImage(f"{prefix}/{path}")) for path in paths]
    return make_manifest(os.fspath(source), rows, notices=notices)
