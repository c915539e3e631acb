"""Folders of images: flat, one folder a class, or train/val/test with a folder a class in each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.config import SourceSettings
from pipeline.errors import SourceError
from pipeline.sources.manifest import (
    SPLITS,
    FileImage,
    Manifest,
    Row,
    as_id,
    class_target,
    counted,
    make_manifest,
    shown,
    split_name,
)
from pipeline.text import plural

#: Which folder is the class of an image: the first of its path, or that which it is in.
Depth = Literal["first", "any"]

#: Names of files that are rows. What such a file really holds, its content decides when it is decoded.
EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".avif", ".heic", ".heif", ".hif"),
    )
)

#: Suffixes of images that no decoder here reads.
OTHER_FORMATS = frozenset(
    (
        *(".jxl", ".jp2", ".j2k", ".svg", ".eps", ".pdf", ".psd", ".ico", ".tga"),
        *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".exr", ".hdr"),
        *(".ppm", ".pgm", ".pbm", ".dcm", ".nii", ".npy", ".mp4", ".mov", ".avi"),
    )
)

#: Symbolic links to folders are followed up to this many deep, so that links that point at each other end.
MOST_LINKS = 3


def is_image_name(name: str) -> bool:
    """Return True where the name ends as an image's does.

    >>> is_image_name("a/B.JPG"), is_image_name(".jpg"), is_image_name("a.svg")
    (True, False, False)
    """
    return _extension(name) in EXTENSIONS


def _extension(name: str) -> str:
    stem, dot, extension = name.rpartition(".")
    return dot + extension.lower() if stem else ""


def read_folder(source: Path, settings: SourceSettings) -> Manifest:
    """List the images under `source`; raise `SourceError` where its layout can be read in two ways."""
    listing = scan(source)
    name = shown(source)
    if not listing.files:
        raise SourceError(f"{name} holds no images{_only(listing.skipped)}")
    layout = find_layout(name, listing.files, listing.folders, settings.depth)
    root = os.fspath(source)
    rows = [
        Row(as_id(path), FileImage(f"{root}/{path}"), split)
        for path, split in zip(listing.files, layout.splits, strict=True)
    ]
    targets = [class_target("class", layout.labels)] if any(layout.labels) else []
    return make_manifest(root, rows, targets, [*layout.notices, *left_out(listing)])


@dataclass
class Listing:
    """The files and folders below one folder, as relative POSIX paths."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    loops: list[str] = field(default_factory=list)


def scan(root: Path) -> Listing:
    """List everything below `root` but hidden names; symbolic links are followed, but not in circles."""
    listing = Listing()
    waiting = [("", 0, frozenset((_identity(root),)))]
    while waiting:
        prefix, links, above = waiting.pop()
        for entry in _entries(root, prefix):
            path = prefix + entry.name
            # macOS adds __MACOSX to archives: a second tree, of files with the names of the first that are no images.
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if _is_folder(entry):
                depth = links + entry.is_symlink()
                identity = _identity(Path(entry.path))
                if identity in above or depth > MOST_LINKS:
                    listing.loops.append(path)
                    continue
                listing.folders.append(path)
                waiting.append((path + "/", depth, above | {identity}))
            elif is_image_name(entry.name):
                listing.files.append(path)
            else:
                listing.skipped[_extension(entry.name) or "without suffix"] += 1
    listing.files.sort()
    listing.folders.sort()
    return listing


def _entries(root: Path, prefix: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(root / prefix) as entries:
            yield from entries
    except OSError as error:
        raise SourceError(f"cannot list {shown(root / prefix)}: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself: a row, if it is named like an image, and a bad one
        return False


def _identity(folder: Path) -> tuple[int, int]:
    try:
        found = folder.stat()
    except OSError as error:
        raise SourceError(f"cannot list {shown(folder)}: {error.strerror}") from error
    return found.st_dev, found.st_ino


@dataclass(frozen=True)
class Layout:
    """Split and class of every file, in the order of the files; an unknown class is None."""

    splits: list[str]
    labels: list[str | None]
    notices: tuple[str, ...] = ()


def find_layout(name: str, files: Sequence[str], folders: Sequence[str], depth: Depth = "first") -> Layout:
    """Return the layout of these relative paths; `folders` are all folders, also those without images.

    Raises `SourceError` where there are two ways to read it.
    """
    parts = [path.split("/") for path in files]
    tops = {part[0] for part in parts if len(part) > 1}
    if not any(top.lower() in SPLITS for top in tops):
        labels = _labels(name, parts, depth)
        return Layout([""] * len(files), labels, _doubts(parts, folders, labels, depth))
    others = sorted(top for top in tops if top.lower() not in SPLITS)
    if others or any(len(part) == 1 for part in parts):
        other = f"folder {others[0]!r}" if others else "images of no split"
        raise SourceError(
            f"{name} holds splits ({', '.join(sorted(tops - set(others)))}) and also {other}:"
            " move it away, or list the images in a CSV with a split column"
        )
    return _split_layout(name, parts, folders, depth)


def without_common_top(paths: list[str]) -> list[str]:
    """Strip the folder that was packed as a whole from the paths, where one was."""
    while len({path.split("/", 1)[0] for path in paths}) == 1 and all(path.count("/") > 1 for path in paths):
        paths = [path.split("/", 1)[1] for path in paths]
    return paths


def _split_layout(name: str, parts: Sequence[Sequence[str]], folders: Sequence[str], depth: Depth) -> Layout:
    labels: list[str | None] = [None] * len(parts)
    for top in {part[0] for part in parts}:
        inside = [index for index, part in enumerate(parts) if part[0] == top]
        found = _labels(f"{name}/{top}", [parts[index][1:] for index in inside], depth)
        for index, label in zip(inside, found, strict=True):
            labels[index] = label
    inner = [f.split("/", 1)[1] for f in folders if "/" in f and f.split("/")[0].lower() in SPLITS]
    notices = _doubts([part[1:] for part in parts], inner, labels, depth)
    return Layout([split_name(part[0]) or "" for part in parts], labels, notices)


def _labels(name: str, parts: Sequence[Sequence[str]], depth: Depth) -> list[str | None]:
    """Return the first folder of each path as its class, or the last; in a flat folder none has one."""
    tops = {part[0] for part in parts if len(part) > 1}
    loose = sum(len(part) == 1 for part in parts)
    if not tops:
        return [None] * len(parts)
    if loose:
        raise SourceError(
            f"{name} holds {plural(loose, 'image')} beside folders of images ({_some(tops)}): move them into a folder a"
            " class, or move the folders away"
        )
    if depth == "any":
        if splits := sorted({part[-2] for part in parts if part[-2].lower() in SPLITS}):
            raise SourceError(
                f"with --depth any the folder that an image is in is its class, and {name} has folders called"
                f" {_some(splits)} there: rename them, or move them to the top, where they are splits"
            )
        return [as_id(part[-2]) for part in parts]
    if len(tops) == 1 and all(len(part) > 2 for part in parts):
        inner = f"{name}/{shown(*tops)}"
        raise SourceError(f"{name} holds one folder of folders; did you mean {inner}, or --depth any?")
    return [as_id(part[0]) for part in parts]


def _doubts(
    parts: Sequence[Sequence[str]], folders: Sequence[str], labels: Sequence[str | None], depth: Depth
) -> tuple[str, ...]:
    """Return notices on class folders that have no image, and on folders of classes that have some."""
    classes = {label for label in labels if label is not None}
    if not classes:
        return ()
    above, ends = set(), [folder for folder in folders if "/" not in folder]
    if depth == "any":
        above = {folder.rpartition("/")[0] for folder in folders}
        ends = [folder.rpartition("/")[2] for folder in folders if folder not in above]
    empty = sorted(set(map(as_id, ends)) - classes)
    notices = [f"left out {plural(len(empty), 'class folder')} without images: {_some(empty)}"] if empty else []
    if mixed := sorted(above & {"/".join(part[:-1]) for part in parts} - {""}):
        named = plural(len(mixed), "folder")
        notices.append(f"{named} of classes with images beside them, whose class it is: {_some(mixed)}")
    return tuple(notices)


def _some(names: Sequence[str] | set[str], most: int = 5) -> str:
    listed = ", ".join(repr(name) for name in sorted(names)[:most])
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")


def _only(skipped: Counter[str]) -> str:
    if not skipped:
        return ": it is empty"
    kinds = " ".join(sorted(EXTENSIONS))
    return f", only other files ({counted(skipped)}); images are named {kinds}"


def left_out(listing: Listing) -> list[str]:
    """Return notices on all that is in a folder and is no row, images of unread formats first."""
    unread = {kind: count for kind, count in listing.skipped.items() if kind in OTHER_FORMATS}
    others = {kind: count for kind, count in listing.skipped.items() if kind not in OTHER_FORMATS}
    notices = []
    if unread:
        total = plural(sum(unread.values()), "file")
        notices.append(f"left out {total}: {_by_suffix(unread)} (formats that are not read; save them as JPEG or PNG)")
    if others:
        notices.append(f"left out {plural(sum(others.values()), 'file')}: {_by_suffix(others)} (not named like images)")
    if listing.loops:
        links = plural(len(listing.loops), "link")
        notices.append(f"left out {links} to folders that lead in circles ({shown(listing.loops[0])})")
    return notices


def _by_suffix(counts: Mapping[str, int], most: int = 6) -> str:
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{count} {shown(kind)}" for kind, count in largest[:most])
    return listed + (f" and {len(counts) - most} kinds more" if len(counts) > most else "")
