"""Datasets of torchvision: ``torchvision:CIFAR10?root=DIR``, all splits that the dataset has."""

from __future__ import annotations

import inspect
import io
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from PIL import Image

from pipeline.config import SourceSettings
from pipeline.errors import ImageError, SettingsError, SourceError
from pipeline.registry import refuse_unknown
from pipeline.sources.columns import column_target
from pipeline.sources.manifest import SPLITS, Manifest, Row, Target, class_target, make_manifest, shown

PREFIX = "torchvision:"
_WORDS = {"true": True, "false": False, "none": None}


class OneReader:
    """A lock around datasets: many keep a file or random numbers that threads would share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[OneReader], tuple[()]]:
        return OneReader, ()  # another process has datasets of its own

    def image(self, dataset: Any, position: int) -> Any:
        """Return the image at `position`, its pixels loaded."""
        with self._lock:
            image = dataset[position][0]
            if isinstance(image, Image.Image):
                image.load()
        return image


@dataclass(frozen=True, slots=True)
class DatasetImage:
    """An image that a dataset makes when asked; its bytes are those of a PNG, which is lossless."""

    reader: OneReader
    dataset: Any
    position: int
    name: str
    state: tuple[int, int]

    @property
    def where(self) -> str:
        """Place for messages: the dataset and the position in it."""
        return f"{shown(self.name)}[{self.position}]"

    def stat(self) -> tuple[int, int]:
        """Return size and newest time of all the dataset's files, which is as near to one image as they tell."""
        return self.state

    def read(self, limit: int) -> bytes:
        """Return the image as PNG; raise `ImageError` where the dataset has none, or more than `limit` bytes of it."""
        try:
            image = self.reader.image(self.dataset, self.position)
        except (OSError, ValueError, RuntimeError) as error:
            raise ImageError("unreadable", str(error).replace("\n", " ")) from error
        if not isinstance(image, Image.Image):
            raise ImageError("not-an-image", f"the dataset gives a {type(image).__name__}")
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        data = buffer.getvalue()
        if len(data) > limit:
            raise ImageError("too-large", f"{len(data)} bytes, the limit is {limit}")
        return data


def read_dataset(source: str, settings: SourceSettings) -> Manifest:
    """List the images of a torchvision dataset, with its classes; a numeric target is called ``target``."""
    name, _, query = source.removeprefix(PREFIX).partition("?")
    options = {key: value if key == "root" else _word(value) for key, value in parse_qsl(query)}
    builder = _find_dataset(name)
    parameters = inspect.signature(builder).parameters
    for key in options:
        refuse_unknown("option", key, parameters, where=f"{source}: {name}")
    if "root" in parameters and "root" not in options:
        raise SettingsError(f"{source}: say where its files are, {PREFIX}{name}?root=DIR")
    state = _newest(str(options.get("root", "")))
    rows: list[Row] = []
    labels: list[Any] = []
    classes: Sequence[str] | None = None
    reader = OneReader()
    for split, dataset in _splits(source, builder, options):
        digits = len(str(len(dataset)))
        where = f"{source} {split}".strip()
        for position in range(len(dataset)):
            name_in_split = f"{position:0{digits}}"
            identity = f"{split}/{name_in_split}" if split else name_in_split
            rows.append(Row(identity, DatasetImage(reader, dataset, position, where, state), SPLITS.get(split, "")))
        labels += _labels(dataset)
        classes = getattr(dataset, "classes", None) or classes
    return make_manifest(source, rows, _targets(labels, classes))


def _word(value: str) -> Any:
    return int(value) if value.isdecimal() else _WORDS.get(value.lower(), value)


def _find_dataset(name: str) -> Any:
    from torchvision import datasets

    refuse_unknown("dataset", name, datasets.__all__, where="torchvision")
    return getattr(datasets, name)


def _splits(source: str, builder: Any, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Make every split that the dataset has, or the one that the options name."""
    parameters = inspect.signature(builder).parameters
    if "train" in parameters and "train" not in options:
        choices: list[tuple[str, dict[str, Any]]] = [("train", {"train": True}), ("test", {"train": False})]
    elif "split" in parameters and "split" not in options:
        choices = [(name, {"split": name}) for name in ("train", "val", "valid", "test")]
    else:
        split = "train" if options.get("train") else "test" if "train" in options else options.get("split", "")
        choices = [(str(split), {})]
    problems = []
    for split, choice in choices:
        try:
            dataset = builder(**options, **choice)
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            problems.append(str(error).replace("\n", " "))
            # Datasets refuse the name of a split that they do not have; their other errors are errors.
            if "split" in choice and isinstance(error, ValueError):
                continue
            raise SourceError(f"{source}: {problems[-1]}") from error
        yield split, dataset
    if len(problems) == len(choices):
        raise SourceError(f"{source}: {problems[0]}")


def _labels(dataset: Any) -> list[Any]:
    """Return one label an image, without decoding any where the dataset keeps a list."""
    for attribute in ("targets", "labels", "_labels", "y"):
        found = getattr(dataset, attribute, None)
        if found is not None and len(found) == len(dataset):
            break
    else:
        found = [dataset[position][1] for position in range(len(dataset))]
    return [label.item() if hasattr(label, "item") else label for label in found]


def _targets(labels: Sequence[Any], classes: Sequence[Any] | None) -> list[Target]:
    if not all(isinstance(label, int | float | str) for label in labels):
        return []
    if classes and all(isinstance(label, int) and 0 <= label < len(classes) for label in labels):
        return [class_target("class", [str(classes[label]) for label in labels])]
    cells = [str(label) for label in labels]
    if any(isinstance(label, float) for label in labels):
        return [column_target("target", cells, "number", lambda row: f"image {row}")]
    return [class_target("class", list(cells))]


def _newest(root: str) -> tuple[int, int]:
    """Return the bytes of all files under `root`, and the time of the newest in nanoseconds."""
    size = newest = 0
    for folder, _, files in os.walk(root):
        for file in files:
            found = os.stat(f"{folder}/{file}", follow_symlinks=False)  # noqa: PTH116 (there may be many)
            size, newest = size + found.st_size, max(newest, found.st_mtime_ns)
    return size, newest
