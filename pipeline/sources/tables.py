"""Tables with a column of images: CSV and other delimited text, or Parquet.

Columns are named by options, and guessed where there is only one candidate. Cells are text here, whatever the
file's own types are; an empty cell is an unknown value.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pipeline.config import SourceSettings
from pipeline.errors import SourceError
from pipeline.registry import unknown
from pipeline.sources.columns import MISSING, Kind, column_target
from pipeline.sources.containers import Container
from pipeline.sources.folder import is_image_name
from pipeline.sources.manifest import (
    FileImage,
    ImageRef,
    Manifest,
    Row,
    Target,
    as_id,
    make_manifest,
    shown,
    split_name,
)
from pipeline.sources.spelling import is_any_there, respell
from pipeline.text import plural

log = logging.getLogger(__name__)

_IMAGE_COLUMNS = (
    "image",
    "images",
    "image_name",
    "image_names",
    "image_path",
    "image_file",
    "img",
    "img_path",
)
_FILE_COLUMNS = ("file", "file_name", "filename", "filepath", "file_path", "path", "name")

#: A column of one of these names is the target if no option says otherwise.
USUAL_TARGETS = ("class", "label", "target", "category")
_DELIMITERS = ",;\t|"
#: The columns of a table that `pipeline fetch` wrote; between them there may be one of classes.
_FETCHED = {"url", "status", "reason", "sha256", "path"}


@dataclass
class Table:
    """Columns of text, all of the same length; `images` where a column holds the images themselves."""

    name: str
    columns: dict[str, list[str]]
    lines: Sequence[int]  # where each row is in the file
    row_word: str = "line"
    images: dict[str, list[ImageRef]] = field(default_factory=dict)
    containers: tuple[Container, ...] = ()
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, row: int) -> str:
        """Name a row, for messages."""
        return f"{self.name}, {self.row_word} {self.lines[row]}"

    def column(self, name: str) -> list[str]:
        """Return the cells of a column; raise for an unknown name, with the nearest one."""
        if name not in self.columns:
            raise SourceError(unknown("column", name, [*self.columns, *self.images], where=self.name))
        return self.columns[name]


def cell_text(value: Any) -> str:
    """Return a typed value as the text that a CSV would hold; empty for None and NaN."""
    return "" if value is None or value != value else str(value).strip()


def read_csv(source: Path, settings: SourceSettings) -> Manifest:
    """List the images that a CSV names."""
    return replace(read_table(_without_refused(load_csv(source)), source.parent, settings), source=os.fspath(source))


def _without_refused(table: Table) -> Table:
    """Leave out the URLs of a table of `pipeline fetch` that gave no image, and the columns that tell of them."""
    if set(table.columns) - {"class"} != _FETCHED:
        return table
    kept = [row for row, status in enumerate(table.columns["status"]) if status == "kept"]
    columns = {name: [cells[row] for row in kept] for name, cells in table.columns.items() if name in ("path", "class")}
    refused = len(table) - len(kept)
    notices = (f"{plural(refused, 'URL')} gave no image; {table.name} says why",) if refused else ()
    if not kept:
        raise SourceError(f"{table.name}: none of its {plural(refused, 'URL')} gave an image; it says why")
    return replace(table, columns=columns, lines=[table.lines[row] for row in kept], notices=notices)


def load_csv(source: Path) -> Table:
    """Read delimited text with a header line: comma, semicolon, tab or bar; UTF-8, with or without a BOM."""
    name = shown(source)
    try:
        data = source.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise SourceError(f"cannot read {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        kind = " (it looks like UTF-16)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise SourceError(f"{name} is not UTF-8 at byte {error.start}{kind}: save it with that encoding") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except csv.Error as error:
        raise SourceError(f"{name}, line {reader.line_num}: {error}") from error
    if not rows:
        raise SourceError(f"{name} is empty: its first line must name the columns")
    header, body = rows[0][1], rows[1:]
    _check_header(name, header)
    for line, cells in body:
        if len(cells) != len(header):
            raise SourceError(f"{name}, line {line}: {len(cells)} cells, the first line names {len(header)}")
    columns = {column: [cells[at] for _, cells in body] for at, column in enumerate(header) if column}
    return Table(name, columns, [line for line, _ in body])


def _delimiter(text: str) -> str:
    first = text.lstrip("\r\n").split("\n", 1)[0]
    return max(_DELIMITERS, key=first.count)


def _check_header(name: str, header: Sequence[str]) -> None:
    repeated = [column for at, column in enumerate(header) if column and column in header[:at]]
    if repeated:
        raise SourceError(f"{name} has two columns {repeated[0]!r}: rename one of them")
    files = [column for column in header if is_image_name(column)]
    if files:
        raise SourceError(f"{name} begins with {files[0]!r}: its first line must name the columns")


def read_table(table: Table, folder: Path, settings: SourceSettings) -> Manifest:
    """List the images of a table; paths are relative to `folder`, or to the image root of the settings."""
    if not len(table):
        raise SourceError(f"{table.name} has column names but no rows")
    column = settings.image_column or guess_image_column(table)
    images, ids, notices = _images(table, column, folder, settings)
    if settings.id_column is not None:
        ids = _ids(table, settings.id_column)
    splits, split_column = read_splits(table, settings)
    used = {column, settings.id_column, split_column}
    targets = read_targets(table, settings, used={name for name in used if name})
    log.info("%s: images from column %r, targets from %s", table.name, column, list(targets) or "none")
    rows = [Row(*row) for row in zip(ids, images, splits, strict=True)]
    return make_manifest(table.name, rows, targets.values(), [*table.notices, *notices])


def guess_image_column(table: Table) -> str:
    """Return the only column that holds or names images; raise `SourceError` where there are none or several."""
    if len(table.images) == 1:
        return next(iter(table.images))
    by_content = [name for name, cells in table.columns.items() if _names_images(cells)]
    if len(by_content) == 1:
        return by_content[0]
    candidates = by_content or list(table.columns)
    for usual in (_IMAGE_COLUMNS, _FILE_COLUMNS):
        by_name = [name for name in candidates if name.lower().replace(" ", "_") in usual]
        if len(by_name) == 1:
            return by_name[0]
    raise SourceError(
        f"{table.name}: which column names the images? Say --image-column, one of: {', '.join(candidates)}"
    )


def _names_images(cells: Sequence[str]) -> bool:
    some = [cell for cell in cells[:200] if cell]  # the first tell, however many follow
    return bool(some) and sum(map(is_image_name, some)) * 2 >= len(some)


def _images(
    table: Table, column: str, folder: Path, settings: SourceSettings
) -> tuple[Sequence[ImageRef], list[str], list[str]]:
    """Return the images of a column, an id for each, and notices."""
    if column in table.images:
        digits = len(str(len(table)))
        held = table.columns.get(f"{column}.path", [""] * len(table))
        ids = [path or f"row-{row:0{digits}}" for row, path in enumerate(held)]
        return table.images[column], ids, []
    root = image_root(folder, settings)
    paths, notices = find_files(root, table.column(column), table.name, table.place)
    prefix = os.fspath(root)
    return [FileImage(f"{prefix}/{path}") for path in paths], [as_id(path) for path in paths], notices


def find_files(root: Path, cells: Sequence[str], name: str, place: Callable[[int], str]) -> tuple[list[str], list[str]]:
    """Return the paths in `cells` relative to `root`, as the files are called, and notices on other spellings."""
    prefix = os.fspath(root)
    paths = [inside(root, cell, place(row)) for row, cell in enumerate(cells)]
    found, difference = respell(prefix, paths)
    if difference:
        return [inside(root, path, place(row)) for row, path in enumerate(found)], [
            f"{name} names images {difference}: {shown(cells[0])} is taken for {shown(found[0])}"
        ]
    if paths and not is_any_there(prefix, paths):
        first = shown(os.path.abspath(f"{prefix}/{paths[0]}"))  # noqa: PTH100 (a link in the path stays one)
        log.warning("%s: the images are not there; the first was looked for at %s (see --image-root)", name, first)
    return paths, []


def image_root(folder: Path, settings: SourceSettings) -> Path:
    """Return the folder that relative paths start from, and that no path may leave."""
    root = folder if settings.image_root is None else Path(settings.image_root)
    if not root.is_dir():
        raise SourceError(f"the image root {shown(root)} is not a folder")
    return root


def inside(root: Path, path: str, place: str) -> str:
    """Return the path relative to `root`, in its shortest form; raise `SourceError` if it leads out of it.

    >>> inside(Path("photos"), "cats/./1.jpg", "line 2")
    'cats/1.jpg'

    The question is only what the path says. A link inside the folder may well point elsewhere: whoever may
    write there may also copy the file.
    """
    if not path:
        raise SourceError(f"{place}: no image is named")
    relative = posixpath.relpath(path, os.fspath(root.absolute())) if posixpath.isabs(path) else path
    relative = posixpath.normpath(relative)
    if relative == "." or relative == ".." or relative.startswith("../"):
        raise SourceError(
            f"{place}: {shown(path)!r} is outside of {shown(root)}; name a folder that holds all images"
            " with --image-root"
        )
    return relative


def _ids(table: Table, column: str) -> list[str]:
    ids = table.column(column)
    if "" in ids:
        raise SourceError(f"{table.place(ids.index(''))}: the id in column {column!r} is empty")
    return ids


def read_splits(table: Table, settings: SourceSettings) -> tuple[list[str], str | None]:
    """Return the split of every row, and the column that says it; one called split needs no option."""
    if settings.split_column is not None:
        column: str | None = settings.split_column
        cells = table.column(settings.split_column)
    else:
        column = next((name for name in table.columns if name.lower() == "split"), None)
        if column is None or any(split_name(cell) is None for cell in table.columns[column]):
            return [""] * len(table), None
        cells = table.columns[column]
    splits = list(map(split_name, cells))
    if None in splits:
        row = splits.index(None)
        raise SourceError(f"{table.place(row)}: the split {cells[row]!r} is not train, val or test")
    return cast("list[str]", splits), column


def read_targets(table: Table, settings: SourceSettings, *, used: set[str]) -> dict[str, Target]:
    """Parse the targets that the settings name, or the only column that can be one."""
    wanted = dict(_with_kind(table, name) for name in settings.target) or _guess_target(table, used)
    return {name: column_target(name, table.column(name), kind, table.place) for name, kind in wanted.items()}


def _with_kind(table: Table, name: str) -> tuple[str, Kind | None]:
    """Split ``length:number`` into column and kind; a column may have a colon in its own name."""
    column, colon, kind = name.rpartition(":")
    if name in table.columns or not colon:
        return name, None
    if kind not in ("class", "number"):
        raise SourceError(f"target {name!r}: say {column}:class or {column}:number")
    return column, cast("Kind", kind)


def _guess_target(table: Table, used: set[str]) -> Mapping[str, None]:
    # A column of more images has its own option.
    left = [name for name, cells in table.columns.items() if name not in used and _may_be_target(name, cells)]
    usual = [name for name in left if name.lower() in USUAL_TARGETS]
    candidates = usual if len(usual) == 1 else left
    if len(candidates) > 1:
        raise SourceError(
            f"{table.name}: which column is the target? Say --target, one or more of: {', '.join(candidates)}"
        )
    return dict.fromkeys(candidates)


def _may_be_target(name: str, cells: Sequence[str]) -> bool:
    is_empty = all(cell.lower() in MISSING for cell in cells)
    return not is_empty and not _names_images(cells) and not name.startswith("Unnamed")
