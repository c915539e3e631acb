"""The header and HDF5 say the same of a file, or the difference is named."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import h5py

from pipeline.store.inspection import hdf5_differences, inspect
from pipeline.store.rows import RowFile


def test_a_file_that_the_writer_wrote_has_no_difference(path: Path) -> None:
    assert list(inspect(path)) == []
    with RowFile.open(path) as file:
        assert list(hdf5_differences(file)) == []


def forge(path: Path, change: Callable[[h5py.File], None]) -> None:
    """Change HDF5's side of a file, and make the checksum of it right."""
    with RowFile.open(path) as file:
        with h5py.File(path, "r+", locking=False) as changed:
            change(changed)
        header = file.header.model_copy(update={"structure_crc32": zlib.crc32(file.structure())})
        size = file.header_bytes
    with path.open("r+b") as content:
        content.write(header.to_bytes(size))


def test_what_another_program_changed_is_named_though_the_checksum_is_right(path: Path) -> None:
    forge(path, lambda file: file.attrs.modify("environment", '{"by": "other"}'))
    with RowFile.open(path) as file:
        assert list(hdf5_differences(file)) == ["HDF5 attribute environment differs from the header"]
