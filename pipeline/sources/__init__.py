"""Sources: folders, tables, lists, archives and datasets, each read into a `Manifest` of images and targets.

Listing reads no image: one that is missing or damaged is still a row, and says so when it is read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import SOURCES as DESCRIPTIONS
from pipeline.config import SourceSettings
from pipeline.errors import SettingsError, SourceError
from pipeline.registry import Registry, nearest
from pipeline.sources import datasets, folder, labels, lists, parquet, tables, tars, zips
from pipeline.sources.manifest import FileImage, ImageRef, Manifest, Record, Target, Task, as_id, choose_target, shown

__all__ = [
    "SOURCES",
    "FileImage",
    "ImageRef",
    "Manifest",
    "Record",
    "Target",
    "Task",
    "choose_target",
    "from_paths",
    "log_notices",
    "read_manifest",
    "shown",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceKind:
    """A kind of source: its test, its reader, and the options that it has."""

    fits: Callable[[str], bool]
    read: Callable[[str, SourceSettings], Manifest]
    options: frozenset[str] = frozenset()


#: What most data sets arrive in.
_ARCHIVES = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def _ends(*suffixes: str) -> Callable[[str], bool]:
    return lambda source: source.lower().endswith(suffixes)


_TABLE = frozenset(("image_column", "target", "id_column", "split_column", "image_root"))
_LABELS = frozenset(("labels", "image_column", "target", "split_column"))

#: In the order in which they are tried: names that say it first, and a folder of tars before any other folder.
SOURCES: Registry[SourceKind] = Registry("kind of source")
SOURCES.add(
    "torchvision",
    SourceKind(
        lambda source: source.startswith(datasets.PREFIX),
        datasets.read_dataset,
    ),
)
SOURCES.add(
    "tar",
    SourceKind(
        lambda source: _ends(".tar")(source) or tars.is_shards(Path(source)),
        lambda source, settings: tars.read_tars(Path(source), settings),
        frozenset(("target", "depth")),
    ),
)
SOURCES.add(
    "zip",
    SourceKind(
        lambda source: _ends(".zip")(source) and not Path(source).is_dir(),
        lambda source, settings: zips.read_zip(Path(source), settings),
        frozenset(("depth",)),
    ),
)
SOURCES.add(
    "folder",
    SourceKind(
        lambda source: Path(source).is_dir(),
        lambda source, settings: folder.read_folder(Path(source), settings),
        frozenset(("depth",)),
    ),
)
SOURCES.add(
    "csv",
    SourceKind(
        _ends(".csv", ".tsv"),
        lambda source, settings: tables.read_csv(Path(source), settings),
        _TABLE,
    ),
)
SOURCES.add(
    "parquet",
    SourceKind(
        _ends(".parquet", ".pq"),
        lambda source, settings: parquet.read_parquet(Path(source), settings),
        _TABLE,
    ),
)
SOURCES.add(
    "list",
    SourceKind(
        _ends(".txt", ".lst", ".list"),
        lambda source, settings: lists.read_list(Path(source), settings),
        frozenset(("image_root",)),
    ),
)


def read_manifest(source: str | os.PathLike[str], settings: SourceSettings | None = None) -> Manifest:
    """List the images of `source`, sorted by their unique ids, with their splits and targets.

    Raises `SourceError` if the source is not there, is empty, or can be understood in two ways, and
    `SettingsError` for an option that this kind of source does not have.
    """
    settings = settings or SourceSettings.of({})
    text = os.fspath(source)
    name, kind = _kind_of(text)
    _refuse_other_options(name, kind, settings)
    if settings.labels is None:
        return kind.read(text, settings)
    # The columns that the options name are then those of the table of labels.
    manifest = kind.read(text, settings.model_copy(update=dict.fromkeys(_LABELS, None) | {"target": ()}))
    return labels.join_labels(manifest, Path(settings.labels), settings)


def log_notices(manifest: Manifest) -> None:
    """Tell the user what was left out of a source, and what in it may be a mistake."""
    for notice in manifest.all_notices():
        log.warning("%s: %s", shown(manifest.source), notice)


def _kind_of(source: str) -> tuple[str, SourceKind]:
    if not source.startswith(datasets.PREFIX):
        _require_existence(source)
    for name in SOURCES:
        if SOURCES[name].fits(source):
            return name, SOURCES[name]
    if folder.is_image_name(source):
        raise SourceError(f"{shown(source)} is one image; a source is a folder or a list of images")
    if source.lower().endswith(_ARCHIVES):
        raise SourceError(f"{shown(source)} is an archive: unpack it first, and give the folder")
    known = "; ".join(DESCRIPTIONS.values())
    raise SourceError(f"{shown(source)} is not a source that can be read; one is: {known}")


def _require_existence(source: str) -> None:
    try:
        Path(source).stat()
    except FileNotFoundError:
        place = "" if Path(source).is_absolute() else f" in {shown(Path.cwd())}"
        raise SourceError(f"there is no {shown(source)}{place}{_near(Path(source))}") from None
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise SourceError(f"cannot read {shown(source)}: {cause}") from error


def _near(path: Path) -> str:
    """Suggest what lies beside a path that is not there and has nearly its name."""
    try:
        return nearest(path.name, sorted(shown(one.name) for one in path.parent.iterdir()))
    except OSError:
        return ""


def _refuse_other_options(name: str, kind: SourceKind, settings: SourceSettings) -> None:
    allowed = kind.options
    if settings.labels is not None and "image_column" not in kind.options:
        allowed |= _LABELS
    for option, field in SourceSettings.model_fields.items():
        if getattr(settings, option) not in (field.default, None) and option not in allowed:
            flag = "--" + option.replace("_", "-")
            ways_out = " (give a table with --labels)" if option in _TABLE and not settings.labels else ""
            raise SettingsError(f"{flag} does not apply to a source of kind {name}{ways_out}")


def from_paths(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Manifest:
    """List single images, in the order and under the names given, for prediction.

    A folder stands for all the images below it, in the order of their names. No layout is asked of it.

    >>> [record.id for record in from_paths(["b.jpg", "a.jpg"]).records]
    ['b.jpg', 'a.jpg']
    """
    named = [paths] if isinstance(paths, str | os.PathLike) else paths
    notices: list[str] = []
    names = [name for path in named for name in _files_of(os.fspath(path), notices)]
    records = [Record(index, as_id(name), FileImage(name), "") for index, name in enumerate(names)]
    if not records:
        raise SourceError("no image is named")
    return Manifest("the images named", records, {}, tuple(notices))


def _files_of(path: str, notices: list[str]) -> list[str]:
    """Return the file itself, or all images below a folder; append what is left out there to `notices`."""
    if not Path(path).is_dir():
        return [path]
    listing = folder.scan(Path(path))
    if not listing.files:
        raise SourceError(f"{shown(path)} holds no images")
    notices += [f"{shown(path)}: {notice}" for notice in folder.left_out(listing)]
    return [os.path.join(path, file) for file in listing.files]  # noqa: PTH118 (a Path would rewrite the name)
