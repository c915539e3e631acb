"""The trained model on disk: a folder that `load_model` turns back into the same base, transform and head.

    model.json          format, base and recipe, head, classes or target, metrics, versions
    head.safetensors    or the head.skops of version 0.1.0; nothing in the folder is ever unpickled
    base.safetensors    only where the base was fine-tuned
    metrics.json  predictions.csv  plots/*.png

A fine-tuned base is a weights file like any other, so a fine-tuned model and a head on frozen features load alike.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import pixels
from pipeline.config import MAX_PIXELS, Recipe
from pipeline.environment import versions
from pipeline.errors import BaseError, ImageError, ModelError, RecipeMismatchError
from pipeline.files import atomic_write, publish_folder
from pipeline.heads import Head, load_head
from pipeline.loading import Shape, load
from pipeline.manifest import Record

if TYPE_CHECKING:
    from pipeline.bases import Base
    from pipeline.engines import Engine

FORMAT_VERSION = 1


class BaseRecord(BaseModel):
    """Where the base of a model comes from; its digest is the recipe's `weights`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    weights: str
    seed: int
    fine_tuned: bool = False


class DataRecord(BaseModel):
    """What a model was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    rows: int
    fingerprint: str


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
    Raises `OutputExistsError` where `folder` exists, unless `replace`.
    """
    folder = Path(folder)
    with publish_folder(folder, last="model.json", replace=replace) as draft:
        record = ModelRecord(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            task=head.task,
            target=target,
            classes=None if classes is None else tuple(classes),
            head={"name": head.name, **head.save(draft)},
            base=base,
            recipe=recipe,
            metrics=dict(metrics),
            chosen=dict(chosen or {}),
            data=data,
            versions=versions(),
            request=None if request is None else dict(request),
        )
        if save_base is not None:
            save_base(draft / "base.safetensors")
        write_rows(draft / "predictions.csv", predictions)
        _write_json(draft / "metrics.json", record.metrics)
        if plots:
            (draft / "plots").mkdir()
            for name, figure in plots.items():
                figure.savefig(draft / "plots" / f"{name}.png")
        _write_json(draft / "model.json", record.model_dump(mode="json"))
    return folder


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` as CSV; the header is the keys of the first one."""
    table = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(table, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(table.getvalue().encode("utf-8", "surrogateescape"))


def load_model(
    folder: str | Path,
    *,
    weights: str | None = None,
    device: str = "auto",
    engine: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> Model:
    """Open a model folder; the base itself is loaded when it is first needed.

    `weights` names a file with the base's weights where the one recorded has moved. Raises `ModelError`.
    """
    folder = Path(folder)
    try:
        record = ModelRecord.model_validate(_read_json(folder))
        head = load_head(folder, record.head)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{folder / 'model.json'} is damaged: {where}: {first['msg']}") from None
    named = 1 if record.classes is None else len(record.classes)
    if (head.task, head.outputs) != (record.task, named) or (record.classes is None) != (record.task == "numbers"):
        raise ModelError(
            f"{folder}: a head of {head.outputs} {head.task} does not fit {named} {record.task}; train it again"
        )
    if record.recipe.pixels != pixels.POLICY_VERSION:
        raise ModelError(
            f"{folder} was trained under pixel policy {record.recipe.pixels}, this version reads pixels under "
            f"policy {pixels.POLICY_VERSION}; extract and train again"
        )
    return Model(folder, record, head, weights=weights, device=device, engine=engine, max_pixels=max_pixels)


@dataclass(frozen=True)
class Embedded:
    """The images of one batch: `features` (n, D) of those at `indices`, and why the others have none."""

    indices: list[int]
    features: NDArray[np.float32]
    errors: dict[int, ImageError]

    def __len__(self) -> int:
        return len(self.indices) + len(self.errors)


class Model:
    """A trained model: images to features to answers.

    `record` is the content of model.json, `head` the trained head.
    """

    def __init__(
        self,
        folder: Path,
        record: ModelRecord,
        head: Head,
        *,
        weights: str | None,
        device: str,
        engine: str,
        max_pixels: int,
    ) -> None:
        self.folder = folder
        self.record = record
        self.head = head
        self._weights = weights
        self._device = device
        self._engine = engine
        self._max_pixels = max_pixels

    @cached_property
    def base(self) -> Base:
        """The base with the very weights of the training; any others are an error."""
        from pipeline.bases import base_of  # 180 MB of torchvision that a head on features does without

        known = self.record.base
        weights = known.weights if known.fine_tuned else self._weights or known.weights
        tuned = self.folder / "base.safetensors" if known.fine_tuned else None
        try:
            base = base_of(self.record.recipe, weights, seed=known.seed, tuned=tuned)
        except BaseError as error:
            raise ModelError(f"{self.folder}: its base cannot be loaded: {error}") from error
        if base.digest != self.record.recipe.weights:
            raise ModelError(
                f"{self.folder} was trained on {known.name} with weights {self.record.recipe.weights[:12]}, but "
                f"{tuned or weights} holds {base.digest[:12]}; give the right file with --weights FILE"
            )
        return base

    @cached_property
    def engine(self) -> Engine:
        """What runs the base up to the layers that the head takes."""
        from pipeline.engines import make_engine

        recipe = self.record.recipe
        return make_engine(
            self.base,
            recipe.layers,
            recipe.pool,
            engine=self._engine,
            device=self._device,
            precision=recipe.precision,
        )

    @cached_property
    def shape(self) -> Shape:
        """What makes the bytes of an image file into the base's input, uint8 (1, H, W, 3)."""
        from pipeline.shaping import shaper

        plain = self.record.recipe.model_copy(update={"views": 0, "augment": ()})
        return shaper(plain, self.base.transform, max_pixels=self._max_pixels)

    def features(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeddings (B, D) of a batch of shaped images, uint8 (B, H, W, 3)."""
        return joined(self.engine(batch))

    def embed(self, records: Sequence[Record], *, batch_size: int = 16) -> Iterator[Embedded]:
        """Embeddings of the images of `records`, batch by batch, in their order."""
        for batch in load(records, self.shape, batch_size=batch_size):
            images = {loaded.index: loaded.pixels for loaded in batch if loaded.pixels is not None}
            errors = {loaded.index: loaded.error for loaded in batch if loaded.error is not None}
            features = self.features(np.concatenate(list(images.values()))) if images else np.empty((0, 0), np.float32)
            yield Embedded(list(images), features, errors)

    def check_recipe(self, other: Recipe, where: str | Path) -> None:
        """Raise `RecipeMismatchError` unless features made by `other` are those that the head knows."""
        mine = self.record.recipe
        missing = [layer for layer in mine.layers if layer not in other.layers]
        if missing:
            raise RecipeMismatchError(
                f"{where} has no layer {missing[0]!r} that {self.folder} was trained on; "
                f"extract with --layer {missing[0]}"
            )
        plain = {"layers": mine.layers, "views": mine.views, "augment": mine.augment, "seed": mine.seed}
        difference = mine.first_difference(other.model_copy(update=plain))
        if difference:
            name, trained, found = difference
            raise RecipeMismatchError(
                f"{where} was extracted with {name}={found}, {self.folder} was trained on {name}={trained}; "
                "extract again with the model's recipe, or train on this file"
            )

    def answers(self, features: NDArray[np.float32], *, top: int = 5) -> list[dict[str, Any]]:
        """What the head says of `features` (B, D): `top` classes with scores, or value and interval."""
        scores = self.head.scores(features)
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


def joined(layers: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Several layers' features side by side, each flattened: (B, D1 + D2 + ...)."""
    flat = [layer.reshape(len(layer), -1) for layer in layers]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "model.json"
    if not path.is_file():
        raise ModelError(f"{folder} is not a model folder: it has no model.json; train one with pipeline fit-head")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("format") != "pipeline-model":
        raise ModelError(f"{path} does not describe a model of this program")
    if content.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{path} has format version {content.get('format_version')}, this program reads {FORMAT_VERSION}; "
            "update the program or train again"
        )
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=True) + "\n", encoding="utf-8")
