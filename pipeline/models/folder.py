"""The trained model on disk: a folder that `load_model` turns back into the same base, transform and head.

    model.json          format, base and recipe, head, classes or target, metrics, versions
    head.safetensors    nothing in the folder is ever unpickled
    base.safetensors    only where the base was fine-tuned
    rows.safetensors    digests of the images that were trained on
    unlikeness.safetensors  a sample of their features, which tells how unlike them an image is
    README.md  metrics.json  predictions.csv  out_of_fold.csv  plots/*.png

model.json has the sha256 of every file of the head and of these two, the digest of the base's tensors, and a
checksum of itself, all of which are checked before anything is answered. Version 0.1.0 wrote none (format 1): such
folders open, with a note. The card, metrics, predictions and plots are there to be read, and nothing is answered from
them. A file may be a link to one.

A fine-tuned base is a weights file like any other, so a fine-tuned model and a head on frozen features load alike.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.config import Recipe
from pipeline.errors import ModelError
from pipeline.files import digest_json, heal, named, open_regular, publish_folder, read_regular
from pipeline.heads import Head, load_head, save_head
from pipeline.heads.unlikeness import FILE as UNLIKENESS_FILE
from pipeline.heads.unlikeness import Unlikeness
from pipeline.images import decoding
from pipeline.models import card
from pipeline.models.predictions import write_rows
from pipeline.models.seen import FILE as SEEN_FILE
from pipeline.models.seen import Seen
from pipeline.sources import Target
from pipeline.versions import versions

#: 1 had no checksums; version 0.1.0, which reads 1 alone, says of 2 that it needs an update.
FORMAT_VERSION = 2
WITHOUT_CHECKSUMS = 1
#: Bytes of model.json that are read at most, and so written: those of fifty thousand classes are less.
LARGEST_RECORD = 2**25
#: Bytes of one file of a head: all the rows that fit into memory, for the head that keeps them.
LARGEST_HEAD_FILE = 2**33
#: Files that are checked as those of the head are, where there are any.
BESIDE_HEAD = (SEEN_FILE, UNLIKENESS_FILE)
#: How deep JSON may be nested: a ranking in the metrics is at 5.
DEEPEST = 32
WHOLE = Field(ge=0, lt=2**63)
RESTORE = "restore the folder from a copy, or train again"

log = logging.getLogger(__name__)


class BaseRecord(BaseModel):
    """The origin of a model's base; the digest of its weights is the recipe's `weights`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    weights: str
    seed: int = WHOLE
    fine_tuned: bool = False


class SideRecord(BaseModel):
    """Another base whose features stand beside those of the first, with their recipe and the source of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: BaseRecord
    recipe: Recipe
    source: str


class DataRecord(BaseModel):
    """The data that a model was trained on: source, number of training rows, fingerprint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    rows: int = WHOLE
    fingerprint: str


class FileRecord(BaseModel):
    """Size in bytes and sha256, in hexadecimal, of a file of the head as it was saved."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = WHOLE
    sha256: str


KnownFile = Annotated[str, Field(pattern=r"^(([a-z]+/)?head\.[a-z]+|rows\.safetensors|unlikeness\.safetensors)$")]


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
    beside: tuple[SideRecord, ...] = ()
    score_views: Literal["plain", "mean"] = "plain"
    metrics: dict[str, Any]
    chosen: dict[str, Any]
    data: DataRecord
    versions: dict[str, str]
    request: dict[str, Any] | None = None
    files: dict[KnownFile, FileRecord] | None = None
    checksum: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Check the fields that depend on each other."""
        if (self.task == "classes") != (self.classes is not None):
            raise ValueError(f"the task is {self.task}, and classes are {'missing' if not self.classes else 'named'}")
        if self.classes is not None and len(set(self.classes)) < max(1, len(self.classes)):
            raise ValueError("classes are named twice, or none is")
        return self

    @property
    def bases(self) -> list[tuple[BaseRecord, Recipe]]:
        """Every base with the recipe of its features, in the order in which they stand side by side."""
        return [(self.base, self.recipe), *((one.base, one.recipe) for one in self.beside)]

    @classmethod
    def of(
        cls,
        head: Head,
        target: Target,
        *,
        base: BaseRecord,
        recipe: Recipe,
        metrics: Mapping[str, Any],
        data: DataRecord,
        chosen: Mapping[str, Any] | None = None,
        request: Mapping[str, Any] | None = None,
        score_views: Literal["plain", "mean"] = "plain",
        beside: Sequence[SideRecord] = (),
    ) -> Self:
        """Describe a model of `head` that is not saved yet.

        `recipe` is the one whose features `head` takes; its `layers` are the ones the head was trained on. `request` is
        made by `request_of`. `score_views` says whether images are answered by their plain view, or by the mean over
        the views of the recipe. `beside` are the other bases, whose features follow those of `base`.
        """
        return cls(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            task=head.task,
            target=target.name,
            classes=target.names,
            head={"name": head.name},
            base=base,
            recipe=recipe,
            beside=tuple(beside),
            score_views=score_views,
            metrics=dict(metrics),
            chosen=dict(chosen or {}),
            data=data,
            versions=versions(),
            request=None if request is None else dict(request),
        )


class Figure(Protocol):
    """A picture that writes itself to a file, such as a matplotlib figure."""

    def savefig(self, path: Path, /) -> None:
        """Write the picture."""


def save_model(
    folder: str | Path,
    head: Head,
    *,
    record: ModelRecord,
    predictions: Sequence[Mapping[str, Any]] = (),
    plots: Mapping[str, Figure] | None = None,
    save_base: Callable[[Path], None] | None = None,
    seen: Seen | None = None,
    unlikeness: Unlikeness | None = None,
    out_of_fold: Sequence[Mapping[str, Any]] = (),
    replace: bool = False,
) -> Path:
    """Write a model folder; it appears under its name whole or not at all.

    `record` describes the model, as `ModelRecord.of` does; `seen` are the images that were trained on, and `unlikeness`
    tells how unlike them others are. `save_base` writes the trained weights to the file it is given, for a fine-tuned
    base only.
    Raises `OutputExistsError` where `folder` exists, unless `replace`, and `ModelError` where it cannot be written, or
    could not be opened again; what was there before stays then.
    """
    folder = Path(folder)
    with _saving(folder), publish_folder(folder, last="model.json", replace=replace) as draft:
        described = save_head(head, draft)
        if seen is not None:
            seen.write(draft)
        if unlikeness is not None:
            unlikeness.write(draft)
        measured = {name: _measured(draft / name) for name in checked_files(draft)}
        if save_base is not None:
            save_base(draft / "base.safetensors")
        write_rows(draft / "predictions.csv", predictions)
        if out_of_fold:
            write_rows(draft / "out_of_fold.csv", out_of_fold)
        (draft / card.FILE).write_text(card.card(record), encoding="utf-8")
        _write_json(draft / "metrics.json", record.metrics)
        if plots:
            (draft / "plots").mkdir()
            for name, figure in plots.items():
                figure.savefig(draft / "plots" / f"{name}.png")
        content = record.model_copy(update={"head": described, "files": measured}).model_dump(mode="json")
        _write_record(draft / "model.json", {**content, "checksum": checksum(content)})
    return folder


@contextmanager
def _saving(folder: Path) -> Iterator[None]:
    """Turn every failure of the disk into one line that names the folder."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        cause = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        raise ModelError(
            f"{folder} cannot be written: {cause}; what was there before is as it was: make room, or give another -o"
        ) from error


def head_files(folder: Path) -> list[str]:
    """List the files of a head, also those of the heads that a blend is made of, as paths inside of `folder`."""
    found = [*folder.glob("head.*"), *folder.glob("*/head.*")]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def checked_files(folder: Path) -> list[str]:
    """List the files whose sha256 stands in model.json."""
    return [*head_files(folder), *(name for name in BESIDE_HEAD if (folder / name).is_file())]


def checksum(content: Mapping[str, Any]) -> str:
    """Compute the sha256, in hexadecimal, of model.json's content, whatever its spaces."""
    return digest_json({**content, "checksum": None})


def _measured(path: Path) -> FileRecord:
    with open_regular(path, most=LARGEST_HEAD_FILE) as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileRecord(size=file.tell(), sha256=digest.hexdigest())


def read_folder(folder: Path) -> tuple[ModelRecord, Head]:
    """Read the record and the head of a model folder, all checked. Raises `ModelError`.

    Another model may take the folder's name meanwhile: then that one is read.
    """
    heal(folder)
    before = _read(folder)
    while True:
        try:
            return _load(folder, before)
        except ModelError:
            now = _read(folder)
            if now == before:
                raise
            before = now


def _load(folder: Path, text: bytes) -> tuple[ModelRecord, Head]:
    path = folder / "model.json"
    content = _parsed(path, text)
    try:
        record = ModelRecord.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in (".".join(str(part) for part in first["loc"]),) if part)
        raise ModelError(f"{path} is damaged: {where}{first['msg']}") from None
    _check_files(folder, record, content)
    for _, recipe in record.bases:
        if recipe.pixels != decoding.POLICY_VERSION:
            raise ModelError(
                f"{folder} was trained under pixel policy {recipe.pixels}, this version reads pixels under "
                f"policy {decoding.POLICY_VERSION}; extract and train again"
            )
    head = load_head(folder, record.head)
    outputs = 1 if record.classes is None else len(record.classes)
    if (head.task, head.outputs) != (record.task, outputs):
        raise ModelError(
            f"{folder}: a head of {head.outputs} {head.task} does not fit {outputs} {record.task}; train it again"
        )
    return record, head


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
        raise ModelError(f"{folder / 'model.json'} fails its checksum; {RESTORE}")
    if not set(record.files or ()) - set(BESIDE_HEAD):
        raise ModelError(f"{folder / 'model.json'} is damaged: it names no file of its head")
    for name, expected in (record.files or {}).items():
        try:
            found = _measured(folder / name)
        except OSError as error:
            raise ModelError(f"{folder / name} cannot be read: {error.strerror}; {RESTORE}") from None
        if found != expected:
            raise ModelError(f"{folder / name} fails its checksum; {RESTORE}")


def _refuse_irregular(path: Path) -> None:
    """Raise `ModelError` for a pipe or a device, which would be waited for."""
    if not path.is_file():
        raise ModelError(f"{path} cannot be read: it is no regular file; {RESTORE}")


def _read(folder: Path) -> bytes:
    path = folder / "model.json"
    try:
        return read_regular(path, most=LARGEST_RECORD)
    except (FileNotFoundError, NotADirectoryError):
        cause = "is not a model folder: it has no model.json" if folder.exists() else "does not exist"
        raise ModelError(f"{folder} {cause}; train a model with pipeline fit-head") from None
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
    """Count how deep objects and lists are nested."""
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
