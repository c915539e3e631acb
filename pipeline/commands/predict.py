"""Answer for new images with a saved model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from pipeline.commands.results import Result
from pipeline.config import RerunSettings
from pipeline.config.options import RerunOptions
from pipeline.config.signatures import takes
from pipeline.errors import SettingsError
from pipeline.files import refuse_nul
from pipeline.models.exported import SUFFIX, ExportedModel
from pipeline.models.predictions import write_rows
from pipeline.models.threshold import Threshold
from pipeline.progress import progress as progress_bar
from pipeline.scores import listed_classes, probabilities
from pipeline.sources import from_paths, log_notices
from pipeline.text import plural, shown

if TYPE_CHECKING:
    from pipeline.models.model import Model


@dataclass
class PredictResult(Result):
    """One entry an image, in the order asked: its answer, or the error that it has none for."""

    predictions: list[dict[str, Any]]
    threshold: dict[str, Any] | None = None
    notices: list[str] = field(default_factory=list)

    @property
    def all_bad(self) -> bool:
        """True where not one image could be read."""
        return all("error" in entry for entry in self.predictions)

    def summary(self) -> str:
        """Format a line an image."""
        lines = [_line(entry, decided=self.threshold is not None) for entry in self.predictions]
        return "\n".join([*lines, *(f"note: {notice}" for notice in self.notices)])


@takes(RerunSettings)
def predict(
    model: str | Path,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    top: int = 5,
    csv: str | Path | None = None,
    threshold: str | None = None,
    no_unknown: bool = False,
    progress: bool = False,
    **options: Unpack[RerunOptions],
) -> PredictResult:
    """Run the model folder `model`, or a file of `export`, on an image file, on several, or on all images of a folder.

    `threshold`, CLASS=P or CLASS, answers that class from its probability P on, or from the one with the best F1 of
    training rows out of fold. Each prediction is a dict: `id` with `label`, `score`, `top` and `set` (classes), `value`
    and `interval` (numbers), or `error`; and `unknown`, `unlikeness` and `nearest` as `Model.predict` gives them,
    unless `no_unknown`. `options` are those of `load_model`: `weights`, `device`, `engine`, ... Raises `ModelError`
    where the model or its base cannot be loaded.
    """
    if csv is not None:
        refuse_nul(csv)
    settings = RerunSettings.of(options)
    loaded = _exported(model, settings) if Path(model).suffix == SUFFIX else _opened(model, settings)
    manifest = from_paths(images)
    log_notices(manifest)
    entries: list[dict[str, Any]] = []
    classes = loaded.classes or ()
    at = None
    if threshold is not None:
        seen = None if isinstance(loaded, ExportedModel) else loaded.seen
        at = Threshold.of(threshold, loaded.classes, seen, where=model)
    listed = len(classes) if at is not None else max(top, listed_classes(classes))
    with progress_bar(len(manifest.records), "predicting", show=progress) as bar:
        for answers in loaded.answer_batches(manifest.records, top=listed, no_unknown=no_unknown):
            entries += answers if at is None else [_decided(answer, at) for answer in answers]
            bar.advance(len(answers))
    if csv is not None:
        told = not no_unknown and loaded.unlikeness is not None
        write_rows(Path(csv), [_row(entry, loaded.classes, unknown=told) for entry in entries])
    shortened = [{**entry, "top": entry["top"][:top]} if "top" in entry else entry for entry in entries]
    notices = [] if at is None else [at.notice()]
    count = sum(entry.get("unknown", False) for entry in entries)
    if count and loaded.unlikeness is not None:
        notices.append(f"{plural(count, 'image')} called unknown: {loaded.unlikeness.explanation}")
    return PredictResult(shortened, None if at is None else at.to_json(), notices)


def _decided(answer: dict[str, Any], at: Threshold) -> dict[str, Any]:
    """Give the answer of a threshold, in place of the likeliest class."""
    if "error" in answer:
        return answer
    others = [[label, score] for label, score in answer["top"] if label != at.label]
    score = dict(answer["top"])[at.label]
    label, score = (at.label, score) if score >= at.at or not others else others[0]
    return {**answer, "label": label, "score": score}


def _opened(folder: str | Path, settings: RerunSettings) -> Model:
    from pipeline.models.model import open_model  # torch, which a file of `export` does without

    return open_model(folder, settings).open()


def _exported(file: str | Path, settings: RerunSettings) -> ExportedModel:
    """Open a file of `export`; raises `SettingsError` for an option that it has no use for."""
    idle = [name for name in settings.model_fields_set if name != "max_pixels"]
    if idle:
        raise SettingsError(f"{idle[0]} does not apply to {file}, which ONNX Runtime runs on the CPU; leave it out")
    return ExportedModel(file, max_pixels=settings.max_pixels)


def _line(entry: dict[str, Any], *, decided: bool) -> str:
    name = shown(entry["id"])
    if "error" in entry:
        return f"{name}\tno answer: {entry['error']}"
    if "value" in entry:
        between = entry["interval"]
        sure = f"  ({between[0]:.4g} to {between[1]:.4g})" if between else ""
        return f"{name}\t{entry['value']:.4g}{sure}{_doubt(entry)}"
    ranked = "  ".join(f"{shown(label)} {score:.3f}" for label, score in entry["top"])
    expected = entry.get("set", ())
    undecided = f"  ({' or '.join(map(shown, expected))})" if len(expected) > 1 else ""
    answer = f"{shown(entry['label'])}: " if decided else ""
    return f"{name}\t{answer}{ranked}{undecided}{_doubt(entry)}"


def _doubt(entry: dict[str, Any]) -> str:
    """Mark an answer for an image that is unlike the training pictures."""
    return f"  unknown? (nearest: {shown(entry['nearest'])})" if entry.get("unknown") else ""


def _row(entry: dict[str, Any], classes: Sequence[str] | None, *, unknown: bool) -> dict[str, Any]:
    """Return the row of a table, with the same keys for good and bad images."""
    if classes is None:
        low, high = entry.get("interval") or (None, None)
        answer = {"value": entry.get("value"), "low": low, "high": high}
    else:
        answer = {"label": entry.get("label"), "score": entry.get("score")}
        answer |= probabilities(classes, entry.get("top", []))
    doubt = {name: entry.get(name) for name in ("unknown", "unlikeness", "nearest")} if unknown else {}
    return {"id": entry["id"], **answer, "error": entry.get("error"), **doubt}
