"""The trained model on disk: a folder that `load_model` turns back into the same base, transform and head.

    model.json          format, base and recipe, head, classes or target, metrics, versions
    head.safetensors    nothing in the folder is ever unpickled
    base.safetensors    only where the base was fine-tuned
    metrics.json  predictions.csv  plots/*.png

model.json has the sha256 of every file of the head, the digest of the base's tensors, and a checksum of itself, all of
which are checked before anything is answered. Version 0.1.0 wrote none (format 1): such folders open, with a note. The
metrics, predictions and plots are there to be read, and nothing is answered from them. A file may be a link to one.

A fine-tuned base is a weights file like any other, so a fine-tuned model and a head on frozen features load alike.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.config import Recipe, RerunSettings
from pipeline.environment import versions
from pipeline.errors import BaseError, ModelError, RecipeMismatchError
from pipeline.files import atomic_write, digest_bytes, heal, named, open_regular, publish_folder, read_regular
from pipeline.heads import Head, load_head
from pipeline.images import decoding
from pipeline.images.loading import BATCH
from pipeline.sources import Record, from_paths

if TYPE_CHECKING:
    from pipeline.bases import Base
    from pipeline.engines.embedder import Embedded, Embedder

#: 1 had no checksums; what reads it alone says of 2 that it wants a newer version.
FORMAT_VERSION = 2
WITHOUT_CHECKSUMS = 1
#: Bytes of model.json that are read at most, and so written: those of fifty thousand classes are less.
LARGEST_RECORD = 2**25
#: Bytes of one file of a head: all the rows that fit into memory, for the head that keeps them.
LARGEST_HEAD_FILE = 2**33
#: How deep JSON may be nested: a ranking in the metrics is at 5.
DEEPEST = 32
WHOLE = Field(ge=0, lt=2**63)
RESTORE = "restore the folder from a copy, or train again"

log = logging.getLogger(__name__)


class BaseRecord(BaseModel):
    """Where the base of a model comes from; its digest is the recipe's `weights`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    weights: str
    seed: int = WHOLE
    fine_tuned: bool = False


class DataRecord(BaseModel):
    """What a model was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    rows: int = WHOLE
    fingerprint: str


class FileRecord(BaseModel):
    """What a file must be for the model to be the one that was saved: bytes, and sha256 in hexadecimal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = WHOLE
    sha256: str


HeadFile = Annotated[str, Field(pattern=r"^([a-z]+/)?head\.[a-z]+$")]


class ModelRecord(BaseModel):
    """The content of model.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["pipeline-model"] = "pipeline-model"
    format_version: int = FORMAT_VERSION
    created: str
    task: Literal["classes", "numbers"]
    target: str
    classes: tuple[str, ...] | None
    head: dict[str, Any]
    base: BaseRecord
    recipe: Recipe
    metrics: dict[str, Any]
    chosen: dict[str, Any]
    data: DataRecord
    versions: dict[str, str]
    request: dict[str, Any] | None = None
    files: dict[HeadFile, FileRecord] | None = None
    checksum: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """What the fields say together."""
        if (self.task == "classes") != (self.classes is not None):
            raise ValueError(f"the task is {self.task}, and classes are {'missing' if not self.classes else 'named'}")
        if self.classes is not None and len(set(self.classes)) < max(1, len(self.classes)):
            raise ValueError("classes are named twice, or none is")
        return self


class Figure(Protocol):
    """What draws itself into a file: a matplotlib figure."""

    def savefig(self, path: Path, /) -> None:
        """Write the picture."""


def save_model(
    folder: str | Path,
    *,
    head: Head,
    recipe: Recipe,
    base: BaseRecord,
    target: str,
    classes: Sequence[str] | None,
    metrics: Mapping[str, Any],
    data: DataRecord,
    chosen: Mapping[str, Any] | None = None,
    predictions: Sequence[Mapping[str, Any]] = (),
    plots: Mapping[str, Figure] | None = None,
    save_base: Callable[[Path], None] | None = None,
    request: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Path:
    """Write a model folder; it appears under its name whole or not at all.

    `recipe` is the one whose features `head` takes; its `layers` are the ones the head was trained on.
    `request` says what was asked for, as `request_of` gives it.
    `save_base` writes the tuned weights to the file it is given, for a fine-tuned base only.
    Raises `OutputExistsError` where `folder` exists, unless `replace`, and `ModelError` where it cannot be written, or
    could not be opened again; what was there before stays then.
    """
    folder = Path(folder)
    with _saving(folder), publish_folder(folder, last="model.json", replace=replace) as draft:
        described = head.save(draft)
        record = ModelRecord(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            task=head.task,
            target=target,
            classes=None if classes is None else tuple(classes),
            head={"name": head.name, **described},
            base=base,
            recipe=recipe,
            metrics=dict(metrics),
            chosen=dict(chosen or {}),
            data=data,
            versions=versions(),
            request=None if request is None else dict(request),
            files={name: _measured(draft / name) for name in head_files(draft)},
        )
        if save_base is not None:
            save_base(draft / "base.safetensors")
        write_rows(draft / "predictions.csv", predictions)
        _write_json(draft / "metrics.json", record.metrics)
        if plots:
            (draft / "plots").mkdir()
            for name, figure in plots.items():
                figure.savefig(draft / "plots" / f"{name}.png")
        content = record.model_dump(mode="json")
        _write_record(draft / "model.json", {**content, "checksum": checksum(content)})
    return folder


@contextmanager
def _saving(folder: Path) -> Iterator[None]:
    """Every failure of the disk becomes one line that names the folder."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        cause = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        raise ModelError(
            f"{folder} cannot be written: {cause}; what was there before is as it was: make room, or give another -o"
        ) from error


def head_files(folder: Path) -> list[str]:
    """The files of a head, among them those of the heads that a blend is made of, as paths inside of `folder`."""
    found = [*folder.glob("head.*"), *folder.glob("*/head.*")]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def checksum(content: Mapping[str, Any]) -> str:
    """sha256 of what model.json says, in hexadecimal, whatever its spaces: of JSON with sorted keys."""
    text = json.dumps({**content, "checksum": None}, sort_keys=True, separators=(",", ":"))
    return digest_bytes(text.encode()).hex()


def _measured(path: Path) -> FileRecord:
    with open_regular(path, most=LARGEST_HEAD_FILE) as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileRecord(size=file.tell(), sha256=digest.hexdigest())


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` as CSV; the header is the keys of the first one.

    Text that a spreadsheet would take for a formula, because of its first character, gets an apostrophe in front, as
    does text that has apostrophes in front of such a character: `plain_text` gives back what it was.
    """
    table = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(table, fieldnames=list(rows[0]))
        writer.writerow({name: _cell(name) for name in rows[0]})
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    with atomic_write(path) as file:
        file.write(table.getvalue().encode("utf-8", "surrogateescape"))


def plain_text(cell: str) -> str:
    """What the text of a cell of `write_rows` was.

    >>> plain_text("'=1.jpg"), plain_text("'tis.jpg")
    ('=1.jpg', "'tis.jpg")
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _cell(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and _FORMULA.match(value) else value


#: How text begins that a spreadsheet computes, also after the sign that keeps it from doing so.
_FORMULA = re.compile("'*[=+\\-@\t\r\n]")


def load_model(folder: str | Path, **options: Any) -> Model:
    """Open a model folder, all of whose files are checked; the base itself is loaded when it is first needed.

    `options` are the fields of `RerunSettings`: `weights` names a file with the base's weights where the one recorded
    has moved, `device` and `engine` say what runs the base, ... Raises `ModelError`.
    """
    return open_model(folder, RerunSettings.of(options))


def open_model(folder: str | Path, settings: RerunSettings) -> Model:
    """Open a model folder as `load_model` does, with options that are checked already."""
    folder = Path(folder)
    heal(folder)
    before = _read(folder)
    while True:
        try:
            return _load(folder, before, settings)
        except ModelError:
            now = _read(folder)
            if now == before:
                raise
            before = now  # another model has taken this name meanwhile


def _load(folder: Path, text: bytes, settings: RerunSettings) -> Model:
    path = folder / "model.json"
    content = _parsed(path, text)
    try:
        record = ModelRecord.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in (".".join(str(part) for part in first["loc"]),) if part)
        raise ModelError(f"{path} is damaged: {where}{first['msg']}") from None
    _check_files(folder, record, content)
    if record.recipe.pixels != decoding.POLICY_VERSION:
        raise ModelError(
            f"{folder} was trained under pixel policy {record.recipe.pixels}, this version reads pixels under "
            f"policy {decoding.POLICY_VERSION}; extract and train again"
        )
    head = load_head(folder, record.head)
    outputs = 1 if record.classes is None else len(record.classes)
    if (head.task, head.outputs) != (record.task, outputs):
        raise ModelError(
            f"{folder}: a head of {head.outputs} {head.task} does not fit {outputs} {record.task}; train it again"
        )
    return Model(folder, record, head, settings)


def _check_files(folder: Path, record: ModelRecord, content: Mapping[str, Any]) -> None:
    """Raise `ModelError` where a file is not the one that was saved; say so where nobody can tell."""
    if record.format_version == WITHOUT_CHECKSUMS:
        for name in head_files(folder):
            _refuse_irregular(folder / name)
        log.warning(
            "%s was saved by version 0.1.0, without checksums: damage to it would go unnoticed; train it again to have "
            "it checked",
            folder,
        )
        return
    if record.checksum != checksum(content):
        raise ModelError(f"{folder / 'model.json'} is not what was written; {RESTORE}")
    if not record.files:
        raise ModelError(f"{folder / 'model.json'} is damaged: it names no file of its head")
    for name, expected in record.files.items():
        try:
            found = _measured(folder / name)
        except OSError as error:
            raise ModelError(f"{folder / name} cannot be read: {error.strerror}; {RESTORE}") from None
        if found != expected:
            raise ModelError(f"{folder / name} is not what was written; {RESTORE}")


def _refuse_irregular(path: Path) -> None:
    """Raise `ModelError` for a pipe or a device, which would be waited for."""
    if not path.is_file():
        raise ModelError(f"{path} cannot be read: it is no regular file; {RESTORE}")


class Model:
    """A trained model: images to features to answers.

    `record` is the content of model.json, `head` the trained head.
    """

    def __init__(self, folder: Path, record: ModelRecord, head: Head, settings: RerunSettings) -> None:
        self.folder = folder
        self.record = record
        self.head = head
        self._settings = settings

    def __repr__(self) -> str:
        """Folder, head, what it answers, and its base."""
        classes = self.record.classes
        what = f"numbers of {self.record.target!r}"
        if classes is not None:
            named = ", ".join(classes[:5]) + (f", ... ({len(classes)})" if len(classes) > 5 else "")
            what = f"classes {named}"
        base = self.record.base
        weights = "fine-tuned" if base.fine_tuned else f"weights {base.weights}"
        return f"Model({str(self.folder)!r}: head {self.head.name}, {what}, base {base.name} with {weights})"

    @cached_property
    def base(self) -> Base:
        """The base with the very weights of the training; any others are an error."""
        from pipeline.bases import base_of  # 180 MB of torchvision that a head on features does without

        known = self.record.base
        weights = known.weights if known.fine_tuned else self._settings.weights or known.weights
        tuned = self.folder / "base.safetensors" if known.fine_tuned else None
        try:
            return base_of(self.record.recipe, weights, seed=known.seed, tuned=tuned)
        except (BaseError, RecipeMismatchError) as error:
            way_out = ""
            if not known.fine_tuned and "/" in weights and not Path(weights).is_file():
                way_out = "; if the file has moved, give --weights FILE"
            raise ModelError(f"{self.folder}: its base cannot be loaded: {error}{way_out}") from error

    @cached_property
    def embedder(self) -> Embedder:
        """What makes images into the features that the head takes. Raises `ModelError` where they do not fit."""
        from pipeline.engines.embedder import Embedder

        plain = self.record.recipe.model_copy(update={"views": 0, "augment": ()})
        embedder = Embedder(self.base, plain, self._settings)
        if embedder.dimensions != self.head.dimensions:
            raise ModelError(
                f"{self.folder}: a head of {self.head.dimensions} features does not fit its base, which gives "
                f"{embedder.dimensions}; train it again"
            )
        return embedder

    def open(self) -> Self:
        """Load the base and check it now, where the first image would do so; raises `ModelError` for another one."""
        self.embedder  # noqa: B018 - it is kept
        return self

    def embed(self, records: Sequence[Record]) -> Iterator[Embedded]:
        """Embed the images of `records`, batch by batch, in their order; what has no finite features is bad."""
        for batch in self.embedder.run(records, batch_size=self._settings.batch_or(BATCH)):
            yield batch.finite()

    def predict(self, images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, top: int = 5) -> Answers:
        """What the model says of image files, or of all images of a folder, in the order asked.

        Each answer is a dict: `id` with `label`, `score` and `top` (classes), `value` and `interval` (numbers), or
        `error`, why the image has none.

        >>> load_model("artifacts/insects").predict("new.jpg")  # doctest: +SKIP
        [{'id': 'new.jpg', 'label': 'ants', 'score': 0.96, 'top': [['ants', 0.96], ['bees', 0.04]]}]
        """
        self.open()
        records = from_paths(images).records
        return [answer for batch in self.answer_batches(records, top=top) for answer in batch]

    def answer_batches(self, records: Sequence[Record], *, top: int = 5) -> Iterator[Answers]:
        """The answers to the images of `records`, batch by batch, in their order."""
        waiting = iter(records)
        for batch in self.embed(records):
            answers = self.answers(joined(batch.layers), top=top) if batch.indices else []
            said = dict(zip(batch.indices, answers, strict=True))
            said |= {image.index: {"error": str(image.error)} for image in batch.images if image.error is not None}
            yield [{"id": record.id, **said[record.index]} for record in islice(waiting, len(batch))]

    def check_recipe(self, other: Recipe, where: str | Path) -> None:
        """Raise `RecipeMismatchError` unless features made by `other` are those that the head knows."""
        way_out = f"extract again with the recipe of {self.folder}, or train on this file"
        self.record.recipe.refuse_without(other, where=where, way_out=way_out)

    def answers(self, features: NDArray[np.float32], *, top: int = 5) -> list[dict[str, Any]]:
        """What the head says of `features` (B, D): `top` classes with scores, or value and interval."""
        scores = self.head.predict_proba(features)
        if self.record.classes is None:
            return [self._number(float(value)) for value in scores]
        return [self._label(row, top) for row in scores]

    def _number(self, value: float) -> dict[str, Any]:
        half = self.record.head.get("interval_half_width")
        return {"value": value, "interval": None if half is None else [value - half, value + half]}

    def _label(self, row: NDArray[np.float64], top: int) -> dict[str, Any]:
        classes = self.record.classes or ()
        best = np.argsort(-row, kind="stable")[:top]
        ranked = [[classes[i], float(row[i])] for i in best]
        return {"label": ranked[0][0], "score": ranked[0][1], "top": ranked}


Answers = list[dict[str, Any]]


def joined(layers: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Several layers' features side by side, each flattened: (B, D1 + D2 + ...)."""
    flat = [layer.reshape(len(layer), -1) for layer in layers]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)


def _read(folder: Path) -> bytes:
    path = folder / "model.json"
    try:
        return read_regular(path, most=LARGEST_RECORD)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            f"{folder} is not a model folder: it has no model.json; train one with pipeline fit-head"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # half of a character is no name
    except (ValueError, RecursionError, MemoryError) as error:
        raise ModelError(f"{path} cannot be read: {str(error) or type(error).__name__}") from None
    if not isinstance(content, dict) or content.get("format") != "pipeline-model":
        raise ModelError(f"{path} does not describe a model of this program")
    if content.get("format_version") not in (FORMAT_VERSION, WITHOUT_CHECKSUMS):
        raise ModelError(
            f"{path} has format version {str(content.get('format_version'))[:20]}, this program reads up to "
            f"{FORMAT_VERSION}; update the program or train again"
        )
    if _depth(content) > DEEPEST:
        raise ModelError(f"{path} does not describe a model of this program: it is nested over {DEEPEST} deep")
    return content


def _depth(content: Any) -> int:
    """How many objects and lists are inside of each other."""
    depth, level = 0, [content]
    while level:
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        depth, level = depth + 1, [child for children in inner for child in children]
    return depth


def _write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write model.json, close together where it would be too large to be read again on lines of its own."""
    _write_json(path, content)
    if path.stat().st_size > LARGEST_RECORD:
        _write_json(path, content, indent=None)
    if (size := path.stat().st_size) > LARGEST_RECORD:
        raise ModelError(
            f"a model.json of {size >> 20} MB could not be opened again, {LARGEST_RECORD >> 20} MB are read; what was "
            "there before is as it was: take fewer classes, or shorter names"
        )


def _write_json(path: Path, content: Mapping[str, Any], *, indent: int | None = 2) -> None:
    with named(path):
        path.write_text(json.dumps(content, indent=indent, allow_nan=True) + "\n", encoding="utf-8")
