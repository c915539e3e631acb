"""Models beside each other on the same rows: a table, differences with paired intervals, and a picture.

    folders -> rows that each was scored on -> the same rows, by id or by content -> measures, and differences by pairs

A folder is a model, whose own held-out rows are taken, or what ``evaluate -o`` wrote. Nothing is computed again.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from pipeline import files, metrics, plots
from pipeline.commands.results import Result
from pipeline.config import CompareSettings
from pipeline.config.options import CompareOptions
from pipeline.config.signatures import takes
from pipeline.errors import ModelError, OutputExistsError, SettingsError, StoreError
from pipeline.models.predictions import plain_text
from pipeline.splits import group_codes
from pipeline.store import FeatureStore, is_store
from pipeline.text import plural, shown

#: What can be had from an evaluation, which has no parts.
ALL = "all"
#: The measures of a model in JSON, as far as it has them; those of `table` come first.
MEASURES = ("accuracy", "accuracy_interval", "macro_f1", "log_loss", "ece")
ERRORS = ("mae", "mae_interval", "rmse", "rmse_interval", "r2", "r2_interval")


@dataclass(frozen=True, eq=False)
class Answered:
    """The rows that a model was scored on: `ids` (n,), truth and answers (n,), as names of classes or as numbers.

    `recorded` are the measures of its own metrics.json on these rows, `training` those on the rows that trained it.
    `contents` maps an id to the sha256 of the image, where the feature file of the training is still there.
    """

    model: Path
    part: str
    ids: list[str]
    truth: NDArray[Any]
    answers: NDArray[Any]
    recorded: dict[str, Any]
    training: dict[str, Any]
    seconds: float | None
    contents: dict[str, bytes]

    @property
    def is_class(self) -> bool:
        """True where the answers are classes."""
        return bool(self.truth.dtype == object)

    @property
    def quality(self) -> NDArray[np.float64]:
        """One where a row (n,) is right, else zero; of numbers, the absolute error."""
        if self.is_class:
            return np.asarray(self.truth == self.answers, dtype=np.float64)
        return np.abs(np.asarray(self.answers - self.truth, dtype=np.float64))

    def take(self, order: NDArray[np.int64]) -> Answered:
        """Return the rows in another order."""
        ids = [self.ids[row] for row in order]
        return replace(self, ids=ids, truth=self.truth[order], answers=self.answers[order])


@dataclass(frozen=True)
class Entry(Result):
    """A line of the table: `metrics` on the compared rows and `training`, on those that trained the model.

    `seconds` of its training, and `size` in bytes on the disk, are None where they are not known.
    """

    model: Path
    part: str
    rows: int
    metrics: dict[str, Any]
    training: dict[str, Any]
    seconds: float | None
    size: int

    def summary(self) -> str:
        """Format the cells of a line."""
        return "  ".join(self.cells())

    def cells(self) -> list[str]:
        """Format measure, loss, the same of the training rows, seconds and size."""
        names, found = ("accuracy", "log_loss"), (self.metrics, self.training)
        if "mae" in self.metrics:
            names = ("mae", "rmse")
        measured = [_number(one.get(name)) for one in found for name in names]
        low, high = self.metrics.get(f"{names[0]}_interval") or (None, None)
        measured[0] += "" if low is None else f" ({_number(low)} to {_number(high)})"
        return [*measured, "-" if self.seconds is None else f"{self.seconds:.1f} s", f"{self.size / 1e6:.1f} MB"]


@dataclass(frozen=True)
class Difference(Result):
    """Difference in the measure, of `a` less that of `b`, with its paired 95 % interval.

    `p` is of McNemar's exact test, None where the answers are numbers; `only_a` and `only_b` are right where the other
    is wrong.
    """

    a: Path
    b: Path
    difference: float
    low: float
    high: float
    p: float | None
    only_a: int | None = None
    only_b: int | None = None

    def summary(self) -> str:
        """Format a line."""
        said = f"{shown(self.a)} - {shown(self.b)}: {self.difference:+.4g} ({self.low:+.4g} to {self.high:+.4g})"
        if self.p is None:
            return said
        return f"{said}  p {self.p:.3g} ({self.only_a} right by the first alone, {self.only_b} by the second)"


@dataclass
class CompareResult(Result):
    """The models in the order given, and the differences of all pairs of them in accuracy, or in MAE."""

    models: list[Entry]
    differences: list[Difference]
    measure: Literal["accuracy", "mae"]
    rows: int
    groups: int
    notices: list[str] = field(default_factory=list)
    output: Path | None = None

    def summary(self) -> str:
        """Format the table and the differences."""
        names = ("accuracy", "log loss") if self.measure == "accuracy" else ("MAE", "RMSE")
        head = ["model", f"{names[0]} (95 %)", names[1], *(f"training {name}" for name in names), "trained in", "size"]
        part = metrics.PARTS.get(self.models[0].part, "all rows")
        lines = [f"{plural(self.rows, 'row')} ({part}), the same for all models"]
        lines += _aligned([head, *([shown(one.model), *one.cells()] for one in self.models)])
        if self.differences:
            test = "; p: McNemar's exact test, of each pair alone" if self.measure == "accuracy" else ""
            lines += [f"differences in {names[0]} (paired 95 %{test}):", *(d.summary() for d in self.differences)]
        lines += [f"note: {notice}" for notice in self.notices]
        return "\n".join(lines if self.output is None else [*lines, f"picture: {self.output}"])


@takes(CompareSettings)
def compare(
    models: str | Path | Sequence[str | Path],
    *,
    output: str | Path | None = None,
    force: bool = False,
    **options: Unpack[CompareOptions],
) -> CompareResult:
    """Compare model folders, or folders of ``evaluate -o``, on the rows that all of them were scored on.

    Rows are the same where their ids are, or else the contents of their images, as far as the feature files are still
    there that the models were trained on. `output` is a PNG of the scores with their intervals. `options` are the
    fields of `CompareSettings`.

    Raises `ModelError` where a folder has no scored rows, or where the rows, their labels or their kind (classes or
    numbers) differ, with the folder that does not fit; `OutputExistsError` where `output` exists and `force` is not
    given.
    """
    settings = CompareSettings.of(options)
    given = [models] if isinstance(models, str | Path) else list(models)
    output = None if output is None else Path(output)
    _refuse(given, output, force=force)
    found = [read_answers(Path(folder), settings.split) for folder in given]
    # Where a source has no val split, a head is scored on test as val, and a network, which needs val, on both.
    differ = len({frozenset(one.ids) for one in found}) > 1
    if settings.split == "auto" and differ and len({one.part for one in found} - {ALL}) > 1:
        found = [read_answers(Path(folder), "val") for folder in given]
    first, *others = found
    found = [first, *(aligned(other, first) for other in others)]
    groups = groups_of(found)
    result = CompareResult(
        models=[describe(one, groups) for one in found],
        differences=[difference(a, b, groups, seed=settings.seed) for a, b in combinations(found, 2)],
        measure="accuracy" if first.is_class else "mae",
        rows=len(first.ids),
        groups=len(np.unique(groups)),
        output=output,
    )
    _draw(result)
    return result


def _refuse(models: Sequence[str | Path], output: Path | None, *, force: bool) -> None:
    for path in models:
        files.refuse_nul(path)
    if not models:
        raise SettingsError("no model is named; give two model folders or more")
    if len({Path(model).absolute() for model in models}) < len(models):
        raise SettingsError("a model is named twice; give different ones")
    if output is None:
        return
    files.refuse_nul(output)
    if output.suffix.lower() != ".png":
        raise SettingsError(f"{shown(output)}: the picture is called NAME.png")
    if output.exists() and not force:
        raise OutputExistsError(f"{shown(output)} exists already; give --force to replace it, or another -o")


# --- what is read


def read_answers(folder: Path, split: str) -> Answered:
    """Read predictions.csv and metrics.json of a folder; `split` is val, test, or auto: test, else val."""
    measures, rows = _read_metrics(folder), _read_rows(folder)
    parts = {row.get("split", ALL) for row in rows}
    part = ALL if ALL in parts else split if split != "auto" else "test" if "test" in parts else "val"
    rows = [row for row in rows if row.get("split", ALL) == part]
    if not rows:
        raise ModelError(
            f"{shown(folder)} has no rows of {part} that it was scored on; score it: pipeline evaluate MODEL SOURCE "
            "-o DIR, and compare DIR"
        )
    is_class = "label" in rows[0]
    try:
        ids = [plain_text(row["id"]) for row in rows]
        truth, answers = (_column(rows, name, is_class=is_class) for name in ("true", "label" if is_class else "value"))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{shown(folder)}/predictions.csv is damaged: {error}; train or evaluate again") from None
    seconds = measures.get("seconds")
    return Answered(
        model=folder,
        part=part,
        ids=ids,
        truth=truth,
        answers=answers,
        recorded=measures if part == ALL else measures.get(part, {}),
        training={} if part == ALL else measures.get("train", {}),
        seconds=seconds if isinstance(seconds, int | float) else None,
        contents=_contents(folder),
    )


def _column(rows: Sequence[dict[str, str]], name: str, *, is_class: bool) -> NDArray[Any]:
    if is_class:
        return np.array([plain_text(row[name]) for row in rows], dtype=object)
    return np.array([float(row[name]) for row in rows])


def _read_rows(folder: Path) -> list[dict[str, str]]:
    path = folder / "predictions.csv"
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise ModelError(
            f"{shown(path)} cannot be read: {error.strerror}; give a model folder, or one of pipeline evaluate -o"
        ) from None
    except csv.Error as error:
        raise ModelError(f"{shown(path)} is no table: {error}; train or evaluate again") from None


def _read_metrics(folder: Path) -> dict[str, Any]:
    """Read metrics.json; the table does without, but for what the rows do not tell."""
    try:
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _contents(folder: Path) -> dict[str, bytes]:
    """Map ids to contents by the feature file that the model was trained on; empty where that is another one now."""
    try:
        data = json.loads((folder / "model.json").read_text(encoding="utf-8"))["data"]
        if not is_store(data["source"]):
            return {}
        with FeatureStore.open(data["source"]) as store:
            if store.fingerprint != data["fingerprint"]:
                return {}
            return dict(zip(store.ids, map(bytes, store.sha256), strict=True))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, StoreError):
        return {}


# --- the same rows


def aligned(other: Answered, first: Answered) -> Answered:
    """Return the rows of `other` in the order of those of `first`; raise `ModelError` where they are not the same."""
    if other.is_class != first.is_class:
        kinds = ("classes", "numbers") if other.is_class else ("numbers", "classes")
        raise ModelError(f"{shown(other.model)} predicts {kinds[0]} and {shown(first.model)} {kinds[1]}")
    known, asked = _keys(other, first)
    places = {key: row for row, key in enumerate(known)}
    if len(places) < len(known) or places.keys() != set(asked) or len(asked) != len(known):
        _refuse_other_rows(other, first, set(known), set(asked))
    moved = other.take(np.array([places[key] for key in asked], dtype=np.int64))
    different = np.flatnonzero(moved.truth != first.truth)
    if len(different):
        row = different[0]
        raise ModelError(
            f"{shown(other.model)} was scored on other labels than {shown(first.model)} in "
            f"{plural(len(different), 'row')}: {shown(first.ids[row])} is {shown(moved.truth[row])} there and "
            f"{shown(first.truth[row])} here; evaluate both on the same labels"
        )
    return moved


def _keys(other: Answered, first: Answered) -> tuple[list[Any], list[Any]]:
    """Return what names the rows of both: ids, or contents with a number for each copy, where ids differ."""
    if set(other.ids) == set(first.ids):
        return list(other.ids), list(first.ids)
    if not all(set(one.ids) <= one.contents.keys() for one in (other, first)):
        return list(other.ids), list(first.ids)
    return list(_numbered_contents(other)), list(_numbered_contents(first))


def _numbered_contents(one: Answered) -> Iterator[tuple[bytes, int]]:
    counts = Counter[bytes]()
    for content in (one.contents[id] for id in one.ids):
        counts[content] += 1
        yield content, counts[content]


def _refuse_other_rows(other: Answered, first: Answered, known: set[Any], asked: set[Any]) -> None:
    stranger = next((id for id in other.ids if id not in set(first.ids)), None)
    example = "" if stranger is None else f"; the first that is not there too: {shown(stranger)}"
    raise ModelError(
        f"{shown(other.model)} was scored on other rows than {shown(first.model)}: {len(other.ids)} "
        f"({other.part}) and {len(first.ids)} ({first.part}), {len(known & asked)} of them the same{example}; score "
        "all models on the same images with pipeline evaluate MODEL SOURCE -o DIR, and compare those folders"
    )


def groups_of(found: Sequence[Answered]) -> NDArray[np.int64]:
    """Return a code for each row (n,), the same for copies of an image, where the contents are known."""
    for one in found:
        if one.contents and set(one.ids) <= one.contents.keys():
            digests = np.frombuffer(b"".join(one.contents[id] for id in one.ids), np.uint8)
            return group_codes(digests.reshape(len(one.ids), -1))
    return np.arange(len(found[0].ids))


# --- what is measured


def describe(one: Answered, groups: NDArray[np.int64]) -> Entry:
    """Return the line of the table for a model: what the rows tell, beside what was recorded of them."""
    quality = one.quality
    if one.is_class:
        interval = metrics.accuracy_interval(quality, groups)
        measured = {"accuracy": float(quality.mean()), "accuracy_interval": list(interval)}
    else:
        measured = {"mae": float(quality.mean()), "rmse": float(np.sqrt(np.square(quality).mean()))}
    names = MEASURES if one.is_class else ERRORS
    recorded = {name: one.recorded[name] for name in names if name in one.recorded}
    training = {name: one.training[name] for name in names if name in one.training}
    size = sum(path.stat().st_size for path in one.model.rglob("*") if path.is_file())
    return Entry(one.model, one.part, len(one.ids), {**recorded, **measured}, training, one.seconds, size)


def difference(a: Answered, b: Answered, groups: NDArray[np.int64], *, seed: int) -> Difference:
    """Return the difference of two models on the same rows: of accuracies, or of mean absolute errors."""
    gaps = a.quality - b.quality
    low, high = metrics.paired_interval(gaps, groups, seed=seed)
    if not a.is_class:
        return Difference(a.model, b.model, float(gaps.mean()), low, high, None)
    _, once = np.unique(groups, return_index=True)  # copies of an image are one observation
    only_a, only_b = int((gaps[once] > 0).sum()), int((gaps[once] < 0).sum())
    p = metrics.mcnemar(only_a, only_b)
    return Difference(a.model, b.model, float(gaps.mean()), low, high, p, only_a, only_b)


def _draw(result: CompareResult) -> None:
    """Write the picture; where it cannot be drawn, the result says so."""
    if result.output is None:
        return
    name, scores = result.measure, [one.metrics[result.measure] for one in result.models]
    between = [one.metrics.get(f"{name}_interval") for one in result.models]
    models = [str(one.model) for one in result.models]
    label = f"{'accuracy' if name == 'accuracy' else 'mean absolute error'}, {plural(result.rows, 'row')}"
    drawn = plots.render({"compare": lambda: plots.bars(models, scores, between, measure=label)}, names=models)
    result.notices += drawn.notices
    if "compare" not in drawn.plots:
        result.output = None
        return
    with files.atomic_write(result.output) as file:
        file.write(drawn.plots["compare"].png)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
