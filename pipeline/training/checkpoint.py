"""The checkpoint of a training: a folder beside its output, from which the same training goes on after a stop.

    OUTPUT.training/
      checkpoint.json      format, request, progress, sha256 of the tensors' file, checksum of itself
      state.safetensors    nothing in the folder is ever unpickled

Each epoch replaces it as a whole, flushed to the disk, so that a kill or a power cut leaves the epoch before or this
one. It holds what the loop gives it, and knows nothing of it but names, numbers and tensors.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from pipeline.errors import ModelError, OutputExistsError
from pipeline.files import (
    digest_json,
    discard_folder,
    heal,
    open_regular,
    publish_folder,
    read_regular,
    refuse_existing,
    require_room,
)
from pipeline.text import shown

FORMAT_VERSION = 1
RECORD, STATE = "checkpoint.json", "state.safetensors"
#: Bytes of checkpoint.json that are read at most: its epochs take some hundred bytes each.
LARGEST_RECORD = 2**26
#: Bytes of the state that are read at most: three copies of the largest networks, and more.
LARGEST_STATE = 2**37
#: Settings that may change between a stop and the run that goes on: no number depends on them.
FREE = ("workers", "memory")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A training between two epochs: `tensors` by name, and its `progress` as JSON values; `epoch` was the last one."""

    epoch: int
    tensors: Mapping[str, Tensor]
    progress: Mapping[str, Any]


class CheckpointRecord(BaseModel):
    """The content of checkpoint.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["pipeline-checkpoint"] = "pipeline-checkpoint"
    format_version: int = FORMAT_VERSION
    request: dict[str, Any]
    epoch: int = Field(ge=0, lt=2**31)
    progress: dict[str, Any]
    sha256: str
    checksum: str | None = None


class Checkpoint:
    """The checkpoint of the training of `output`, which is the answer to `request`: settings, and digests of inputs.

    Two trainings with equal requests take the same steps.
    """

    def __init__(self, output: Path, request: Mapping[str, Any]) -> None:
        self.path = checkpoint_path(output)
        self._request = json.loads(json.dumps(request))  # tuples as JSON has them: as lists

    def read(self, *, force: bool = False) -> Saved | None:
        """Return what was saved last; None where there is nothing to go on from, or where it is damaged: that is said.

        Raises `OutputExistsError` where another training was stopped there, unless `force`, which begins anew.
        """
        heal(self.path)
        if not self.path.exists():
            return None
        try:
            record = _read_record(self.path)
            difference = first_difference(record.request, self._request)
            if difference is None:
                return Saved(record.epoch, _read_tensors(self.path, record), record.progress)
        except ModelError as error:
            log.warning("%s; the training begins anew", error)
            return None
        if not force:
            raise OutputExistsError(
                f"{shown(self.path)} is a training that was stopped after epoch {record.epoch}, with {difference}; "
                "repeat its command to go on with it, or give --force to begin anew, or another -o"
            )
        return None

    def write(self, saved: Saved) -> None:
        """Replace the checkpoint. Raises `OSError` where the disk does not take it; the one before stays then."""
        try:
            with publish_folder(self.path, last=RECORD, replace=True) as draft:
                self._fill(draft, saved)
        except (OSError, SafetensorError) as error:  # which names a temporary folder, or nothing
            cause = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
            raise OSError(getattr(error, "errno", None), cause, str(self.path)) from error

    def _fill(self, draft: Path, saved: Saved) -> None:
        save_file({name: one.detach().cpu().contiguous() for name, one in saved.tensors.items()}, draft / STATE)
        record = CheckpointRecord(
            request=self._request, epoch=saved.epoch, progress=dict(saved.progress), sha256=_digest(draft / STATE)
        ).model_dump(mode="json")
        text = json.dumps({**record, "checksum": _checksum(record)}, indent=2)
        (draft / RECORD).write_text(text + "\n", encoding="utf-8")

    def remove(self) -> None:
        """Remove it: the model is published."""
        discard_folder(self.path)


def checkpoint_path(output: Path) -> Path:
    """Return the folder of the checkpoint of a training of `output`.

    >>> checkpoint_path(Path("artifacts/tuned")).as_posix()
    'artifacts/tuned.training'
    """
    return output.with_name(f"{output.name}.training")


def stopped_request(output: Path) -> dict[str, Any] | None:
    """Return the request of the training of `output` that was stopped; None where there is none that can be read."""
    path = checkpoint_path(output)
    heal(path)
    try:
        return _read_record(path).request if path.exists() else None
    except (ModelError, OSError, OutputExistsError):  # which is told where it is gone on with
        return None


def refuse_no_place(output: Path, *, size: int) -> None:
    """Raise an error where no checkpoint of `size` bytes could be written: call it before hours of work, not after.

    `OutputExistsError` where something else has its name, `OSError` where the disk has no room for two: the old one
    stays until the new one is whole.
    """
    refuse_existing(checkpoint_path(output), last=RECORD, replace=True)
    require_room(output, 2 * size)


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Describe the first thing that two requests do not share; None where they ask for the same.

    >>> first_difference({"settings": {"lr": 0.1}}, {"settings": {"seed": 7}})
    'lr=0.1, not its default'
    """
    theirs, ours = (dict(request.get("settings") or {}) for request in (there, here))
    for name in sorted({*theirs, *ours} - {*FREE}):
        if theirs.get(name) != ours.get(name):
            told = [f"{name}={shown(of[name])}" if name in of else "its default" for of in (theirs, ours)]
            return f"{told[0]}, not {told[1]}" if name in theirs else f"the default of {name}, not {shown(ours[name])}"
    for name in sorted({*there, *here} - {"settings"}):
        if there.get(name) != here.get(name):
            return f"other {name}"
    return None


def _read_record(folder: Path) -> CheckpointRecord:
    path = folder / RECORD
    try:
        content = json.loads(read_regular(path, most=LARGEST_RECORD))
        if not isinstance(content, dict) or content.get("checksum") != _checksum(content):
            raise ModelError(f"{shown(path)} fails its checksum")
        if content.get("format_version") != FORMAT_VERSION:
            raise OutputExistsError(f"{shown(folder)} is of another version; go on with that, or give another -o")
        return CheckpointRecord.model_validate(content)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or not what we write
        raise ModelError(f"{shown(path)} is damaged") from None


def _checksum(content: Mapping[str, Any]) -> str:
    return digest_json({**content, "checksum": None})


def _read_tensors(folder: Path, record: CheckpointRecord) -> dict[str, Tensor]:
    path = folder / STATE
    try:
        with open_regular(path, most=LARGEST_STATE) as file:
            data = file.read()
    except FileNotFoundError:
        raise ModelError(f"{shown(path)} is missing") from None
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise ModelError(f"{shown(path)} fails its checksum")
    return load(data)


def _digest(path: Path) -> str:
    with open_regular(path, most=LARGEST_STATE) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
