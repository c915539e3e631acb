"""Format 1 of a feature file: the header, and where it places the columns.

    bytes 0 to H            the header: one line of text with H and a checksum, then JSON (an HDF5 user block)
    bytes H to file_size    an HDF5 file: contiguous datasets, and between them the structure that names them

The header says everything that HDF5's structure says (names, types, shapes, offsets, attributes), so that a
reader never has to hand bytes that it does not trust to the HDF5 library. HDF5 in turn lets every other
program read the file, and draws the plan: in memory, before a file exists. All bytes are written by
`pipeline.files`.

    /features/<layer>    float32 or float16 (N, ...)    NaN in the rows of bad images
    /id, /split          utf-8 (N,), fixed length, escaped as `escape` says
    /target/<name>       int64 (N,), -1 unknown, attribute `names`; or float64 (N,), NaN unknown
    /source/size, /source/mtime_ns    int64 (N,), -1 unknown        /source/sha256    uint8 (N, 32), 0 unknown
    /commit              uint32 (N,): CRC-32 over a row's features, source and status (`rows.row_checksums`)
    /status              uint8 (N,): 0 pending, 1 good, 2.. the reasons of `errors.BAD_IMAGE`
    /checksum/<column>   uint32, CRC-32 of each block of `rows` (an attribute) rows of that column
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import zlib
from collections.abc import Callable, Sequence
from math import prod
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer

from pipeline.config import MAX_PIXELS, Recipe
from pipeline.errors import BAD_IMAGE, SettingsError, StoreDamagedError

FORMAT = "pipeline-features"
VERSION = 1
PENDING, GOOD, FIRST_BAD = 0, 1, 2
STATUS_NAMES = ("pending", "good", *BAD_IMAGE)

#: A header, or a structure, is read into memory before it is trusted; this is room for millions of class names.
LARGEST_HEADER = 1 << 28
MAGIC = re.compile(rb"pipeline-features 1 header=([0-9]{1,9}) crc32=([0-9a-f]{8})\n")


# --- names


def escape(text: str) -> str:
    r"""Make `text` UTF-8 without NUL, reversibly: ``\uXXXX`` for NUL and lone surrogates, ``\\`` for ``\``.

    >>> escape(b"caf\xe9.jpg".decode(errors="surrogateescape"))
    'caf\\udce9.jpg'
    """
    safe = text.replace("\\", "\\\\").replace("\0", "\\u0000")
    return safe.encode("utf-8", "backslashreplace").decode("utf-8")


def unescape(text: str) -> str:
    """Invert `escape`."""
    if "\\" not in text:
        return text
    return re.sub(r"\\(\\|u([0-9a-f]{4}))", lambda found: chr(int(found[2], 16)) if found[2] else "\\", text)


def dataset_name(name: str) -> str:
    """Return `name` as the last part of an HDF5 path: escaped, without a slash, and not a lone dot.

    Raises `SettingsError` for an empty name.
    """
    if not name:
        raise SettingsError("a layer or a target needs a name, and one is empty")
    return "\\u002e" if name == "." else escape(name).replace("/", "\\u002f")


def encode_texts(texts: list[str]) -> NDArray[np.bytes_]:
    """Encode texts as a column holds them: escaped, fixed-length UTF-8, padded with NUL, (n,)."""
    encoded = [escape(text).encode() for text in texts]
    return np.array(encoded, dtype=f"S{max(1, *map(len, encoded), 1)}")


def decode_texts(column: NDArray[np.bytes_]) -> list[str]:
    """Invert `encode_texts`."""
    return [unescape(text.decode()) for text in column.tolist()]


# --- the header


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Offset = Annotated[int, Field(ge=0, lt=1 << 62, strict=True)]
Length = Annotated[int, Field(ge=1, lt=1 << 62, strict=True)]


class Column(_Strict):
    """One dataset: N rows of `shape[1:]` at `offset`, and a checksum for each `block` rows at `checksum`."""

    dtype: Annotated[str, Field(pattern=r"^(<f4|<f2|<f8|<i8|<u4|\|u1|\|S[1-9][0-9]{0,6})$")]
    shape: Annotated[tuple[Length, ...], Field(min_length=1, max_length=8)]
    block: Length
    offset: Offset = 0
    checksum: Offset = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.shape[0] * self.row_bytes

    @property
    def blocks(self) -> int:
        """Number of blocks, and so of checksums; the last block may be short."""
        return -(-self.shape[0] // self.block)

    @property
    def extents(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Start and stop of the data and of its checksums, in bytes of the file."""
        return (self.offset, self.offset + self.nbytes), (self.checksum, self.checksum + 4 * self.blocks)

    def empty(self, rows: int) -> NDArray[Any]:
        """Return an uninitialised array for `rows` rows of the column."""
        return np.empty((rows, *self.shape[1:]), self.dtype)


class Part(_Strict):
    """Rows `start` to `stop` of a list of `total` ids whose digest is `ids_sha256`."""

    start: Offset
    stop: Length
    total: Length
    ids_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, ids: Sequence[str], start: int, stop: int) -> Self:
        """Make the part of rows `start` to `stop` of the list of all `ids`."""
        digest = hashlib.sha256()
        for name in ids:
            digest.update(escape(name).encode() + b"\0")
        return cls(start=start, stop=stop, total=len(ids), ids_sha256=digest.hexdigest())

    @classmethod
    def whole(cls, ids: Sequence[str]) -> Self:
        """Make the part that is all of the list."""
        return cls.of(ids, 0, len(ids))

    @property
    def is_whole(self) -> bool:
        """True where it is all of the list."""
        return (self.start, self.stop) == (0, self.total)


class Environment(BaseModel):
    """The place and the tools that features were computed with; it may differ between two runs of one recipe.

    Files of other versions may lack some of the fields and have others, which are kept as they are.

    >>> Environment(weights="none", seed=13, color="red").model_dump()
    {'weights': 'none', 'seed': 13, 'color': 'red'}
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    #: Origin of the base's weights: a published name, or a file.
    weights: str | None = None
    seed: int | None = None
    #: Options that the images were listed with, where they are not the defaults.
    source: dict[str, Any] = {}
    #: Larger images were bad.
    max_pixels: int = MAX_PIXELS
    engine: str | None = None
    device: str | None = None
    host: str | None = None
    platform: str | None = None
    versions: dict[str, str] = {}
    #: True in a file that was begun anew though there was another.
    forced: bool = False
    #: Of int8: images, and the cosine of their features to those in single precision, its mean and least.
    drift: dict[str, float] | None = None

    @model_serializer(mode="wrap")
    def _given(self, serialize: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """Leave out fields that were not given: written again, a header is the same bytes."""
        missing = type(self).model_fields.keys() - self.model_fields_set
        return {name: value for name, value in serialize(self).items() if name not in missing}


def new_token() -> str:
    """Draw a random name for one file: 16 hexadecimal digits."""
    return secrets.token_hex(8)


class Header(_Strict):
    """Everything about a feature file but its rows."""

    format: Literal["pipeline-features"] = "pipeline-features"
    format_version: Literal[1] = 1
    created: str
    #: Random: two files are never taken for one another, however alike they are.
    token: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    source: str
    recipe: Recipe
    environment: Environment
    part: Part
    #: Column to the escaped names of its classes, None for numbers.
    targets: dict[Annotated[str, Field(pattern="^target/.")], tuple[str, ...] | None]
    columns: dict[str, Column]
    file_size: Length = 1
    structure_crc32: Offset = 0

    @property
    def rows(self) -> int:
        """Number of rows N."""
        return self.columns["id"].shape[0]

    @property
    def layers(self) -> list[str]:
        """The columns that hold features."""
        return [name for name in self.columns if name.startswith("features/")]

    @property
    def feature_bytes(self) -> int:
        """Bytes of one row of all layers."""
        return sum(self.columns[name].row_bytes for name in self.layers)

    def structure(self, header_bytes: int) -> list[tuple[int, int]]:
        """Return start and stop of every stretch that is neither header nor data: HDF5's own structure."""
        gaps, position = [], header_bytes
        for start, stop in sorted(extent for column in self.columns.values() for extent in column.extents):
            if start > position:
                gaps.append((position, start))
            position = max(position, stop)
        return [*gaps, (position, self.file_size)] if position < self.file_size else gaps

    def to_bytes(self, size: int | None = None) -> bytes:
        """Encode the header as it lies in the file, padded to `size` bytes (by default the smallest that fits)."""
        text = json.dumps(self.model_dump(mode="json"), indent=0).encode()
        size = size or _user_block(len(text) + 64)
        line_length = len(_first_line(size, 0))
        body = text.ljust(size - line_length, b"\0")
        return _first_line(size, zlib.crc32(body)) + body


def _first_line(size: int, crc: int) -> bytes:
    return f"{FORMAT} {VERSION} header={size} crc32={crc:08x}\n".encode()


def _user_block(needed: int) -> int:
    """Return the smallest size that HDF5 takes for a user block of `needed` bytes: a power of two, at least 4096."""
    return max(4096, 1 << (needed - 1).bit_length())


def header_size(first_bytes: bytes, where: str) -> int:
    """Read the header's size in bytes from its first line. Raises `StoreDamagedError` where there is none."""
    found = MAGIC.match(first_bytes)
    if not found:
        raise StoreDamagedError(f"{where} is not a feature file of format {VERSION}, or its first line is damaged")
    size = int(found[1])
    if not len(found[0]) < size <= LARGEST_HEADER:
        raise StoreDamagedError(f"{where}: the first line gives an invalid header size of {size} bytes")
    return size


def parse_header(data: bytes, *, where: str, file_size: int) -> Header:
    """Decode the header in the first `header_size` bytes of a file, and check it against its checksum and the size.

    Raises `StoreDamagedError`, in one line, for every header that no writer of this format makes.
    """
    found = MAGIC.match(data)
    if not found or zlib.crc32(data[found.end() :]) != int(found[2], 16):
        raise StoreDamagedError(f"{where}: the header fails its checksum; restore the file from a copy")
    try:
        header = Header.model_validate(json.loads(data[found.end() :].rstrip(b"\0")))
    except (ValidationError, ValueError, RecursionError, OverflowError) as error:
        first = str(error).splitlines()[0]
        raise StoreDamagedError(f"{where}: the header is not valid in format {VERSION} ({first})") from None
    if header.file_size != file_size:
        raise StoreDamagedError(
            f"{where} has {file_size} bytes and should have {header.file_size}; restore it from a copy"
        )
    _check_layout(header, len(data), where)
    return header


def _check_layout(header: Header, header_bytes: int, where: str) -> None:
    """Raise `StoreDamagedError` unless all columns are ours, have N rows and lie apart, inside the file."""
    problem = _layout_problem(header, header_bytes)
    if problem:
        raise StoreDamagedError(f"{where}: the header is not valid in format {VERSION} ({problem})")


def _layout_problem(header: Header, header_bytes: int) -> str | None:
    dtypes: dict[str, tuple[str, ...]] = {
        **dict.fromkeys(header.layers, ("<f4", "<f2")),
        "id": ("|S",),
        "split": ("|S",),
        "source/size": ("<i8",),
        "source/mtime_ns": ("<i8",),
        "source/sha256": ("|u1",),
        "commit": ("<u4",),
        "status": ("|u1",),
        **{name: ("<f8",) if classes is None else ("<i8",) for name, classes in header.targets.items()},
    }
    if not header.layers or header.columns.keys() != dtypes.keys():
        return f"its columns are {', '.join(header.columns)}"
    for name in (*header.layers, *header.targets):
        group, _, last = name.partition("/")
        if not last or f"{group}/{dataset_name(unescape(last))}" != name:
            return f"{name!r} is not a name as it is escaped"
    for name, column in header.columns.items():
        row_shape = (32,) if name == "source/sha256" else column.shape[1:] if name in header.layers else ()
        if not column.dtype.startswith(dtypes[name]) or column.shape != (header.rows, *row_shape):
            return f"{name} holds {column.shape} of {column.dtype} for {header.rows} rows"
    end = header_bytes
    for start, stop in sorted(extent for column in header.columns.values() for extent in column.extents):
        if start < end or stop > header.file_size:
            return f"bytes {start} to {stop} of {header.file_size} lie over others or outside"
        end = stop
    part = header.part
    if not part.start + header.rows == part.stop <= part.total:
        return f"rows {part.start} to {part.stop} of {part.total} are not {header.rows}"
    return None


def target_column(name: str) -> str:
    """Return the column of the target `name`."""
    return f"target/{dataset_name(name)}"


def layer_column(name: str) -> str:
    """Return the column of the layer `name`."""
    return f"features/{dataset_name(name)}"


def plain_name(column: str) -> str:
    """Invert `target_column` and `layer_column`."""
    return unescape(column.partition("/")[2])
