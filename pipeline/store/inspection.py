"""The HDF5 side of a feature file, read as other programs read it and compared with the header.

A structure that is byte for byte what we lay out today needs no reading. Any other may be that of another version of
HDF5, or forged, on which the library may hang or crash: a process of its own reads it, for a limited time.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py

from pipeline.store.header import STATUS_NAMES, Header
from pipeline.store.layout import hdf5_attributes, lay_out
from pipeline.store.rows import RowFile

LONGEST_SECONDS = 60.0
#: Run with -P, which keeps Python from importing what lies in the current folder; the package is found all the same.
PROGRAM = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
runpy.run_module("pipeline.store.inspection", run_name="__main__")
"""
#: What h5py raises on a file that is not as it should be.
HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, RecursionError)


def hdf5_differences(file: RowFile) -> Iterator[str]:
    """Yield one line for each thing that HDF5 finds other than the header says."""
    try:
        if lay_out(file.header).structure == file.structure():
            return
    except HDF5_ERRORS as error:
        yield f"HDF5 cannot hold what the header says: {error}"
        return
    command = [sys.executable, "-P", "-c", PROGRAM, str(Path(__file__).parents[2]), str(file.path)]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        yield f"HDF5 cannot read it in {LONGEST_SECONDS:.0f} seconds"
        return
    yield from completed.stdout.splitlines()
    if completed.returncode:
        yield f"HDF5 cannot read it: the process ends with {completed.returncode}"


def inspect(path: Path) -> Iterator[str]:
    """Yield the same lines as `hdf5_differences`, in this process."""
    with RowFile.open(path) as ours:
        header = ours.header
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield from _attribute_differences(file, header)
            yield from _dataset_differences(file, header)
    except HDF5_ERRORS as error:
        yield f"HDF5 cannot read it: {error}"


def _attribute_differences(file: h5py.File, header: Header) -> Iterator[str]:
    for name, expected in hdf5_attributes(header).items():
        if file.attrs.get(name) != expected:
            yield f"HDF5 attribute {name} differs from the header"
    names = {"status": STATUS_NAMES, **{name: classes for name, classes in header.targets.items() if classes}}
    for name, listed in names.items():
        if name in file and tuple(file[name].attrs.get("names", ())) != listed:
            yield f"HDF5 attribute names of {name} differs from the header"


def _dataset_differences(file: h5py.File, header: Header) -> Iterator[str]:
    expected = {name: (column.dtype, column.shape, column.offset) for name, column in header.columns.items()}
    for name, column in header.columns.items():
        expected[f"checksum/{name}"] = ("<u4", (column.blocks,), column.checksum)
    found = dict(_walk(file, ""))
    for name in expected.keys() ^ found.keys():
        yield f"HDF5 has {name}, which is not in the header" if name in found else f"HDF5 lacks {name}"
    for name in expected.keys() & found.keys():
        if found[name] != expected[name]:
            yield f"HDF5 places {name} at {found[name]}, the header at {expected[name]}"


def _walk(group: h5py.Group, prefix: str) -> Iterator[tuple[str, tuple[str, tuple[int, ...], int] | None]]:
    """Yield every dataset with its type, shape and offset; None for what is no plain, contiguous dataset."""
    for name in group:
        path, link = prefix + name, group.get(name, getlink=True)
        thing = group[name] if isinstance(link, h5py.HardLink) else None
        if isinstance(thing, h5py.Group):
            yield from _walk(thing, path + "/")
        else:
            yield path, _place(thing) if isinstance(thing, h5py.Dataset) else None


def _place(dataset: h5py.Dataset) -> tuple[str, tuple[int, ...], int] | None:
    create = dataset.id.get_create_plist()
    if create.get_layout() != h5py.h5d.CONTIGUOUS or create.get_external_count() or create.get_nfilters():
        return None
    text = h5py.check_string_dtype(dataset.dtype)
    dtype = f"|S{text.length}" if text else dataset.dtype.str
    return dtype, dataset.shape, dataset.id.get_offset()


if __name__ == "__main__":
    for line in inspect(Path(sys.argv[1])):
        print(line.replace("\n", " "))
