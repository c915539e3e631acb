"""Parquet files with a column of paths, of image bytes, or of bytes and path (as Hugging Face's are)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import SourceSettings
from pipeline.errors import ImageError, SourceError
from pipeline.sources.records import FileImage, ImageRef, Manifest, shown
from pipeline.sources.tables import Table, cell_text, read_table


class ParquetFile:
    """One open file that gives cells of its image columns, keeping the row group read last.

    Images are asked for in about the order of the rows, so every row group is read once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._held: tuple[tuple[str, int], Any] | None = None
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise SourceError(
                "reading Parquet needs pyarrow: python -m pip install 'cached-feature-pipeline[parquet]'"
            ) from None
        self.errors = (pyarrow.ArrowException, OSError)
        try:
            self.file = pyarrow.parquet.ParquetFile(path)
        except self.errors as error:
            raise SourceError(f"cannot read {shown(path)}: {_first_line(error)}") from error

    def cell(self, column: str, group: int, row: int) -> bytes | None:
        with self._lock:
            if self._held is None or self._held[0] != (column, group):
                table = self.file.read_row_group(group, columns=[column])
                self._held = (column, group), table.column(0)
            value = self._held[1][row].as_py()
        return value.get("bytes") if isinstance(value, dict) else value


@dataclass(frozen=True, slots=True)
class ParquetImage:
    """An image that is a cell."""

    file: ParquetFile
    column: str
    group: int
    row: int

    @property
    def where(self) -> str:
        return f"{shown(self.file.path)}!{self.column}[{self.group}:{self.row}]"

    def stat(self) -> tuple[int, int]:
        """Of the whole file: a rewritten file has new images."""
        return FileImage(str(self.file.path)).stat()

    def read(self, limit: int) -> bytes:
        try:
            data = self.file.cell(self.column, self.group, self.row)
        except self.file.errors as error:
            raise ImageError("unreadable", _first_line(error)) from error
        if data is None:
            raise ImageError("missing", "the cell is empty")
        if len(data) > limit:
            raise ImageError("too-large", f"{len(data)} bytes, the limit is {limit}")
        return data


def read_parquet(source: Path, settings: SourceSettings) -> Manifest:
    """The images that a Parquet file names or holds."""
    return read_table(load_parquet(source), source.parent, settings)


def load_parquet(source: Path) -> Table:
    """Read all but the images; columns of lists and other nested values are left out."""
    file = ParquetFile(source)
    schema = file.file.schema_arrow
    image_columns = [field.name for field in schema if _holds_images(field.type)]
    paths = [f"{name}.path" for name in image_columns if _has_path(schema.field(name).type)]
    plain = [field.name for field in schema if not _is_nested(field.type) and field.name not in image_columns]
    try:
        read = file.file.read(columns=[*plain, *paths])
    except file.errors as error:
        raise SourceError(f"cannot read {shown(source)}: {_first_line(error)}") from error
    columns = {name: [cell_text(value) for value in read.column(name).to_pylist()] for name in plain}
    for name in image_columns:
        if f"{name}.path" in paths:
            columns[f"{name}.path"] = [cell_text(cell.get("path")) for cell in read.column(name).to_pylist()]
    images: dict[str, list[ImageRef]] = {name: list(_cells(file, name)) for name in image_columns}
    return Table(shown(source), columns, range(file.file.metadata.num_rows), "row", images)


def _cells(file: ParquetFile, column: str) -> Iterator[ParquetImage]:
    metadata = file.file.metadata
    for group in range(metadata.num_row_groups):
        for row in range(metadata.row_group(group).num_rows):
            yield ParquetImage(file, column, group, row)


def _holds_images(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(kind.field(at).name == "bytes" for at in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _has_path(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_struct(kind) and any(kind.field(at).name == "path" for at in range(kind.num_fields))


def _is_nested(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_nested(kind))


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
