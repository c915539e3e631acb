"""Zip files: images are read in place, one by one, and never extracted; classes come from folders in the zip."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import SourceSettings
from pipeline.errors import ImageError, SourceError
from pipeline.sources.containers import Container, is_hidden, open_regular, safe_name
from pipeline.sources.folder import find_layout, is_image_name, without_common_top
from pipeline.sources.manifest import Manifest, Row, as_id, class_target, counted, make_manifest, shown

_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
#: Signature, and where the lengths of the name and of what follows it are: APPNOTE.TXT, 4.3.7.
_LOCAL = struct.Struct("<4s22xHH")
_OTHERS = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "lzma", 9: "deflate64", 93: "zstd"}
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class ZipImage:
    """An image that is a member of a zip file: `size` bytes, of which `packed` stand behind the header at `offset`."""

    zip: Container
    member: str
    offset: int
    packed: int
    size: int
    crc: int
    is_deflated: bool

    @property
    def where(self) -> str:
        """Place for messages: the zip and the member in it."""
        return f"{shown(self.zip.path)}!{shown(self.member)}"

    def stat(self) -> tuple[int, int]:
        """Return the member's size, and the time of the zip when it was listed: a rewritten zip has new images."""
        return self.size, self.zip.mtime_ns

    def read(self, limit: int) -> bytes:
        """Return the bytes, never more than the zip said; raise `SourceError` where it is not the one listed."""
        if max(self.size, self.packed) > limit:
            raise ImageError("too-large", f"{max(self.size, self.packed)} bytes, the limit is {limit}")
        try:
            with self.zip.open() as file:
                header = os.pread(file.fileno(), _LOCAL.size, self.offset)
                packed = self._packed(file.fileno(), header)
                self.zip.check(file)
        except OSError as error:
            raise ImageError("unreadable", error.strerror or str(error)) from error
        return self._unpacked(packed)

    def _packed(self, descriptor: int, header: bytes) -> bytes:
        if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
            raise ImageError("unreadable", f"the zip is damaged at byte {self.offset}")
        _, name, extra = _LOCAL.unpack(header)
        return os.pread(descriptor, self.packed, self.offset + _LOCAL.size + name + extra)

    def _unpacked(self, packed: bytes) -> bytes:
        data = packed
        if self.is_deflated:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                data = inflate.decompress(packed, self.size + 1)  # one more byte tells of one that goes on
            except zlib.error as error:
                raise ImageError("unreadable", f"the zip is damaged in this member: {error}") from error
        if len(data) != self.size or zlib.crc32(data) != self.crc:
            raise ImageError("unreadable", "the zip is damaged in this member: not the bytes that were packed")
        return data


def read_zip(source: Path, settings: SourceSettings) -> Manifest:
    """List the images in a zip file; raise `SourceError` where it is none, or holds no image that can be read."""
    container, members = _list(source)
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    for member in members:
        name = member.filename.replace("\\", "/")  # as some programs of Windows write them
        if member.is_dir() or is_hidden(name) or not is_image_name(name):
            continue
        if hindrance := _hindrance(member):
            left_out[hindrance] += 1
            continue
        rows.append(Row(as_id(safe_name(source, name)), _image(container, member)))
    told = f"left out members that cannot be read ({counted(left_out)})"
    if not rows:
        raise SourceError(f"{shown(source)} holds no images" + (f": {told}" if left_out else ""))
    layout = find_layout(shown(source), without_common_top([row.id for row in rows]), (), settings.depth)
    rows = [row._replace(split=split) for row, split in zip(rows, layout.splits, strict=True)]
    targets = [class_target("class", layout.labels)] if any(layout.labels) else []
    manifest = make_manifest(os.fspath(source), rows, targets, [told] if left_out else [])
    return replace(manifest, containers=(container,))


def _list(source: Path) -> tuple[Container, list[zipfile.ZipInfo]]:
    """Return a zip as it is now and its members."""
    try:
        with open_regular(source) as file:
            container = Container.of(os.fspath(source), file)
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
            container.check(file)
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError, MemoryError) as error:
        raise SourceError(f"{shown(source)} is not a whole zip file: {error}") from error
    except OSError as error:
        raise SourceError(f"cannot read {shown(source)}: {error.strerror}") from error
    return container, members


def _hindrance(member: zipfile.ZipInfo) -> str:
    """Say why a member cannot be read; empty where it can."""
    mode = member.external_attr >> 16
    if member.create_system == 3 and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "link"
    if member.flag_bits & _ENCRYPTED:
        return "encrypted"
    if member.compress_type not in (_STORED, _DEFLATED):
        return _OTHERS.get(member.compress_type, f"compression {member.compress_type}")
    return ""


def _image(container: Container, member: zipfile.ZipInfo) -> ZipImage:
    return ZipImage(
        zip=container,
        member=member.filename,
        offset=member.header_offset,
        packed=member.compress_size,
        size=member.file_size,
        crc=member.CRC,
        is_deflated=member.compress_type == _DEFLATED,
    )
