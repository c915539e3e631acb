"""A text file with the path of one image a line."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.config import SourceSettings
from pipeline.errors import SourceError
from pipeline.sources.records import FileImage, Manifest, Row, as_id, make_manifest, shown
from pipeline.sources.tables import image_root, inside


def read_list(source: Path, settings: SourceSettings) -> Manifest:
    """The images that a text file names, relative to its own folder or to the image root."""
    name = shown(source)
    root = image_root(source.parent, settings)
    try:
        text = os.fsdecode(source.read_bytes())
    except OSError as error:
        raise SourceError(f"cannot read {name}: {error.strerror}") from error
    paths = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        path = line.strip("\r\t ")
        if path:
            paths.append(inside(root, path, f"{name}, line {number}"))
    prefix = os.fspath(root)
    return make_manifest(name, [Row(as_id(path), FileImage(f"{prefix}/{path}")) for path in paths])
