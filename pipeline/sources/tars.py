"""Tar files, one or a folder of shards: images are read in place, by offset, and never extracted.

Labels come from WebDataset's members (``KEY.cls``, ``KEY.json`` beside ``KEY.jpg``), or else from folders in
the tar, as in a folder of images.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import SourceSettings
from pipeline.errors import ImageError, SourceError
from pipeline.sources.folder import find_layout, is_image_name
from pipeline.sources.records import (
    FileImage,
    Manifest,
    Row,
    Target,
    as_id,
    class_target,
    make_manifest,
    shown,
)
from pipeline.sources.tables import USUAL_TARGETS, Table, cell_text, read_targets

_LARGEST_LABEL = 2**20
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class TarImage:
    """An image that is a member of an uncompressed tar file."""

    tar: str
    member: str
    offset: int
    size: int

    @property
    def where(self) -> str:
        return f"{shown(self.tar)}!{shown(self.member)}"

    def stat(self) -> tuple[int, int]:
        """The member's size, and the time of the tar file itself: a rewritten tar has new images."""
        return self.size, FileImage(self.tar).stat()[1]

    def read(self, limit: int) -> bytes:
        if self.size > limit:
            raise ImageError("too-large", f"{self.size} bytes, the limit is {limit}")
        try:
            with open(self.tar, "rb") as file:  # noqa: PTH123 (once an image)
                data = os.pread(file.fileno(), self.size, self.offset)
        except OSError as error:
            FileImage(self.tar).stat()  # names a tar that has gone
            raise ImageError("unreadable", error.strerror or str(error)) from error
        if len(data) < self.size:
            raise ImageError("truncated", f"the tar file ends after {len(data)} of {self.size} bytes")
        return data


def is_shards(folder: Path) -> bool:
    """Whether a folder holds tar files, and nothing else that could be images."""
    try:
        with os.scandir(folder) as entries:
            seen = [e for e in entries if not e.name.startswith(".")]
    except OSError:  # a file, or a folder that cannot be listed: its reader says so
        return False
    tars = [e for e in seen if e.name.endswith(".tar")]
    return bool(tars) and not any(is_image_name(e.name) or e.is_dir() for e in seen)


def read_tars(source: Path, settings: SourceSettings) -> Manifest:
    """The images in one tar file, or in all the tar files of a folder."""
    shards = sorted(source.glob("*.tar")) if source.is_dir() else [source]
    several = len(shards) > 1
    rows: list[Row] = []
    labels: dict[str, dict[str, str]] = {}
    for shard in shards:
        prefix = f"{shard.stem}/" if several else ""
        for member in _members(shard):
            name = prefix + _safe_name(shard, member.name)
            if is_image_name(name):
                image = TarImage(os.fspath(shard), member.name, member.offset_data, member.size)
                rows.append(Row(as_id(name), image))
            elif name.endswith((".cls", ".json")):
                labels.setdefault(_key(name), {}).update(_read_label(shard, member))
    name = shown(source)
    if not rows:
        raise SourceError(f"{name} holds no images")
    if labels:
        return make_manifest(name, rows, _label_targets(name, rows, labels, settings))
    if several:
        return make_manifest(name, rows)
    layout = find_layout(name, _without_common_top([row.id for row in rows]), ())
    targets = [class_target("class", layout.labels)] if any(layout.labels) else []
    split_rows = [row._replace(split=split) for row, split in zip(rows, layout.splits, strict=True)]
    return make_manifest(name, split_rows, targets)


def _without_common_top(paths: list[str]) -> list[str]:
    """The paths below the folder that was packed as a whole, where one was."""
    while len({path.split("/", 1)[0] for path in paths}) == 1 and all(path.count("/") > 1 for path in paths):
        paths = [path.split("/", 1)[1] for path in paths]
    return paths


def _members(shard: Path) -> list[tarfile.TarInfo]:
    """The plain files in a tar; raises `SourceError` unless the list is known to be whole."""
    try:
        with tarfile.open(shard, "r:") as tar:
            members = [m for m in tar if m.isreg() and not m.issparse() and not _is_hidden(m.name)]
            _require_end(shard, tar)
    except (tarfile.TarError, EOFError) as error:
        raise SourceError(
            f"{shown(shard)} is not a whole, plain tar file ({error}); a compressed one must be unpacked to"
            " .tar first, so that images can be read in place"
        ) from error
    except OSError as error:
        raise SourceError(f"cannot read {shown(shard)}: {error.strerror}") from error
    return members


def _require_end(shard: Path, tar: tarfile.TarFile) -> None:
    """`tarfile` stops silently at a damaged header; what it stopped at must be the end mark, then nothing."""
    with shard.open("rb") as file:
        file.seek(tar.offset)
        tail = file.read(2**20)
    if len(tail) < _BLOCK:
        raise tarfile.ReadError("the end mark is absent: the file was cut short")
    if tail[:_BLOCK].strip(b"\0"):
        raise tarfile.ReadError(f"damaged at byte {tar.offset}")
    if tail.strip(b"\0"):
        raise tarfile.ReadError(f"a second archive begins after byte {tar.offset}")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _safe_name(shard: Path, name: str) -> str:
    """The member's name as a relative path; one that would leave a folder is refused, though none is made."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts:
        raise SourceError(f"{shown(shard)} has a member called {name!r}, which is no path inside of it")
    return "/".join(parts)


def _key(name: str) -> str:
    """WebDataset's: the path up to the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.split(".", 1)[0]


def _read_label(shard: Path, member: tarfile.TarInfo) -> dict[str, str]:
    place = f"{shown(shard)}!{shown(member.name)}"
    try:
        data = TarImage(os.fspath(shard), member.name, member.offset_data, member.size).read(_LARGEST_LABEL)
        text = data.decode()
        if member.name.endswith(".cls"):
            return {"class": text.strip()}
        values: Any = json.loads(text)
    except (ImageError, ValueError, RecursionError) as error:
        raise SourceError(f"{place} is not a label: {error}") from error
    if not isinstance(values, dict):
        raise SourceError(f"{place} is not a label: a JSON object is needed, with one value a target")
    return {key: cell_text(value) for key, value in values.items() if not isinstance(value, list | dict)}


def _label_targets(
    name: str, rows: Sequence[Row], labels: dict[str, dict[str, str]], settings: SourceSettings
) -> list[Target]:
    cells: dict[str, list[str]] = defaultdict(lambda: [""] * len(rows))
    for at, row in enumerate(rows):
        for column, value in labels.get(_key(row.id), {}).items():
            cells[column][at] = value
    table = Table(name, dict(cells), range(1, len(rows) + 1), "image")
    usual = [column for column in USUAL_TARGETS if column in cells][:1]
    if not settings.target and not usual:
        return []
    wanted = settings.target or ("class:class" if usual == ["class"] else usual[0],)
    return list(read_targets(table, settings.model_copy(update={"target": wanted}), used=set()).values())
