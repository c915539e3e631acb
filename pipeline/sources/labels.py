"""Tables of labels, joined onto images that another source lists."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.config import SourceSettings
from pipeline.errors import SourceError
from pipeline.sources.manifest import UNKNOWN_CLASS, Manifest, Target, shown
from pipeline.sources.parquet import load_parquet
from pipeline.sources.tables import Table, guess_image_column, load_csv, read_splits, read_targets
from pipeline.text import plural


def join_labels(manifest: Manifest, labels: Path, settings: SourceSettings) -> Manifest:
    """Add the targets, and the splits if there are any, of the table `labels` to the images of `manifest`.

    A row of the table means the image with that relative path; else the only one with that file name; else
    the only one with that name but for its extension. Images that the table does not name stay unknown.
    """
    table = load_parquet(labels) if labels.suffix in (".parquet", ".pq") else load_csv(labels)
    column = settings.image_column or guess_image_column(table)
    found = _find_images(manifest, table, column)
    splits, split_column = read_splits(table, settings)
    used = {name for name in (column, split_column) if name}
    targets = {
        name: _spread(target, found, len(manifest)) for name, target in read_targets(table, settings, used=used).items()
    }
    if not targets and split_column is None:
        raise SourceError(f"{table.name} has no column beside {column!r}: there is no label in it")
    records = manifest.records
    if split_column is not None:
        records = list(records)
        for row, index in found.items():
            records[index] = replace(records[index], split=splits[row])
    notices = list(_unmatched(manifest, table, column, found))
    return replace(
        manifest,
        records=records,
        targets=manifest.targets | targets,
        notices=(*manifest.notices, *notices),
    )


def _find_images(manifest: Manifest, table: Table, column: str) -> dict[int, int]:
    """Map rows of the table to rows of the manifest."""
    ids = [record.id for record in manifest.records]
    exact, normal = _Names(ids), _Names([unicodedata.normalize("NFC", name) for name in ids])
    found: dict[int, int] = {}
    labelled: dict[int, int] = {}
    for row, cell in enumerate(table.column(column)):
        # Names as they are come first; then those that differ in the way of writing accents or slashes.
        index = exact.find(cell)
        if index is _NOT_THERE:
            index = normal.find(unicodedata.normalize("NFC", cell.replace("\\", "/")))
        if index is _NOT_THERE:
            continue
        name = posixpath.basename(posixpath.normpath(cell))
        if index is None:
            raise SourceError(
                f"{table.place(row)}: several images are called {name!r}; name them by their paths under"
                f" {shown(manifest.source)}"
            )
        if index in labelled:
            raise SourceError(
                f"{table.place(row)}: {cell!r} is labelled already in {table.row_word} {table.lines[labelled[index]]}"
            )
        found[row], labelled[index] = index, row
    if not found:
        first = table.column(column)[0]
        raise SourceError(
            f"{table.name} labels none of the images of {shown(manifest.source)}: column {column!r} names"
            f" {first!r}, the images are called like {ids[0]!r}"
        )
    return found


def _unmatched(manifest: Manifest, table: Table, column: str, found: dict[int, int]) -> Iterator[str]:
    """Yield notices on images without a row and on rows without an image."""
    if len(found) < len(manifest):
        yield f"{table.name} labels {len(found)} of {plural(len(manifest), 'image')}"
    if len(found) < len(table):
        first = next(row for row in range(len(table)) if row not in found)
        yield (
            f"{len(table) - len(found)} of {plural(len(table), 'label')} match no image, first:"
            f" {shown(table.column(column)[first])} ({table.place(first)})"
        )


_NOT_THERE = -1


class _Names:
    """Rows of images by path, by file name, and by file name without suffix."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._keys = [_unique(ids, str), _unique(ids, posixpath.basename), _unique(ids, _stem)]

    def find(self, cell: str) -> int | None:
        """Return the row of the image that a cell names: None for several, `_NOT_THERE` for none."""
        path = posixpath.normpath(cell)
        name = posixpath.basename(path)
        for known, key in zip(self._keys, (path, name, name), strict=True):
            if key in known:
                return known[key]
        return _NOT_THERE


def _unique(ids: Sequence[str], key: Callable[[str], str]) -> dict[str, int | None]:
    """Map each key to its row; to None where several rows share it."""
    rows: dict[str, int | None] = {}
    for row, name in enumerate(map(key, ids)):
        rows[name] = None if name in rows else row
    return rows


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def _spread(target: Target, found: dict[int, int], rows: int) -> Target:
    """Return the target with the table's values at the rows of their images, unknown elsewhere."""
    unknown = np.nan if target.task == "numbers" else UNKNOWN_CLASS
    values = np.full(rows, unknown, target.values.dtype)
    values[list(found.values())] = target.values[list(found)]
    return replace(target, values=values)
