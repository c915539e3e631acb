"""Is a feature file what was written, and what does it hold? `verify` doubts everything, `info` tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StoreDamagedError
from pipeline.store.header import GOOD, PENDING, Part, decode_texts, plain_name
from pipeline.store.layout import hdf5_differences
from pipeline.store.origins import Origin, pieces
from pipeline.store.parts import part_paths
from pipeline.store.reader import FeatureStore
from pipeline.store.rows import RowFile

SPLITS = ("", "train", "val", "test")


@dataclass
class VerifyResult:
    """What `verify` found: one line for each problem, and how far recomputed rows were off, relatively."""

    problems: list[str] = field(default_factory=list)
    recomputed: int = 0
    largest_difference: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """The keys that `--json` promises."""
        return {
            "ok": self.ok,
            "problems": self.problems,
            "recomputed": self.recomputed,
            "largest_difference": self.largest_difference,
        }

    def summary(self) -> str:
        """The verdict, then one line a problem."""
        again = f"; {self.recomputed} rows recomputed, off by {self.largest_difference:.1e} at most"
        verdict = "nothing is wrong" if self.ok else f"{len(self.problems)} problems"
        return "\n".join([verdict + (again if self.recomputed else ""), *self.problems])


def verify(path: str | Path) -> VerifyResult:
    """Check every block, row, status, id and label of a feature file or a folder of parts, and its HDF5 side.

    Damage is reported, not raised. Raises `StoreError` where there is no file.
    """
    path = Path(path)
    result = VerifyResult()
    for part in part_paths(path) if path.is_dir() else [path]:
        result.problems += [f"{part}: {problem}" for problem in _file_problems(part)]
    if result.ok:
        try:
            FeatureStore.open(path).close()
        except StoreDamagedError as error:
            result.problems.append(str(error))
    return result


def _file_problems(path: Path) -> Iterator[str]:
    if not path.exists():
        FeatureStore.open(path)
    try:
        file = RowFile.open(path)
    except StoreDamagedError as error:
        yield _without_place(str(error), path)
        return
    with file:
        yield from hdf5_differences(path, file.header)
        damaged = [line for name in file.header.columns for line in file.damaged_blocks(name)]
        yield from (_without_place(line, path) for line in damaged)
        if not damaged:
            yield from _row_problems(file)
            yield from _label_problems(file)


def _without_place(message: str, path: Path) -> str:
    return message.removeprefix(str(path)).lstrip(":, ")


def _row_problems(file: RowFile) -> Iterator[str]:
    """Rows that are not final, not what was committed, or not finite where they should be."""
    origin, header = Origin.finished(file), file.header
    for piece in pieces(header.rows, header.feature_bytes):
        rows = np.arange(piece.start, piece.stop)
        features = origin.features(rows)
        finite = np.logical_and.reduce([np.isfinite(layer).reshape(len(rows), -1).all(axis=1) for layer in features])
        good = origin.status[rows] == GOOD
        yield from _name_rows(rows[origin.status[rows] == PENDING], "not computed yet")
        yield from _name_rows(rows[~origin.intact(rows, features)], "not what was committed")
        yield from _name_rows(rows[good & ~finite], "good, and its features are not finite")
        yield from _name_rows(rows[~good & finite], "bad, and has features")
    nameless = (origin.status == GOOD) & ~origin.sha256.any(axis=1)
    yield from _name_rows(np.flatnonzero(nameless), "good, and the content of its image is not known")


def _label_problems(file: RowFile) -> Iterator[str]:
    """Ids, splits and classes that no writer gives."""
    header = file.header
    try:
        ids, splits = decode_texts(file.column("id")), decode_texts(file.column("split"))
    except UnicodeDecodeError as error:
        yield f"an id or a split is not UTF-8: {error}"
        return
    yield from (f"the id {name!r} is there {count} times" for name, count in Counter(ids).items() if count > 1)
    yield from _name_rows(np.flatnonzero(~np.isin(splits, SPLITS)), "of a split other than train, val and test")
    if header.part.total == header.rows and Part.whole(ids) != header.part:
        yield "the ids are not those of the list that the header names"
    for name, classes in header.targets.items():
        if classes is not None:
            codes = file.column(name)
            strange = np.flatnonzero((codes < -1) | (codes >= len(classes)))
            yield from _name_rows(strange, f"of a class of {plain_name(name)} that has no name")


def _name_rows(rows: NDArray[np.int64], what: str) -> Iterator[str]:
    if len(rows):
        yield f"row {rows[0]}{f' and {len(rows) - 1} more' if len(rows) > 1 else ''} is {what}"
