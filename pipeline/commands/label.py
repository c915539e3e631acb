"""Numbers drawn for the classes of images, as a table that is a source: a target whose best error is known beforehand.

The value of an image is drawn from the normal distribution of its class, again and again while it is below the floor
(so that values do not pile up there, as they would if they were clipped). It depends on the seed, the numbers of the
class and the id of the image alone: what is added to a source changes the value of no other image.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from pipeline import files, plots
from pipeline.commands.results import Result
from pipeline.config import LabelSettings
from pipeline.config.options import LabelOptions
from pipeline.config.signatures import takes
from pipeline.errors import OutputExistsError, SettingsError, SourceError
from pipeline.models.predictions import write_rows
from pipeline.registry import refuse_unknown
from pipeline.sources import FileImage, Manifest, Record, Target, choose_target, read_manifest
from pipeline.text import plural, shown


@dataclass(frozen=True)
class Normal:
    """A normal distribution of `mean` and standard deviation `spread`, without what is below `floor`."""

    mean: float
    spread: float
    floor: float = -math.inf

    @classmethod
    def parse(cls, text: str) -> Normal:
        """Read ``MEAN,SPREAD`` or ``MEAN,SPREAD,FLOOR``; raise `SettingsError`."""
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (2, 3) or not all(map(math.isfinite, numbers)):
            raise SettingsError(f"{shown(text)!r} is no distribution; give MEAN,SPREAD or MEAN,SPREAD,FLOOR")
        if numbers[1] < 0:
            raise SettingsError(f"{shown(text)}: the spread {numbers[1]:g} is negative")
        if len(numbers) == 3 and numbers[2] > numbers[0]:
            raise SettingsError(f"{shown(text)}: the floor {numbers[2]:g} is above the mean {numbers[0]:g}")
        return cls(*numbers)

    def draw(self, generator: np.random.Generator) -> tuple[float, int]:
        """Return a value of six digits that is not below the floor, and how many were drawn before it."""
        redrawn = 0
        while (value := generator.normal(self.mean, self.spread)) < self.floor:
            redrawn += 1  # at most every second time in the mean: the floor is not above the mean
        return max(float(f"{value:.6g}"), self.floor), redrawn


@dataclass(frozen=True)
class Drawn:
    """Counts, mean and spread of the values of a class; `redrawn` is how many were drawn and not taken."""

    rows: int
    redrawn: int
    mean: float
    spread: float


@dataclass
class LabelResult(Result):
    """The table `csv`, the histogram beside it (None where it could not be drawn), and what was drawn by class.

    `unknown` images are of no known class and have no value.
    """

    csv: Path
    picture: Path | None
    column: str
    rows: int
    unknown: int
    classes: dict[str, Drawn]
    notices: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the keys that `--json` promises."""
        return {**super().to_json(), "classes": {name: vars(one) for name, one in self.classes.items()}}

    def summary(self) -> str:
        """Summarise each class in a line."""
        lines = [f"{self.csv}: {shown(self.column)} of {plural(self.rows, 'image')}"]
        for name, one in self.classes.items():
            again = f", {one.redrawn} drawn again" if one.redrawn else ""
            lines.append(f"  {shown(name)}: {one.rows} of mean {one.mean:.4g} and spread {one.spread:.4g}{again}")
        if self.unknown:
            lines.append(f"{plural(self.unknown, 'image')} of no known class left empty")
        lines += [f"note: {notice}" for notice in self.notices]
        return "\n".join([*lines, *([f"histogram: {self.picture}"] if self.picture else [])])


@takes(LabelSettings)
def label(
    source: str | Path, output: str | Path, *, force: bool = False, **options: Unpack[LabelOptions]
) -> LabelResult:
    """Draw a number for each image of `source` by its class, and write the table `output` and its histogram.

    `options` are the fields of `LabelSettings`; `normal` has an entry for each class: ``tiger=100,30,20`` is a mean, a
    standard deviation, and a floor below which no value is. `output` is a CSV whose paths are relative to its folder,
    so it has to lie above the images; ``extract(output, ..., target="value")`` reads it.

    Raises `SettingsError` for a class that is not there, that has no numbers, or whose numbers make no distribution,
    `SourceError` where the images have no classes or are no files below the folder of `output`, and `OutputExistsError`
    where `output` exists and `force` is not given.
    """
    settings = LabelSettings.of(options)
    output = Path(output)
    _refuse_output(output, source, force=force)
    manifest = read_manifest(source, settings)
    target = _classes_of(manifest)
    normals = read_normals(settings.normal, target.names or (), where=shown(source))
    paths = [_path_from(output.parent, record) for record in manifest.records]
    values, redrawn = draw_values(manifest, target, normals, seed=settings.seed)
    files.refuse_unwritable(output)
    write_rows(output, list(_rows(manifest, target, settings.column, paths, values)))
    result = LabelResult(
        csv=output,
        picture=output.with_suffix(".png"),
        column=settings.column,
        rows=int(target.known.sum()),
        unknown=int((~target.known).sum()),
        classes=dict(_described(target, values, redrawn)),
    )
    _draw_histogram(result, target, values)
    return result


def _refuse_output(output: Path, source: str | Path, *, force: bool) -> None:
    files.refuse_nul(output)
    if output.suffix.lower() != ".csv":
        raise SettingsError(f"{shown(output)}: a table of labels is called NAME.csv")
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise OutputExistsError(f"{shown(output)} is the source itself; give another -o")
    for path in (output, output.with_suffix(".png")):
        if path.exists() and not force:
            raise OutputExistsError(f"{shown(path)} exists already; give --force to replace it, or another -o")


def _classes_of(manifest: Manifest) -> Target:
    """Return the classes of a source that has only one target of classes."""
    classes = {name: target for name, target in manifest.targets.items() if target.task == "classes"}
    if not classes:
        raise SourceError(f"{shown(manifest.source)} has no classes to draw numbers for; make a folder for each class")
    return choose_target(classes, where=shown(manifest.source))


def read_normals(given: Sequence[str], classes: Sequence[str], *, where: str) -> dict[str, Normal]:
    """Read ``CLASS=MEAN,SPREAD,FLOOR`` for each of the `classes`; raise `SettingsError`."""
    normals: dict[str, Normal] = {}
    for text in given:
        name, equals, numbers = text.rpartition("=")
        if not equals:
            raise SettingsError(f"normal={shown(text)!r}: give CLASS=MEAN,SPREAD,FLOOR, such as tiger=100,30,20")
        refuse_unknown("class", name, classes, where=where)
        if name in normals:
            raise SettingsError(f"normal names the class {name!r} twice")
        normals[name] = Normal.parse(numbers)
    if missing := [name for name in classes if name not in normals]:
        listed = ", ".join(map(repr, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        which = "class" if len(missing) == 1 else "classes"
        each = "" if len(missing) == 1 else ", and so for each"
        way_out = f"give --normal {shown(missing[0])}=MEAN,SPREAD,FLOOR{each}"
        raise SettingsError(f"no numbers for the {which} {listed}; {way_out}")
    return normals


def draw_values(
    manifest: Manifest, target: Target, normals: Mapping[str, Normal], *, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draw a value for each image (N,), NaN where its class is unknown, and count what was drawn before it (N,)."""
    values, redrawn = np.full(len(manifest), np.nan), np.zeros(len(manifest), np.int64)
    names = target.names or ()
    for row in np.flatnonzero(target.known):
        words = np.frombuffer(hashlib.sha256(manifest.records[row].id.encode()).digest(), np.uint32)
        generator = np.random.default_rng([seed, *words.tolist()])
        values[row], redrawn[row] = normals[names[target.values[row]]].draw(generator)
    return values, redrawn


def _path_from(folder: Path, record: Record) -> str:
    """Return the path of an image relative to the `folder` of the table, as it is written there."""
    if not isinstance(record.image, FileImage):
        raise SourceError(f"{record.image.where} is no file of its own, which a table could name; unpack the source")
    path = os.path.relpath(record.image.path, folder)
    if path.startswith(".." + os.sep):
        raise SourceError(
            f"{record.image.where} is not below {shown(folder)}, where `extract` looks for the images of the table; "
            "give an -o in a folder above them all"
        )
    if path != path.strip() or not path.isprintable():
        raise SourceError(f"{record.image.where}: a table cannot hold such a name; rename the file")
    return path if path[0] not in "'=+-@" else f"./{path}"  # else a spreadsheet would take it for a formula


def _rows(
    manifest: Manifest, target: Target, column: str, paths: Sequence[str], values: NDArray[np.float64]
) -> Iterator[dict[str, Any]]:
    """Yield a line of the table for each image; splits stand there where the source has some."""
    names, has_splits = target.names or (), any(record.split for record in manifest.records)
    if column in (taken := ("image", "split", target.name)):
        raise SettingsError(f"column={column!r} is taken; the table has {', '.join(taken)} already")
    for record, path, code, value in zip(manifest.records, paths, target.values, values.tolist(), strict=True):
        known = code >= 0
        split = {"split": record.split} if has_splits else {}
        yield {"image": path, **split, target.name: names[code] if known else "", column: value if known else ""}


def _described(target: Target, values: NDArray[np.float64], redrawn: NDArray[np.int64]) -> Iterator[tuple[str, Drawn]]:
    for code, name in enumerate(target.names or ()):
        mine = target.values == code
        if mine.any():
            drawn = values[mine]
            yield name, Drawn(len(drawn), int(redrawn[mine].sum()), float(drawn.mean()), float(drawn.std()))


def _draw_histogram(result: LabelResult, target: Target, values: NDArray[np.float64]) -> None:
    """Write the histogram beside the table; where it cannot be drawn, the result says so."""
    by_class = {name: values[target.values == code] for code, name in enumerate(target.names or ())}
    drawing = {"histogram": lambda: plots.histogram(by_class, name=result.column)}
    drawn = plots.render(drawing, names=(result.column, *by_class))
    result.notices += drawn.notices
    plot = drawn.plots.get("histogram")
    if plot is None or result.picture is None:
        result.picture = None
        return
    with files.atomic_write(result.picture) as file:
        file.write(plot.png)
