"""README.md of a model folder: its card, for people, with the metadata block that model hubs read.

The block is that of https://huggingface.co/docs/hub/model-cards; its values are written as JSON, which YAML reads.
"""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

from pipeline import metrics
from pipeline.text import plural, shown

if TYPE_CHECKING:
    from pipeline.models.folder import ModelRecord

FILE = "README.md"
#: Measures that go into the block, by their names there; of errors and accuracies alike.
_MEASURES = {"accuracy": "accuracy", "f1": "macro_f1", "roc_auc": "roc_auc", "mae": "mae", "rmse": "rmse", "r2": "r2"}
_MOST_CLASSES = 50


def card(record: ModelRecord) -> str:
    """Return the text of the card: what the model tells, how well, what it was made of, and how it is asked."""
    count = len(record.classes or ())
    tells = f"tells {plural(count, 'class')} of images apart" if count else "answers an image with a number"
    bases = " and ".join("fine-tuned " * base.fine_tuned + base.name for base, _ in record.bases)
    trained = f"{record.head['name']} head on {bases}"
    sections = [
        f"# {shown(record.target)}: {trained}",
        f"This model {tells}. It was trained on {plural(record.data.rows, 'image')} of:",
        _quoted(shown(record.data.source)),
        "## Asking it",
        _quoted("pipeline predict FOLDER photo.jpg"),
        "or, in Python:",
        _quoted('from pipeline import load_model\n\nload_model("FOLDER").predict(["photo.jpg"])'),
        "## How well it does",
        *_judged(record),
        "## What it is made of",
        _quoted("\n".join(f"{name:<10}{value}" for name, value in _parts(record))),
    ]
    if record.classes:
        sections[3:3] = ["## Classes", _quoted(_listed(record.classes))]
    return "\n\n".join([_block(record), *sections]) + "\n"


def _judged(record: ModelRecord) -> list[str]:
    """Return a paragraph for each part of the rows, and what has to be borne in mind."""
    found = {title: record.metrics[part] for part, title in metrics.PARTS.items() if record.metrics.get(part)}
    cautions = [line for title, one in found.items() for line in metrics.cautions(one, title)]
    tables = [_quoted(f"{title}: {metrics.table(one)}") for title, one in found.items()]
    return [*tables, *(["Bear in mind:", _quoted("\n".join(cautions))] if cautions else [])]


def _parts(record: ModelRecord) -> list[tuple[str, str]]:
    parts = []
    for base, recipe in record.bases:
        height, width = recipe.transform["crop"]
        parts += [
            ("base", f"{base.name}, weights {shown(base.weights)}, sha256 of its tensors {recipe.weights}"),
            ("features", ", ".join(map(shown, recipe.layers))),
            ("input", f"{height} x {width} pixels, {recipe.precision}"),
        ]
    return [
        *parts,
        ("head", ", ".join(f"{name} {shown(value)}" for name, value in record.chosen.items())),
        ("made", f"{record.created} with " + ", ".join(f"{name} {one}" for name, one in record.versions.items())),
    ]


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - _MOST_CLASSES
    return "\n".join([*map(shown, names[:_MOST_CLASSES]), *([f"and {more:,} more, in model.json"] if more > 0 else [])])


def _quoted(text: str) -> str:
    """Return a block that Markdown shows as it is, whatever is in it."""
    return textwrap.indent(text, "    ")


def _block(record: ModelRecord) -> str:
    """Return the metadata: what finds the model in a hub, and the measures of the rows that chose nothing, if any."""
    fields: dict[str, Any] = {"library_name": "cached-feature-pipeline", "tags": ["transfer-learning"]}
    if record.classes is not None:
        fields["pipeline_tag"] = "image-classification"
    part = next((part for part in ("test", "val", "cv") if record.metrics.get(part)), None)
    if part is not None:
        fields["model-index"] = [{"name": shown(record.target), "results": [_result(record, part)]}]
    lines = (f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items())
    return "\n".join(["---", *lines, "---"])


def _result(record: ModelRecord, part: str) -> dict[str, Any]:
    found = record.metrics[part]
    measures = {name: found[key] for name, key in _MEASURES.items() if found.get(key) is not None}
    source = shown(record.data.source)
    return {
        "task": {"type": "image-classification" if record.classes is not None else "image-regression"},
        "dataset": {"type": "images", "name": source, "split": part},
        "metrics": [{"type": name, "value": value, "name": metrics.PARTS[part]} for name, value in measures.items()],
    }
