"""Images that a table or a list spells in another way than their files are called."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import product

from pipeline.sources.folder import is_image_name

#: Of so many paths it is asked whether they are there, before any is doubted.
SAMPLE = 20

Respell = Callable[[str], str]


def respell(root: str, paths: Sequence[str]) -> tuple[list[str], str]:
    """Spell relative paths as the files below `root` are called; return them, and what was different in words.

    They stay what they are, without a word, where one of a sample of them is there, or where nothing helps: else
    backslashes are read as slashes, accents as one character or as two, and a suffix is added where a single image
    has the rest of the name. Who calls has to check again that no path leads out of `root`.
    """
    sample = paths[:: max(1, len(paths) // SAMPLE)][:SAMPLE]
    if sample and not any(_is_there(root, path) for path in sample):
        for ways in product(_slashes(), _accents(), _suffixes(root)):
            words = ", ".join(word for word, _ in ways if word)
            if words and all(_is_there(root, _spell(ways, path)) for path in sample):
                return [_spell(ways, path) for path in paths], words
    return list(paths), ""


def is_any_there(root: str, paths: Sequence[str]) -> bool:
    """Return True where one of a sample of the paths is a file."""
    return any(_is_there(root, path) for path in paths[:: max(1, len(paths) // SAMPLE)][:SAMPLE])


def _is_there(root: str, path: str) -> bool:
    return os.path.exists(f"{root}/{path}")  # noqa: PTH110 (a Path would rewrite the name)


def _spell(ways: tuple[tuple[str, Respell], ...], path: str) -> str:
    for _, change in ways:
        path = change(path)
    return path


def _same(path: str) -> str:
    return path


def _slashes() -> list[tuple[str, Respell]]:
    return [("", _same), ("with backslashes", lambda path: path.replace("\\", "/"))]


def _accents() -> list[tuple[str, Respell]]:
    return [
        ("", _same),
        ("with accents written apart", lambda path: unicodedata.normalize("NFC", path)),
        ("with accents written together", lambda path: unicodedata.normalize("NFD", path)),
    ]


def _suffixes(root: str) -> list[tuple[str, Respell]]:
    listed: dict[str, dict[str, list[str]]] = {}

    def add_suffix(path: str) -> str:
        folder, name = posixpath.split(path)
        if folder not in listed:
            listed[folder] = _by_stem(posixpath.join(root, folder))
        found = listed[folder].get(name, [])
        return posixpath.join(folder, found[0]) if len(found) == 1 else path

    return [("", _same), ("without suffix", add_suffix)]


def _by_stem(folder: str) -> dict[str, list[str]]:
    """Map names without suffix to the images in a folder; to none where it cannot be listed."""
    stems: dict[str, list[str]] = defaultdict(list)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_image_name(entry.name):
                    stems[posixpath.splitext(entry.name)[0]].append(entry.name)
    except (OSError, ValueError):  # the paths stay as they are, and their rows say what is wrong
        return {}
    return stems
