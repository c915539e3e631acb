"""Joining the parts of a feature file to one file, each row checked on its way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline import files
from pipeline.errors import OutputExistsError, StoreDamagedError, StoreError
from pipeline.store.header import Part
from pipeline.store.plan import Request
from pipeline.store.reader import FeatureStore
from pipeline.store.reuse import Origin, partial_path
from pipeline.store.rows import RowFile
from pipeline.store.writer import StoreWriter, explained, usable_path


def join_parts(parts: Sequence[str | Path], output: str | Path, *, force: bool = False) -> tuple[int, int]:
    """Write the rows of `parts` (files, or a folder of them) to the file `output`; return how many parts and rows.

    Raises `StoreError` where parts are missing, overlap or do not belong together, `StoreDamagedError` where
    one is damaged, `OutputExistsError` where `output` is there, finished or not, and `force` is not given.
    """
    output = usable_path(output)
    with FeatureStore.open_parts([Path(part) for part in parts]) as store, explained(output):
        with files.made_parents(output), files.lock(output):
            request = _request(store)
            if not force:
                _refuse_existing(output, request)
            writer = StoreWriter.create(output, request)
            try:
                for file, start in store.files():
                    _copy_part(file, start, writer)
                writer.publish()
            finally:
                writer.close()
        return store.parts, len(store)


def _refuse_existing(output: Path, request: Request) -> None:
    """Raise `OutputExistsError` for a finished file, and for an unfinished one that may hold rows of other images."""
    if output.exists():
        raise OutputExistsError(f"{output} exists already; give --force to replace it, or another -o")
    unfinished = partial_path(output)
    if os.path.lexists(unfinished) and not _is_for(unfinished, request):
        raise OutputExistsError(
            f"{unfinished} is an extraction that is not finished; run that again, or give --force, or another -o"
        )


def _is_for(path: Path, request: Request) -> bool:
    try:
        with RowFile.open(path) as file:
            return request.is_met_by(file)
    except StoreError:
        return False


def _request(store: FeatureStore) -> Request:
    """Make the request for a file like the parts, with all of their rows."""
    header = store.header.model_copy(update={"part": Part.whole(store.ids)})
    fixed = {name: store.column(name) for name in ("id", "split", *header.targets)}
    return Request.like(header, fixed)


def _copy_part(file: RowFile, start: int, writer: StoreWriter) -> None:
    rows = np.arange(file.header.rows)
    writer.copy(Origin.finished(file), rows, rows + start)
    missing = np.intersect1d(writer.pending, rows + start)
    if len(missing):
        raise StoreDamagedError(
            f"{file.path}: row {missing[0] - start} does not match its commit checksum; extract this part again with"
            " --force"
        )
