"""Answer for new images with a saved model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
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
from pipeline.progress import progress as progress_bar
from pipeline.scores import listed_classes, probabilities
from pipeline.sources import from_paths, log_notices
from pipeline.text import shown

if TYPE_CHECKING:
    from pipeline.models.model import Model


@dataclass
class PredictResult(Result):
    """One entry an image, in the order asked: its answer, or the error that it has none for."""

    predictions: list[dict[str, Any]]

    @property
    def all_bad(self) -> bool:
        """True where not one image could be read."""
        return all("error" in entry for entry in self.predictions)

    def summary(self) -> str:
        """Format a line an image."""
        return "\n".join(_line(entry) for entry in self.predictions)


@takes(RerunSettings)
def predict(
    model: str | Path,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    top: int = 5,
    csv: str | Path | None = None,
    progress: bool = False,
    **options: Unpack[RerunOptions],
) -> PredictResult:
    """Run the model folder `model`, or a file of `export`, on an image file, on several, or on all images of a folder.

    Each prediction is a dict: `id` with `label`, `score`, `top` and `set` (classes), `value` and `interval` (numbers),
    or `error`. `options` are those of `load_model`: `weights`, `device`, `engine`, ... Raises `ModelError` where the
    model or its base cannot be loaded.
    """
    if csv is not None:
        refuse_nul(csv)
    settings = RerunSettings.of(options)
    loaded = _exported(model, settings) if Path(model).suffix == SUFFIX else _opened(model, settings)
    manifest = from_paths(images)
    log_notices(manifest)
    entries: list[dict[str, Any]] = []
    with progress_bar(len(manifest.records), "predicting", show=progress) as bar:
        for answers in loaded.answer_batches(manifest.records, top=max(top, listed_classes(loaded.classes or ()))):
            entries += answers
            bar.advance(len(answers))
    if csv is not None:
        write_rows(Path(csv), [_row(entry, loaded.classes) for entry in entries])
    return PredictResult([{**entry, "top": entry["top"][:top]} if "top" in entry else entry for entry in entries])


def _opened(folder: str | Path, settings: RerunSettings) -> Model:
    from pipeline.models.model import open_model  # torch, which a file of `export` does without

    return open_model(folder, settings).open()


def _exported(file: str | Path, settings: RerunSettings) -> ExportedModel:
    """Open a file of `export`; raises `SettingsError` for an option that it has no use for."""
    idle = [name for name in settings.model_fields_set if name != "max_pixels"]
    if idle:
        raise SettingsError(f"{idle[0]} does not apply to {file}, which ONNX Runtime runs on the CPU; leave it out")
    return ExportedModel(file, max_pixels=settings.max_pixels)


def _line(entry: dict[str, Any]) -> str:
    name = shown(entry["id"])
    if "error" in entry:
        return f"{name}\tno answer: {entry['error']}"
    if "value" in entry:
        between = entry["interval"]
        sure = f"  ({between[0]:.4g} to {between[1]:.4g})" if between else ""
        return f"{name}\t{entry['value']:.4g}{sure}"
    ranked = "  ".join(f"{shown(label)} {score:.3f}" for label, score in entry["top"])
    expected = entry.get("set", ())
    undecided = f"  ({' or '.join(map(shown, expected))})" if len(expected) > 1 else ""
    return f"{name}\t{ranked}{undecided}"


def _row(entry: dict[str, Any], classes: Sequence[str] | None) -> dict[str, Any]:
    """Return the row of a table, with the same keys for good and bad images."""
    if classes is None:
        low, high = entry.get("interval") or (None, None)
        answer = {"value": entry.get("value"), "low": low, "high": high}
    else:
        answer = {"label": entry.get("label"), "score": entry.get("score")}
        answer |= probabilities(classes, entry.get("top", []))
    return {"id": entry["id"], **answer, "error": entry.get("error")}
