"""Parquet files with a column of paths, of image bytes, or of bytes and path (as Hugging Face's are)."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import SourceSettings
from pipeline.errors import ImageError, SourceError
from pipeline.sources.containers import Container, open_regular
from pipeline.sources.manifest import ImageRef, Manifest, shown
from pipeline.sources.tables import Table, cell_text, read_table


class ParquetFile:
    """A file that gives cells of its image columns, open only for a read, with the last row group in memory.

    Images are asked for in about the order of the rows, so every row group is read once. Raises `SourceError` where
    the file, in this process or in the one it was sent to, is not the one that was listed any more.
    """

    def __init__(self, container: Container, metadata: Any) -> None:
        self.container = container
        self.metadata = metadata
        self._lock = threading.Lock()
        self._held: tuple[tuple[str, int], Any] | None = None

    def __reduce__(self) -> tuple[type[ParquetFile], tuple[Container, Any]]:
        return ParquetFile, (self.container, self.metadata)

    def cell(self, column: str, group: int, row: int) -> bytes | None:
        """Return the bytes of one image; raise `ImageError` where they are damaged."""
        with self._lock:
            if self._held is None or self._held[0] != (column, group):
                self._held = (column, group), self._read_group(column, group)
            value = self._held[1][row].as_py()
        return value.get("bytes") if isinstance(value, dict) else value

    def _read_group(self, column: str, group: int) -> Any:
        import pyarrow
        import pyarrow.parquet

        with self.container.open() as file:
            try:
                table = pyarrow.parquet.ParquetFile(file, metadata=self.metadata)
                return table.read_row_group(group, columns=[column]).column(0)
            except (pyarrow.ArrowException, OSError) as error:
                raise ImageError("unreadable", _first_line(error)) from error
            finally:
                self.container.check(file)


@dataclass(frozen=True, slots=True)
class ParquetImage:
    """An image that is a cell of a Parquet file."""

    file: ParquetFile
    column: str
    group: int
    row: int

    @property
    def where(self) -> str:
        """Place for messages: the file, its column, row group and row."""
        return f"{shown(self.file.container.path)}!{self.column}[{self.group}:{self.row}]"

    def stat(self) -> tuple[int, int]:
        """Return size and time of the whole file when it was listed: a rewritten file has new images."""
        return self.file.container.size, self.file.container.mtime_ns

    def read(self, limit: int) -> bytes:
        """Return the bytes; raise `SourceError` where the file is not the one that was listed."""
        data = self.file.cell(self.column, self.group, self.row)
        if data is None:
            raise ImageError("missing", "the cell is empty")
        if len(data) > limit:
            raise ImageError("too-large", f"{len(data)} bytes, the limit is {limit}")
        return data


def read_parquet(source: Path, settings: SourceSettings) -> Manifest:
    """List the images that a Parquet file names or holds."""
    table = load_parquet(source)
    manifest = read_table(table, source.parent, settings)
    return replace(manifest, source=os.fspath(source), containers=table.containers)


def load_parquet(source: Path) -> Table:
    """Read all but the images; columns of lists and other nested values are left out."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SourceError(
            "reading Parquet needs pyarrow: python -m pip install 'cached-feature-pipeline[parquet]'"
        ) from None
    try:
        with open_regular(source) as file:
            container = Container.of(os.fspath(source), file)
            table = _load(pyarrow.parquet.ParquetFile(file), container)
            container.check(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise SourceError(f"cannot read {shown(source)}: {_first_line(error)}") from error
    return table


def _load(table: Any, container: Container) -> Table:
    schema = table.schema_arrow
    image_columns = [field.name for field in schema if _holds_images(field.type)]
    paths = [f"{name}.path" for name in image_columns if _has_path(schema.field(name).type)]
    plain = [field.name for field in schema if not _is_nested(field.type) and field.name not in image_columns]
    read = table.read(columns=[*plain, *paths])
    columns = {name: [cell_text(value) for value in read.column(name).to_pylist()] for name in plain}
    for name, classes in _class_names(schema.metadata or {}).items():
        if name in columns:
            columns[name] = [_named(cell, classes) for cell in columns[name]]
    for name in image_columns:
        if f"{name}.path" in paths:
            columns[f"{name}.path"] = [cell_text((cell or {}).get("path")) for cell in read.column(name).to_pylist()]
    file = ParquetFile(container, table.metadata)
    images: dict[str, list[ImageRef]] = {name: list(_cells(file, name)) for name in image_columns}
    rows = range(table.metadata.num_rows)
    return Table(shown(container.path), columns, rows, "row", images, (container,) if images else ())


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Return the names of the classes that Hugging Face's datasets keep beside columns of their numbers.

    Metadata of another form has none: the numbers are in the column all the same.
    """
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        found = {name: one["names"] for name, one in features.items() if "names" in one}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        name: names
        for name, names in found.items()
        if isinstance(names, list) and all(isinstance(one, str) and one and one.isprintable() for one in names)
    }


def _named(cell: str, classes: Sequence[str]) -> str:
    """Return the name of a class for its number; nothing for -1, which stands for an unknown one."""
    if cell == "-1":
        return ""
    return classes[int(cell)] if cell.isdecimal() and len(cell) < 10 and int(cell) < len(classes) else cell


def _cells(file: ParquetFile, column: str) -> Iterator[ParquetImage]:
    metadata = file.metadata
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
