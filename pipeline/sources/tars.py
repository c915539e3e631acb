"""Tar files, one or a folder of shards: images are read in place, by offset, and never extracted.

Labels come from WebDataset's members (``KEY.cls``, ``KEY.json`` beside ``KEY.jpg``), or else from folders in
the tar, as in a folder of images.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import SourceSettings
from pipeline.errors import ImageError, SourceError
from pipeline.sources.containers import Container, is_hidden, open_regular, safe_name
from pipeline.sources.folder import find_layout, is_image_name, without_common_top
from pipeline.sources.manifest import (
    Manifest,
    Row,
    Target,
    as_id,
    class_target,
    counted,
    make_manifest,
    shown,
)
from pipeline.sources.tables import USUAL_TARGETS, Table, cell_text, read_targets
from pipeline.sources.tar_members import Member, TarDamage, read_members

_LARGEST_LABEL = 2**20


@dataclass(frozen=True, slots=True)
class TarImage:
    """An image that is a member of a plain tar file."""

    tar: Container
    member: str
    offset: int
    size: int

    @property
    def where(self) -> str:
        """Place for messages: the tar and the member in it."""
        return f"{shown(self.tar.path)}!{shown(self.member)}"

    def stat(self) -> tuple[int, int]:
        """Return the member's size, and the time of the tar when it was listed: a rewritten tar has new images."""
        return self.size, self.tar.mtime_ns

    def read(self, limit: int) -> bytes:
        """Return the bytes; raise `SourceError` where the tar is not the one that was listed."""
        if self.size > limit:
            raise ImageError("too-large", f"{self.size} bytes, the limit is {limit}")
        try:
            with self.tar.open() as file:
                data = os.pread(file.fileno(), self.size, self.offset)
                self.tar.check(file)
        except OSError as error:
            raise ImageError("unreadable", error.strerror or str(error)) from error
        if len(data) < self.size:
            raise ImageError("unreadable", f"only {len(data)} of {self.size} bytes can be read")
        return data


def is_shards(folder: Path) -> bool:
    """Return True where a folder holds tar files, and nothing else that could be images."""
    try:
        with os.scandir(folder) as entries:
            seen = [e for e in entries if not e.name.startswith(".")]
    except OSError:  # a file, or a folder that cannot be listed: its reader says so
        return False
    tars = [e for e in seen if e.name.endswith(".tar")]
    return bool(tars) and not any(is_image_name(e.name) or e.is_dir() for e in seen)


def read_tars(source: Path, settings: SourceSettings) -> Manifest:
    """List the images in one tar file, or in all the tar files of a folder."""
    shards = sorted(source.glob("*.tar")) if source.is_dir() else [source]
    several = len(shards) > 1
    rows: list[Row] = []
    labels: dict[str, dict[str, str]] = {}
    left_out: Counter[str] = Counter()
    tars: list[Container] = []
    for shard in shards:
        prefix = f"{shard.stem}/" if several else ""
        tar, members = _list(shard)
        tars.append(tar)
        for member in members:
            name = prefix + safe_name(shard, member.name)
            image = TarImage(tar, member.name, member.offset, member.size)
            if is_image_name(name) and member.kind == "file":
                rows.append(Row(as_id(name), image))
            elif is_image_name(name):
                left_out[member.kind] += 1
            elif name.endswith((".cls", ".json")) and member.kind == "file":
                labels.setdefault(as_id(_key(name)), {}).update(_read_label(image))
    name = shown(source)
    if not rows:
        raise SourceError(f"{name} holds no images")
    splits, targets = [""] * len(rows), []
    if labels:
        targets = _label_targets(name, rows, labels, settings)
    elif not several:
        layout = find_layout(name, without_common_top([row.id for row in rows]), (), settings.depth)
        splits, targets = layout.splits, [class_target("class", layout.labels)] if any(layout.labels) else []
    split_rows = [row._replace(split=split) for row, split in zip(rows, splits, strict=True)]
    notices = [f"left out members that are not plain files ({counted(left_out)})"] if left_out else []
    return replace(make_manifest(os.fspath(source), split_rows, targets, notices), containers=tuple(tars))


def _list(shard: Path) -> tuple[Container, list[Member]]:
    """Return a tar as it is now, and its members; raise `SourceError` unless the list is known to be whole."""
    path = os.fspath(shard)
    try:
        with open_regular(path) as file:
            tar = Container.of(path, file)
            members = [
                member
                for member in read_members(file, tar.size)
                if member.kind != "other" and not is_hidden(member.name)
            ]
            tar.check(file)
    except TarDamage as error:
        raise SourceError(
            f"{shown(shard)} is not a whole, plain tar file ({error}); a compressed one must be unpacked to"
            " .tar first, so that images can be read in place"
        ) from error
    except OSError as error:
        raise SourceError(f"cannot read {shown(shard)}: {error.strerror}") from error
    return tar, members


def _key(name: str) -> str:
    """Return WebDataset's key: the path up to the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.split(".", 1)[0]


def _read_label(label: TarImage) -> dict[str, str]:
    try:
        text = label.read(_LARGEST_LABEL).decode()
        if label.member.endswith(".cls"):
            return {"class": text.strip()}
        values: Any = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("a JSON object is needed, with one value a target")
        cells = {key: cell_text(value) for key, value in values.items() if not isinstance(value, list | dict)}
        "".join([*cells, *cells.values()]).encode()  # JSON can spell texts that are none
    except (ImageError, ValueError, RecursionError) as error:
        raise SourceError(f"{label.where} is not a label: {error}") from error
    return cells


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
