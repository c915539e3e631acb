"""Bounds on the parts of an image file, checked before a decoder sees it: no small file takes minutes or gigabytes.

Pillow walks markers, chunks, blocks and tags one at a time in Python, libjpeg goes over every pixel once a scan, and
both read as much as a file tells them to. Photos have tens of such parts; the bounds here are thousands. Each walk is
linear in the bytes of the file and ends where its bound is passed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL.JpegImagePlugin import MARKER

from pipeline.errors import ImageError

#: Scans of a JPEG: always allowed, allowed where the image is small, and pixels in all scans together between the two.
FEW_SCANS, MOST_SCANS, SCANNED_PIXELS = 16, 100, 2**30
#: Markers of a JPEG before its first scan, and bytes that are no part of any.
MOST_MARKERS, MOST_STRAY_BYTES = 4096, 2**20
#: Bytes of EXIF in a JPEG, which Pillow joins segment by segment.
MOST_EXIF = 2**24
#: Chunks of a PNG or WebP file, blocks of a GIF before its first frame.
MOST_CHUNKS = 2**17
MOST_COMMENT = 2**20
#: Tags of a TIFF directory, numbers in all of them, strips or tiles, and bytes that they may claim whatever is there.
MOST_TAGS, MOST_NUMBERS, MOST_STRIPS, CLAIMED_BYTES = 4096, 2**20, 2**18, 2**28
#: Pixels, and bytes, of a run-length BMP, which Pillow decodes in Python.
MOST_RUN_LENGTH_PIXELS, MOST_RUN_LENGTH_BYTES = 2**22, 2**22

_FILL = re.compile(rb"\xff*")
#: A marker inside of a scan: neither an escaped 0xff, nor a restart, nor a fill byte.
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_WITH_LENGTH = frozenset(code & 0xFF for code, (_, _, read) in MARKER.items() if read is not None)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_SOS, _EOI, _APP1, _APP2 = 0xDA, 0xD9, 0xE1, 0xE2
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BYTE_TYPES = (1, 2, 6, 7)
_OFFSETS = (273, 324)
_EXIF = b"Exif\0\0"


def refuse_slow(data: bytes, kind: str) -> bool:
    """Raise `ImageError` where the header of a file of this `kind` would take a parser too long.

    Return True where its scans are to be counted too, by `refuse_many_scans`, once its size is known.
    """
    if kind == "JPEG":
        return _scans_are_counted(data)
    if kind == "PNG":
        _check_chunks(data, 8, "big", extra=12, end=b"IEND")
    elif kind == "WEBP":
        _check_chunks(data, 12, "little", extra=8)
    elif kind == "GIF":
        _check_gif_header(data)
    elif kind == "TIFF":
        check_tags(data, "TIFF file", claims=max(len(data), 2**20))
    return False


def refuse_run_lengths(data: bytes, size: tuple[int, int]) -> None:
    """Raise `ImageError` for a run-length BMP of this `size` that would take minutes."""
    if size[0] * size[1] > MOST_RUN_LENGTH_PIXELS or len(data) > MOST_RUN_LENGTH_BYTES:
        raise ImageError(
            "too-large", f"a run-length BMP of {size[0]} x {size[1]} pixels in {len(data)} bytes takes too long"
        )


def refuse_many_scans(data: bytes, size: tuple[int, int]) -> None:
    """Raise `ImageError` for a JPEG of this `size` with more scans than encoders make: each is a pass over it."""
    most = max(FEW_SCANS, min(MOST_SCANS, SCANNED_PIXELS // (size[0] * size[1])))
    if _at_most(most, data):
        return
    scans = 0
    for code in _markers(data):
        scans += code == _SOS
        if scans > most:
            raise ImageError("too-large", f"more than {most} scans of {size[0]} x {size[1]} pixels take too long")


def check_exif(exif: bytes) -> None:
    """Raise `ImageError` where a block of EXIF claims more than it can hold."""
    if exif.startswith(_EXIF * 16):  # Pillow strips the mark once a copy of all that follows
        raise ImageError("corrupt", "the EXIF block holds nothing but its own mark")
    check_tags(exif.removeprefix(_EXIF), "EXIF block", claims=CLAIMED_BYTES)


def check_tags(data: bytes, where: str, *, claims: int) -> None:
    """Raise `ImageError` where the first TIFF directory of `data` is not within the bounds above, or than `claims`."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return
    is_big = data[3 if order == ">" else 2] == 43
    offset, tag = ("Q", "HHQ8x") if is_big else ("L", "HHL4x")
    (start,) = struct.unpack_from(order + offset, data, 8 if is_big else 4)
    length = struct.calcsize(order + ("Q" if is_big else "H"))
    if start + length > len(data):
        return
    tags = int.from_bytes(data[start : start + length], "little" if order == "<" else "big")
    if tags > MOST_TAGS:
        raise ImageError("corrupt", f"the {where} claims {tags} tags")
    claimed = numbers = 0
    entry = struct.Struct(order + tag)
    first = start + length
    for at in range(first, min(first + tags * entry.size, len(data) - entry.size + 1), entry.size):
        name, kind, count = entry.unpack_from(data, at)
        claimed += count * _SIZES.get(kind, 0)
        numbers += 0 if kind in _BYTE_TYPES else count * (kind in _SIZES)
        if name in _OFFSETS and count > MOST_STRIPS:
            raise ImageError("too-large", f"the {where} has {count} strips or tiles")
    if claimed > claims or numbers > MOST_NUMBERS:
        raise ImageError("corrupt", f"the tags of the {where} claim {claimed} bytes, {numbers} numbers")


# --- JPEG


def _scans_are_counted(data: bytes) -> bool:
    """Walk the markers up to the first scan as Pillow does; return True where that scan is not the whole image.

    All of it is one scan unless the file is progressive or has a scan for each colour.
    """
    exif: list[bytes] = []
    at, count, stray, components, progressive = 2, 0, 0, 1, False
    while (mark := data.find(b"\xff", at)) >= 0 and mark + 1 < len(data):
        code = data[mark + 1]
        end = mark + 1 if code != 0xFF else _end_of_fill(data, mark)
        stray += end - at - 1
        if count > MOST_MARKERS or stray > MOST_STRAY_BYTES:
            raise ImageError("too-large", f"{count} markers and {stray} stray bytes before the first scan of the JPEG")
        code, at = data[end] if end < len(data) else 0, end + 1
        if code not in _WITH_LENGTH:
            if code and 0xFF00 | code not in MARKER:
                break  # Pillow gives up here
            stray += 2
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if code in _FRAMES and at + 7 < len(data):
            components, progressive = data[at + 7], code in _PROGRESSIVE
        elif code == _SOS:
            _check_segments(exif)
            return progressive or data[at + 2 : at + 3] < bytes([components])
        elif code in (_APP1, _APP2) and data[at + 2 : at + 6] in (b"Exif", b"MPF\0"):
            exif.append(data[at + 2 : at + length])
        at += max(2, length)
        count += 1
    _check_segments(exif)
    return False


def _check_segments(segments: list[bytes]) -> None:
    """Check the blocks of tags among the segments before the first scan; those of EXIF are one."""
    exif = b"".join(body[6:] for body in segments if body.startswith(_EXIF))
    if len(exif) > MOST_EXIF:
        raise ImageError("too-large", f"{len(exif)} bytes of EXIF, the limit is {MOST_EXIF}")
    check_exif(exif)
    for body in segments:
        if body.startswith(b"MPF\0"):
            check_tags(body[4:], "index of images", claims=CLAIMED_BYTES)


def _end_of_fill(data: bytes, at: int) -> int:
    found = _FILL.match(data, at)
    return at if found is None else found.end()


def _at_most(most: int, data: bytes) -> bool:
    """Return True where at most `most` pairs of bytes look like the marker of a scan, which is faster than a walk."""
    codes, pairs = np.frombuffer(data, np.uint8), 0
    for start in range(0, len(codes), 2**20):
        block = codes[start : start + 2**20 + 1]
        pairs += int(np.count_nonzero((block[:-1] == 0xFF) & (block[1:] == _SOS)))
    return pairs <= most


def _markers(data: bytes) -> Iterator[int]:
    """Yield the codes of all markers of the first image, those between and inside of its scans too."""
    at = 2
    while (found := _MARKER_IN_SCAN.search(data, at)) is not None:
        code = data[found.end() - 1]
        if code == _EOI:
            return
        yield code
        at = found.end()
        if code not in (0x01, 0xD8):
            at += max(2, int.from_bytes(data[at : at + 2], "big"))


# --- the others


def _check_chunks(
    data: bytes, at: int, order: Literal["big", "little"], *, extra: int, end: bytes | None = None
) -> None:
    """Count the chunks of a PNG (length, name) or a RIFF file (name, length), with `extra` bytes beside each body."""
    length, name = (0, 4) if order == "big" else (4, 0)
    for _ in range(MOST_CHUNKS):
        if at + 8 > len(data) or data[at + name : at + name + 4] == end:
            return
        body = int.from_bytes(data[at + length : at + length + 4], order)
        at += extra + body + (body % 2 if order == "little" else 0)
    raise ImageError("too-large", f"more than {MOST_CHUNKS} chunks")


def _check_gif_header(data: bytes) -> None:
    """Count the blocks of extensions before the first frame."""
    if len(data) < 13:
        return
    at = 13 + (3 << (data[10] % 8 + 1) if data[10] & 0x80 else 0)
    comment = steps = 0
    while at < len(data) and data[at] not in b",;":
        is_comment = data[at : at + 2] == b"!\xfe"
        is_extension = data[at] == 0x21
        at += 2 if is_extension else 1
        steps += 1
        while is_extension and at < len(data) and steps <= MOST_CHUNKS and data[at]:
            comment += data[at] if is_comment else 0
            at += 1 + data[at]
            steps += 1
        at += is_extension
        if steps > MOST_CHUNKS or comment > MOST_COMMENT:
            raise ImageError(
                "too-large", f"{steps} blocks and a comment of {comment} bytes before the first frame of the GIF"
            )
