"""Members of a plain tar file, by a reader that always ends: ustar, GNU's and pax's headers.

Every step goes forward by at least one block, a member has to end inside of the file, and what stands before a
member to give it a longer name is bounded. What breaks these rules is damage, and the whole file is refused.
https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

BLOCK = 512
#: A long name, or a pax header, of more bytes is refused.
LONGEST_EXTENSION = 2**20

_REGULAR = b"0\x007"
#: Links, devices, folders and pipes: whatever size they say, no data follows.
_WITHOUT_DATA = b"123456"
_LINKS = b"12"
_LONG_NAME, _LONG_LINK, _GNU_SPARSE = b"L", b"K", b"S"
_PAX, _PAX_OF_SOLARIS, _PAX_GLOBAL = b"x", b"X", b"g"
_OCTAL = re.compile(rb" *([0-7]*) *(\0.*)?", re.DOTALL)
#: Digits of the largest number that any file could need; longer ones are not even converted.
_MOST_DIGITS = 20
#: Bytes of a name, as no system takes longer paths; one header may name many members.
_LONGEST_NAME = 4096


class TarDamage(Exception):
    """A file that is not a whole, plain tar."""


@dataclass(frozen=True, slots=True)
class Member:
    """An entry of a tar, with its data at `offset`; `kind` is file, sparse file, link or other."""

    name: str
    kind: str
    offset: int
    size: int


@dataclass
class _Extensions:
    """Extended headers before a member: pax's, for one member or for all that follow, or a long name."""

    lasting: dict[str, str] = field(default_factory=dict)
    passing: dict[str, str] = field(default_factory=dict)
    long_name: str | None = None


def read_members(file: BinaryIO, size: int) -> Iterator[Member]:
    """Yield the members of an open file of `size` bytes, in their order; raise `TarDamage` unless it is whole."""
    position, extensions = 0, _Extensions()
    while True:
        header = _read(file, position, BLOCK, size)
        if not header.strip(b"\0"):
            _require_end(file, position, size)
            return
        _check(header, position)
        kind, length = header[156:157], _number(header[124:136], position)
        position += BLOCK
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_SOLARIS, _PAX_GLOBAL):
            if length > LONGEST_EXTENSION:
                raise TarDamage(f"an extended header of {length} bytes at byte {position - BLOCK}")
            _extend(extensions, kind, _read(file, position, length, size), position)
        else:
            member, position = _member(file, header, extensions, position, size)
            yield member
            extensions = _Extensions(extensions.lasting)
            continue
        position += _padded(length)


def _read(file: BinaryIO, position: int, length: int, size: int) -> bytes:
    if position + length > size:
        raise TarDamage("the file was cut short: its end mark is absent")
    data = os.pread(file.fileno(), length, position)
    if len(data) < length:
        raise TarDamage(f"the file ends at byte {position + len(data)}")
    return data


def _require_end(file: BinaryIO, position: int, size: int) -> None:
    """Raise `TarDamage` where more than padding follows the end mark; a megabyte of it is looked at."""
    if _read(file, position, min(2**20, size - position), size).strip(b"\0"):
        raise TarDamage(f"a second archive begins after byte {position}")


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _check(header: bytes, position: int) -> None:
    """Raise `TarDamage` unless a header has its checksum: of unsigned bytes, or of signed ones as in some old tars."""
    plain = header[:148] + b" " * 8 + header[156:]  # its own field counts as spaces
    unsigned = sum(plain)
    said = _number(header[148:156], position)
    if said not in (unsigned, unsigned - 256 * sum(byte > 127 for byte in plain)):
        raise TarDamage(f"damaged at byte {position}")


def _number(digits: bytes, position: int) -> int:
    """Parse an octal number, or, where its first bit is set, the big-endian one of GNU tar."""
    if digits[0] == 0x80:
        return int.from_bytes(digits[1:], "big")
    octal = _OCTAL.fullmatch(digits)
    if octal is None:  # a negative number of GNU tar's, too
        raise TarDamage(f"damaged at byte {position}: {digits!r} is not a number")
    return int(octal[1] or b"0", 8)


def _member(file: BinaryIO, header: bytes, extensions: _Extensions, position: int, size: int) -> tuple[Member, int]:
    """Return the member of a header that ends at `position`, and where the next header is."""
    fields = extensions.lasting | extensions.passing
    kind, length = header[156:157], _number(header[124:136], position - BLOCK)
    name = _name(header) if extensions.long_name is None else extensions.long_name
    if kind == _GNU_SPARSE:
        position = _skip_sparse_map(file, header, position, size)
    if "size" in fields:
        length = _decimal(fields["size"], position)
    name = fields.get("path", name)
    is_folder = kind == b"\0" and name.endswith("/")  # as the oldest tars have them
    follows = 0 if kind in _WITHOUT_DATA or is_folder else length
    if len(name) > _LONGEST_NAME or "\0" in name:
        raise TarDamage(f"the name before byte {position} is not a name that a file can have")
    if position + follows > size:
        raise TarDamage(f"the file was cut short: {name!r} is not whole")
    described = "other" if is_folder else _describe(kind, is_sparse=kind == _GNU_SPARSE or "sparse" in fields)
    return Member(name.rstrip("/"), described, position, length), position + _padded(follows)


def _describe(kind: bytes, *, is_sparse: bool) -> str:
    if kind in _LINKS:
        return "link"
    if is_sparse:
        return "sparse file"
    return "file" if kind in _REGULAR else "other"


def _skip_sparse_map(file: BinaryIO, header: bytes, position: int, size: int) -> int:
    """Skip the further blocks of an old GNU sparse file's map, each of which says whether another follows."""
    goes_on = header[482]
    while goes_on:
        goes_on = _read(file, position, BLOCK, size)[504]
        position += BLOCK
    return position


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _extend(extensions: _Extensions, kind: bytes, data: bytes, position: int) -> None:
    if kind == _LONG_NAME:
        extensions.long_name = _text(data)
    elif kind == _PAX_GLOBAL:
        extensions.lasting = extensions.lasting | _pax_fields(data, position)
    elif kind in (_PAX, _PAX_OF_SOLARIS):
        extensions.passing = _pax_fields(data, position)


def _pax_fields(data: bytes, position: int) -> dict[str, str]:
    """Parse the records ``LENGTH KEY=VALUE`` that tell where a member is and how it is called."""
    fields: dict[str, str] = {}
    at = 0
    while at < len(data) and data[at]:
        digits = data[at : at + _MOST_DIGITS].split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() else 0
        record = data[at + len(digits) + 1 : at + length]
        key, equals, value = record.partition(b"=")
        if length > len(data) - at or not equals or not value.endswith(b"\n"):
            raise TarDamage(f"an extended header at byte {position} is damaged")
        if key.startswith(b"GNU.sparse."):
            fields["sparse"] = ""
        elif key in (b"path", b"size"):
            fields[key.decode()] = value[:-1].decode("utf-8", "surrogateescape")
        at += length
    return fields


def _decimal(digits: str, position: int) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS):
        raise TarDamage(f"an extended header before byte {position} has the size {digits[:_MOST_DIGITS]!r}")
    return int(digits)
