"""The HDF5 side of a feature file: its structure, and the offset of every dataset.

HDF5 lays the file out in memory, before one exists, and never writes to one: it says where the structure and every
dataset lie, and `pipeline.files` writes them there.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SettingsError
from pipeline.store.header import STATUS_NAMES, Column, Header, layer_column

#: About how many bytes one checksum covers: small enough to check for one row, large enough to be quick for all.
BLOCK_BYTES = 1 << 18
_ALIGNED = 1 << 16  # data of this size and more starts at a page


@dataclass(frozen=True)
class LayerSpec:
    """One layer of features: `shape` is that of one row, with its views."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Layout:
    """A feature file without its rows: `pieces` of bytes at their offsets, the header first.

    `structure` is all that lies between the columns, joined.
    """

    header: Header
    pieces: list[tuple[int, bytes]]
    structure: bytes


def plan_columns(layers: Sequence[LayerSpec], fixed: dict[str, NDArray[Any]]) -> dict[str, Column]:
    """Return all columns of a file, whose `fixed` ones (id, split, targets) are known from the start.

    Raises `SettingsError` for a layer that no file can hold.
    """
    rows = len(fixed["id"])
    return {
        **{layer_column(spec.name): _layer(spec, rows) for spec in layers},
        **{name: _column(values.dtype.str, values.shape) for name, values in fixed.items()},
        "source/size": _column("<i8", (rows,)),
        "source/mtime_ns": _column("<i8", (rows,)),
        "source/sha256": _column("|u1", (rows, 32)),
        "commit": _column("<u4", (rows,)),
        "status": _column("|u1", (rows,)),
    }


def _layer(spec: LayerSpec, rows: int) -> Column:
    if spec.dtype not in ("float32", "float16") or 0 in spec.shape or len(spec.shape) > 7:
        raise SettingsError(f"layer {spec.name}: {spec.shape} of {spec.dtype} cannot be a row of features")
    return _column("<f4" if spec.dtype == "float32" else "<f2", (rows, *spec.shape))


def _column(dtype: str, shape: tuple[int, ...]) -> Column:
    row_bytes = prod(shape[1:]) * np.dtype(dtype).itemsize
    return Column(dtype=dtype, shape=shape, block=max(1, BLOCK_BYTES // row_bytes))


def lay_out(header: Header) -> Layout:
    """Have HDF5 lay out the file in memory, and put the offsets that it chose into the header."""
    # The size of the header decides the offsets, and these stand in the header: it is measured with the longest ones.
    widest = {
        name: column.model_copy(update={"offset": 10**18, "checksum": 10**18})
        for name, column in header.columns.items()
    }
    size = len(header.model_copy(update={"columns": widest, "file_size": 10**18}).to_bytes())
    sketch = _Sketch()
    with h5py.File(
        sketch,
        "w",
        libver=("v110", "v110"),
        userblock_size=size,
        alignment_threshold=_ALIGNED,
        alignment_interval=4096,
    ) as file:
        file.attrs.update(hdf5_attributes(header))
        columns = {name: _place_column(file, name, column) for name, column in header.columns.items()}
        _write_names(file, header)
    placed = header.model_copy(update={"columns": columns, "file_size": sketch.size})
    structure = b"".join(sketch.bytes_at(start, stop - start) for start, stop in placed.structure(size))
    placed = placed.model_copy(update={"structure_crc32": zlib.crc32(structure)})
    return Layout(placed, [(0, placed.to_bytes(size)), *sketch.pieces], structure)


def hdf5_attributes(header: Header) -> dict[str, str | int]:
    """Return the attributes of the file's root: the header in the form that other programs read."""
    return {
        "format": header.format,
        "format_version": header.format_version,
        "recipe": header.recipe.canonical(),
        "recipe_sha256": header.recipe.fingerprint(),
        "environment": json.dumps(header.environment.model_dump(mode="json"), sort_keys=True),
        "created": header.created,
        "source": header.source,
        "part": json.dumps(header.part.model_dump(), sort_keys=True),
    }


def _place_column(file: h5py.File, name: str, column: Column) -> Column:
    data = _create_dataset(file, name, column.dtype, column.shape)
    checksums = _create_dataset(file, f"checksum/{name}", "<u4", (column.blocks,))
    checksums.attrs["rows"] = column.block
    checksums.attrs["algorithm"] = "crc32"
    return column.model_copy(update={"offset": data.id.get_offset(), "checksum": checksums.id.get_offset()})


def _create_dataset(file: h5py.File, name: str, dtype: str, shape: tuple[int, ...]) -> h5py.Dataset:
    """Create a contiguous dataset whose place is fixed now and whose bytes HDF5 never touches."""
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_layout(h5py.h5d.CONTIGUOUS)
    create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    create.set_obj_track_times(False)
    link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    link.set_create_intermediate_group(True)
    link.set_char_encoding(h5py.h5t.CSET_UTF8)
    kind = h5py.h5t.py_create(_hdf5_dtype(dtype), logical=True)
    space = h5py.h5s.create_simple(shape)
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=create, lcpl=link))


def _hdf5_dtype(dtype: str) -> np.dtype[Any]:
    if dtype.startswith("|S"):
        return h5py.string_dtype("utf-8", int(dtype[2:]))  # type: ignore[no-any-return]
    return np.dtype(dtype)


def _write_names(file: h5py.File, header: Header) -> None:
    file["status"].attrs["names"] = list(STATUS_NAMES)
    for target, classes in header.targets.items():
        if classes is not None:
            names = np.array(classes, dtype=object)
            file[target].attrs.create("names", names, dtype=h5py.string_dtype())


class _Sketch(io.RawIOBase):
    """A file in memory that keeps only what was written: HDF5 lays the file out on it, and the gaps cost nothing."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []
        self.size = 0
        self._position = 0

    def bytes_at(self, start: int, length: int) -> bytearray:
        """Return the bytes there, zeros where nothing was written; later writes win."""
        found = bytearray(length)
        for offset, piece in self.pieces:
            first, last = max(offset, start), min(offset + len(piece), start + length)
            if first < last:
                found[first - start : last - start] = piece[first - offset : last - offset]
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, which may lie beyond the end."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the position on."""
        buffer[:] = self.bytes_at(self._position, len(buffer))
        self._position += len(buffer)
        return len(buffer)

    def write(self, data: Any) -> int:
        """Keep `data` at the position."""
        piece = bytes(data)
        self.pieces.append((self._position, piece))
        self._position += len(piece)
        self.size = max(self.size, self._position)
        return len(piece)

    def truncate(self, size: int | None = None) -> int:
        """Set the size of the file."""
        self.size = self._position if size is None else size
        return self.size

    def flush(self) -> None:
        """Do nothing: no byte is held back."""
