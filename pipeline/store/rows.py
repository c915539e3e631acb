"""The rows of one feature file at the level of bytes: read at their offsets and checked.

Two kinds of CRC-32 protect a file. Every row has one in ``commit``, written with it, so that a file that was
cut off in the middle of its life can be taken up again. Every block of rows of every column has one in
``checksum``, written when the file is published, so that reading is quick: what is returned is always whole
blocks, each checked.
"""

from __future__ import annotations

import os
import weakref
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline import files
from pipeline.devices import cores
from pipeline.errors import SettingsError, StoreDamagedError, StoreError
from pipeline.store.header import LARGEST_HEADER, Column, Header, header_size, parse_header

#: Read in threads from here on; below it, starting them takes longer than reading.
_THREADED_BYTES = 1 << 23


def read_exactly(descriptor: int, buffer: memoryview, offset: int, where: str) -> None:
    """Fill `buffer` from `offset`. Raises `StoreDamagedError` where the file ends before."""
    buffer = buffer.cast("B")
    while buffer:
        got = os.preadv(descriptor, [buffer], offset)
        if not got:
            raise StoreDamagedError(f"{where} ends at byte {offset}, before its data does; restore it from a copy")
        buffer, offset = buffer[got:], offset + got


def _read_header(path: Path, descriptor: int) -> tuple[Header, int]:
    """Read the header, and its size in bytes."""
    where = str(path)
    try:
        start = os.pread(descriptor, 100, 0)
        file_size = os.fstat(descriptor).st_size
        size = header_size(start, where)
        head = bytearray(min(size, file_size))
        read_exactly(descriptor, memoryview(head), 0, where)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    return parse_header(bytes(head), where=where, file_size=file_size), size


def row_numbers(rows: ArrayLike, count: int) -> NDArray[np.int64]:
    """Return `rows` of a file of `count` rows as indices (n,): they are indices already, or a mask over all of them.

    Raises `SettingsError` where they are neither, `IndexError` where there is no such row.

    >>> row_numbers([True, False, True], 3)
    array([0, 2])
    """
    given = np.asarray(rows)
    if given.dtype == bool and given.shape == (count,):
        return np.flatnonzero(given)
    if given.ndim != 1 or (given.dtype.kind not in "iu" and given.size):
        raise SettingsError(
            f"rows of {given.dtype} {given.shape} choose nothing; give indices, (n,) integers, or a mask,"
            f" ({count},) bool"
        )
    if given.size and not 0 <= given.min() <= given.max() < count:
        raise IndexError(f"rows {given.min()} to {given.max()} of a store of {count}")
    return given.astype(np.int64)


def as_bytes(array: NDArray[Any]) -> memoryview:
    """View a C-contiguous array as bytes, without a copy."""
    return array.reshape(-1).view(np.uint8).data


@dataclass
class RowFile:
    """A feature file, finished or not, opened; `close` or the end of a ``with`` block closes it."""

    path: Path
    descriptor: int
    header: Header
    header_bytes: int

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> Self:
        """Open `path`, checking header, size and structure.

        Raises `StoreDamagedError` where they are not what was written or not ours, `StoreError` where the
        operating system refuses.
        """
        flags = os.O_RDWR | os.O_NOFOLLOW if writable else os.O_RDONLY
        try:
            descriptor = os.open(path, flags | os.O_NONBLOCK)
        except (OSError, ValueError) as error:  # the latter for a name with NUL in it
            raise StoreError(f"{path} cannot be opened: {getattr(error, 'strerror', error)}") from None
        try:
            file = cls(path, descriptor, *_read_header(path, descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        try:
            file._check_structure()
        except BaseException:
            file.close()
            raise
        return file

    def __post_init__(self) -> None:
        self._closing = weakref.finalize(self, os.close, self.descriptor)

    def structure(self) -> bytes:
        """Read all that lies between header and columns, unchecked."""
        extents = self.header.structure(self.header_bytes)
        if sum(stop - start for start, stop in extents) > LARGEST_HEADER:
            raise StoreDamagedError(f"{self.path}: its columns fill far too little of it; restore it from a copy")
        gaps = [(start, bytearray(stop - start)) for start, stop in extents]
        for start, gap in gaps:
            read_exactly(self.descriptor, memoryview(gap), start, str(self.path))
        return b"".join(gap for _, gap in gaps)

    def _check_structure(self) -> None:
        if zlib.crc32(self.structure()) != self.header.structure_crc32:
            raise StoreDamagedError(f"{self.path}: the HDF5 structure fails its checksum; restore the file from a copy")

    def close(self) -> None:
        """Close the file now; one that is dropped closes itself."""
        self._closing()
        self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- without checksums: for rows that are still being written

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read rows `start` to `stop` of a column as they lie there, unchecked."""
        column = self.header.columns[name]
        rows = column.empty((self.header.rows if stop is None else stop) - start)
        read_exactly(self.descriptor, as_bytes(rows), column.offset + start * column.row_bytes, str(self.path))
        return rows

    # --- with checksums

    def column(self, name: str) -> NDArray[Any]:
        """Read a whole column, every block checked. Raises `StoreDamagedError` naming the block."""
        return self.span(name, 0, self.header.rows)

    def span(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Read rows `start` to `stop` of a column, every block that they touch checked."""
        column = self.header.columns[name]
        first, last = start // column.block, -(-stop // column.block)
        begin = first * column.block
        rows = column.empty(min(last * column.block, self.header.rows) - begin)
        self._fill(name, rows, range(first, last))
        return rows[start - begin : stop - begin]

    def take(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read the given rows of a column in their order, every block that they touch checked."""
        column = self.header.columns[name]
        taken = column.empty(len(rows))
        if not len(rows):
            return taken
        order = np.argsort(rows, kind="stable")
        blocks, starts = np.unique(rows[order] // column.block, return_index=True)
        for block, which in zip(blocks.tolist(), np.split(order, starts[1:]), strict=True):
            begin = block * column.block
            taken[which] = self.span(name, begin, min(begin + column.block, self.header.rows))[rows[which] - begin]
        return taken

    def damaged_blocks(self, name: str) -> Iterator[str]:
        """Yield one line for every block of a column that fails its checksum."""
        column = self.header.columns[name]
        for block in range(column.blocks):
            start = block * column.block
            try:
                self.span(name, start, min(start + column.block, self.header.rows))
            except StoreDamagedError as error:
                yield str(error)

    def _fill(self, name: str, rows: NDArray[Any], blocks: range) -> None:
        """Read `blocks` into `rows`, which has room for exactly them, and check each."""
        column, buffer = self.header.columns[name], as_bytes(rows)
        block_bytes = column.block * column.row_bytes
        checksums = np.empty(len(blocks), "<u4")
        where = f"{self.path}, checksums of {name}"
        read_exactly(self.descriptor, as_bytes(checksums), column.checksum + 4 * blocks.start, where)

        def fill(which: Sequence[int]) -> None:
            for index in which:
                piece = buffer[index * block_bytes : (index + 1) * block_bytes]
                block = blocks.start + index
                read_exactly(self.descriptor, piece, column.offset + block * block_bytes, str(self.path))
                if zlib.crc32(piece) != checksums[index]:
                    raise StoreDamagedError(self._describe_damage(name, block))

        if len(buffer) < _THREADED_BYTES:
            fill(range(len(blocks)))
        else:
            _in_threads(fill, len(blocks))

    def _describe_damage(self, name: str, block: int) -> str:
        size = self.header.columns[name].block
        last = min((block + 1) * size, self.header.rows) - 1
        return (
            f"{self.path}: {name}, block {block} (rows {block * size} to {last}) fails its checksum;"
            " restore the file from a copy, or extract again with --force"
        )


def _in_threads(work: Any, items: int) -> None:
    threads = min(4, cores())
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, range(first, items, threads)) for first in range(threads)]:
            done.result()


def row_checksums(
    features: Sequence[NDArray[Any]],
    *,
    size: NDArray[np.int64],
    mtime_ns: NDArray[np.int64],
    sha256: NDArray[np.uint8],
    status: NDArray[np.uint8],
) -> NDArray[np.uint32]:
    """Compute the CRC-32 (n,) of each row: its source, its status, then its features layer by layer."""
    columns = (size, mtime_ns, sha256, status)
    rows = len(size)
    if not rows:
        return np.empty(0, np.uint32)
    labels = np.concatenate([np.ascontiguousarray(column).view(np.uint8).reshape(rows, -1) for column in columns], 1)
    pieces = [(as_bytes(layer), layer.nbytes // rows) for layer in (labels, *map(np.ascontiguousarray, features))]
    crcs = np.empty(rows, np.uint32)
    for row in range(rows):
        crc = 0
        for data, length in pieces:
            crc = zlib.crc32(data[row * length : (row + 1) * length], crc)
        crcs[row] = crc
    return crcs


def runs(indices: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the positions `start`, `stop` in `indices` of each stretch that counts up by one.

    >>> list(runs(np.array([3, 4, 7])))
    [(0, 2), (2, 3)]
    """
    if len(indices):
        breaks = np.flatnonzero(np.diff(indices) != 1) + 1
        yield from zip([0, *breaks.tolist()], [*breaks.tolist(), len(indices)], strict=True)


def write_rows(descriptor: int, column: Column, indices: NDArray[np.int64], rows: NDArray[Any]) -> None:
    """Write `rows` to their places, one system call for each run of neighbours."""
    rows = np.ascontiguousarray(rows, column.dtype)
    for start, stop in runs(indices):
        offset = column.offset + int(indices[start]) * column.row_bytes
        files.write_at(descriptor, as_bytes(rows[start:stop]), offset)
