"""Describe a feature file, a folder of parts or a model folder: all that stands in their headers and columns."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.commands.results import Result
from pipeline.files import heal
from pipeline.models.model import load_model
from pipeline.store import FeatureStore
from pipeline.store.header import STATUS_NAMES
from pipeline.text import shown


@dataclass
class InfoResult(Result):
    """The description as one dictionary."""

    content: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the dictionary itself."""
        return self.content

    def summary(self) -> str:
        """Format one key a line; nested keys follow, indented."""
        return "\n".join(_lines(self.content, ""))


def info(path: str | Path) -> InfoResult:
    """Describe a feature file, a folder of parts or a model folder.

    Raises `StoreError` or `ModelError` where `path` is none of these.
    """
    path = Path(path)
    heal(path)
    if (path / "model.json").exists():
        return InfoResult({"model": str(path), **load_model(path).record.model_dump(mode="json")})
    return InfoResult(describe_store(path))


def _lines(content: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in content.items():
        if key == "ranges":  # hundreds of pairs of numbers, for machines; --json has them
            lines.append(f"{indent}ranges: {len(value)}")
        elif isinstance(value, dict):
            lines += [f"{indent}{shown(key) or '(none)'}:", *_lines(value, indent + "  ")]
        else:
            text = shown(value) if isinstance(value, str) else json.dumps(value)
            lines.append(f"{indent}{shown(key) or '(none)'}: {text}")
    return lines


def describe_store(path: str | Path) -> dict[str, Any]:
    """Describe a feature file as JSON values: recipe, source, environment, counts, layers and targets.

    Raises as `FeatureStore.open` does.
    """
    with FeatureStore.open(path) as store:
        statuses = Counter(STATUS_NAMES[status] for status in store.statuses.tolist())
        return {
            "store": str(store.path),
            "format": store.header.format,
            "format_version": store.header.format_version,
            "created": store.header.created,
            "source": store.source,
            "recipe": store.recipe.model_dump(mode="json"),
            "recipe_sha256": store.recipe.fingerprint(),
            "environment": store.environment.model_dump(mode="json"),
            "fingerprint": store.fingerprint,
            "rows": len(store),
            "good": statuses.pop("good", 0),
            "bad": dict(statuses),
            "layers": {name: list(shape) for name, shape in store.layers.items()},
            "bytes": store.bytes,
            "parts": store.parts,
            "image_bytes": int(store.sizes[store.sizes > 0].sum()),
            "distinct_images": len({digest.tobytes() for digest in store.sha256} - {bytes(32)}),
            "splits": _count(store.splits.tolist()),
            "targets": {name: _describe_target(store, name) for name in store.targets},
        }


def _count(names: list[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _describe_target(store: FeatureStore, name: str) -> dict[str, Any]:
    """Count the images of each class in each split, or give least, mean and most of numbers; of all labelled rows."""
    target = store.targets[name]
    known = target.values[target.known]
    described: dict[str, Any] = {"task": target.task, "known": len(known)}
    if target.task == "numbers":
        if len(known):
            described |= {
                "least": known.min().item(),
                "mean": known.mean().item(),
                "most": known.max().item(),
            }
        return described
    described["counts"] = {
        split: {
            label: int(((target.values == code) & (store.splits == split)).sum())
            for code, label in enumerate(target.names or ())
        }
        for split in sorted(set(store.splits.tolist()))
    }
    return described
