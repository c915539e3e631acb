"""The journal of an experiment: by what each of its steps was made, so that a later run knows what is up to date.

What a step depends on is told by content: its settings, its inputs, and the version of this package. Times only spare
reading: a file of the size and time that it had when it was read last is not read again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import SourceSettings
from pipeline.errors import ImageError, SettingsError
from pipeline.files import atomic_write
from pipeline.images.decoding import Limits
from pipeline.sources import FileImage, Record, from_paths, read_manifest
from pipeline.store import FeatureStore, is_store
from pipeline.store.header import GOOD
from pipeline.text import shown

FORMAT = 1
#: Characters of a result in JSON that are kept to be shown again.
LONGEST_RESULT = 100_000
#: What in model.json decides the answers.
DECIDES = ("task", "target", "classes", "head", "base", "recipe", "score_views", "files")


@dataclass(frozen=True)
class Entry:
    """A step as it ran: settings that are not defaults, fingerprints of inputs and product, the result in JSON."""

    command: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    version: str
    product: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    def first_change(self, now: Entry) -> str:
        """Say in what the step is another one now; empty where it is the same."""
        if self.command != now.command:
            return f"it was made by {self.command}"
        if self.version != now.version:
            return f"it was made by version {self.version or 'unknown'}, this is {now.version or 'unknown'}"
        for name in {**self.settings, **now.settings}:
            before, after = self.settings.get(name), now.settings.get(name)
            if before != after:
                return f"{name} is {_told(after)}, it was {_told(before)}"
        changed = [name for name in {**self.inputs, **now.inputs} if self.inputs.get(name) != now.inputs.get(name)]
        return f"its {' and '.join(changed)} changed" if changed else ""


def _told(value: Any) -> str:
    return "left out" if value is None else shown(value)


class Journal:
    """The entries of an experiment by output, in a hidden file; and the contents of the images that were read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: dict[str, Entry] = {}
        self.contents = Contents()
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']}")
            self.entries = {name: Entry(**one) for name, one in found["entries"].items()}
            self.contents.known = {name: (one[0], one[1], one[2]) for name, one in found["contents"].items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            message = f"{shown(path)} cannot be read ({error}); remove it, and what is there is checked anew"
            raise SettingsError(message) from None

    def write(self) -> None:
        """Write the journal; it is there whole or as it was."""
        entries = {name: asdict(one) for name, one in self.entries.items()}
        text = json.dumps({"format": FORMAT, "entries": entries, "contents": self.contents.known})
        with atomic_write(self._path) as file:
            file.write(text.encode())


class Contents:
    """Contents of images as sha256, each read once for a size and time that it has.

    `known` maps a place to size, time in nanoseconds and sha256 in hexadecimal.
    """

    def __init__(self) -> None:
        self.known: dict[str, tuple[int, int, str]] = {}

    def of(self, record: Record, source: str) -> str:
        """Return the sha256 of an image; of one that cannot be read, the reason."""
        try:
            state = record.image.stat()
            place = _place(record, source)
            known = self.known.get(place)
            if known is None or known[:2] != state:
                known = self.known[place] = (*state, hashlib.sha256(record.image.read(Limits().max_bytes)).hexdigest())
        except ImageError as error:
            return error.reason
        return known[2]

    def learn(self, source: str, records: Sequence[Record], store: FeatureStore) -> dict[str, str]:
        """Take over what an extraction has read, and return the sha256 of its good rows by id."""
        rows = {id: row for row, id in enumerate(store.ids)}
        read: dict[str, str] = {}
        for record in records:
            row = rows.get(record.id)
            if row is None or store.statuses[row] != GOOD:
                continue
            read[record.id] = bytes(store.sha256[row]).hex()
            state = int(store.sizes[row]), int(store.mtimes_ns[row])
            self.known[_place(record, source)] = (*state, read[record.id])
        return read


def _place(record: Record, source: str) -> str:
    if isinstance(record.image, FileImage):
        return shown(os.path.abspath(record.image.path))  # noqa: PTH100 (a Path for every one of 100,000 files is slow)
    return f"{shown(os.path.abspath(source))}: {record.image.where}"  # noqa: PTH100


# --- fingerprints


def fingerprint_source(
    source: str, settings: SourceSettings, contents: Contents, *, read: Mapping[str, str] | None = None
) -> str:
    """Compute the sha256, in hexadecimal, of ids, splits, labels and contents of labelled images.

    `read` are contents by id that were read already, and are not looked at again.
    """
    manifest = read_manifest(source, settings)
    digest = hashlib.sha256()
    for record in manifest.records:
        content = (read or {}).get(record.id) or contents.of(record, source)
        digest.update(repr((record.id, record.split, content)).encode("utf-8", "surrogatepass"))
    for target in manifest.targets.values():
        digest.update(repr((target.name, target.names)).encode("utf-8", "surrogatepass"))
        digest.update(np.ascontiguousarray(target.values).tobytes())
    return digest.hexdigest()


def fingerprint_files(paths: Sequence[str], contents: Contents) -> str:
    """Compute the sha256, in hexadecimal, of the names and contents of single images and of those of folders."""
    digest = hashlib.sha256()
    for record in from_paths(paths).records:
        digest.update(repr((record.id, contents.of(record, ""))).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def fingerprint_path(path: Path) -> str:
    """Compute a fingerprint of a feature file, a model, an evaluation, pictures, or any other file; empty for none."""
    if is_store(path):
        with FeatureStore.open(path) as store:
            return store.fingerprint
    if path.is_dir():
        return _digest(
            [
                _decisive(path / "model.json"),
                *map(_bytes, (path / "predictions.csv", path / "metrics.json", *sorted(path.glob("*.png")))),
            ]
        )
    if not path.is_file():
        return ""
    return _digest([_bytes(path), *(b"" if one.is_file() else b"gone" for one in _fetched(path))])


def _decisive(path: Path) -> bytes:
    """Return what decides a model's answers: the same for two trainings with one outcome."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return json.dumps({name: record.get(name) for name in DECIDES}, sort_keys=True).encode()
    except (OSError, ValueError, AttributeError, RecursionError):
        return b""


def _bytes(path: Path) -> bytes:
    """Return the content of a file, without the seconds that a training took."""
    try:
        data = path.read_bytes()
    except OSError:
        return b""
    if path.name != "metrics.json":
        return data
    try:
        found = json.loads(data)
        return json.dumps({name: one for name, one in found.items() if name != "seconds"}).encode()
    except (ValueError, AttributeError, RecursionError):
        return data


def _fetched(path: Path) -> list[Path]:
    """List the images that a table of `pipeline fetch` says are beside it."""
    if path.name != "images.csv":
        return []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return [path.parent / row["path"] for row in csv.DictReader(file) if row.get("status") == "kept"]


def _digest(parts: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()
