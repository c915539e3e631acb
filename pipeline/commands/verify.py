"""Verify a feature file and, on request, recompute a sample of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from pipeline.commands.results import Result
from pipeline.config import RerunSettings, SourceSettings
from pipeline.config.options import RerunOptions
from pipeline.config.signatures import takes
from pipeline.errors import BaseError, SourceError, StoreDamagedError
from pipeline.images import decoding
from pipeline.images.loading import BATCH, Loaded
from pipeline.sources import Record, read_manifest, shown
from pipeline.store.header import GOOD, PENDING, Part, decode_texts, plain_name
from pipeline.store.inspection import hdf5_differences
from pipeline.store.parts import part_paths
from pipeline.store.reader import FeatureStore
from pipeline.store.reuse import Origin, pieces
from pipeline.store.rows import RowFile

if TYPE_CHECKING:
    from pipeline.bases import Base
    from pipeline.engines.embedder import Embedded

#: How far a recomputed row may be off, relatively, by the type it is kept in and the arithmetic of the base:
#: batch sizes and engines differ by 1e-5, half precision by its rounding.
TOLERANCE = {"float32": 1e-4, "fp32": 1e-4, "float16": 2e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}
RECIPE_VERSION = 1
SPLITS = ("", "train", "val", "test")


@dataclass
class VerifyResult(Result):
    """One line for each problem, and the largest relative difference of the recomputed rows."""

    problems: list[str] = field(default_factory=list)
    recomputed: int = 0
    largest_difference: float = 0.0

    @property
    def ok(self) -> bool:
        """True where nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the keys that `--json` promises."""
        return {"ok": self.ok, **super().to_json()}

    def summary(self) -> str:
        """Summarise the verdict, then one line a problem."""
        again = f"; {self.recomputed} rows recomputed, off by {self.largest_difference:.1e} at most"
        verdict = "nothing is wrong" if self.ok else f"{len(self.problems)} problems"
        return "\n".join([verdict + (again if self.recomputed else ""), *self.problems])


@takes(RerunSettings)
def verify(
    path: str | Path,
    *,
    source: str | None = None,
    recompute: int = 0,
    seed: int = 13,
    **options: Unpack[RerunOptions],
) -> VerifyResult:
    """Check every block, row, status, id and label of a feature file or a folder of parts, and its HDF5 side.

    With `recompute`, so many rows, chosen by `seed`, are extracted from their images again; a row is off by the
    largest difference of its features over the largest of them, and `TOLERANCE` says how much is a problem. As many
    rows without features are looked at again too: an image that is good today is a problem.

    A file may name what it likes as its source, so only files and folders are read on its word; `source` is the word of
    the caller, and says where the images are now. Nothing is downloaded. `options` are the fields of `RerunSettings`:
    `weights`, `engine`, `device`, `max_pixels`, ...

    Damage is reported, not raised. Raises `StoreError` where there is no file; and where rows are recomputed
    `SourceError`, `BaseError` or `RecipeMismatchError` where source or base are not those of the file any more.
    """
    path, settings = Path(path), RerunSettings.of(options)
    result = VerifyResult()
    for part in part_paths(path) if path.is_dir() else [path]:
        result.problems += [f"{part}: {problem}" for problem in _file_problems(part)]
    if result.ok:
        try:
            with FeatureStore.open(path) as store:
                if recompute:
                    again = Recomputation(store, settings, source=source)
                    again.compare(sample(store.select(), recompute, seed), result)
                    again.look_again(sample(np.flatnonzero(store.statuses > GOOD), recompute, seed), result)
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
        yield from _recipe_problems(file)
        yield from hdf5_differences(file)
        damaged = [line for name in file.header.columns for line in file.damaged_blocks(name)]
        yield from (_without_place(line, path) for line in damaged)
        if not damaged:
            yield from _row_problems(file)
            yield from _label_problems(file)


def _recipe_problems(file: RowFile) -> Iterator[str]:
    """Yield a line for each version in the recipe that this one does not know."""
    recipe = file.header.recipe
    if recipe.version != RECIPE_VERSION:
        yield f"its recipe is of version {recipe.version}, and this version of the package knows {RECIPE_VERSION} alone"
    if recipe.pixels != decoding.POLICY_VERSION:
        yield (
            f"its pixels were read under policy {recipe.pixels}, and this version of the package knows"
            f" {decoding.POLICY_VERSION} alone"
        )


def _without_place(message: str, path: Path) -> str:
    return message.removeprefix(str(path)).lstrip(":, ")


def _row_problems(file: RowFile) -> Iterator[str]:
    """Yield a line for rows that are not final, fail their commit checksum, or are not finite where they should be."""
    origin, header = Origin.finished(file), file.header
    for piece in pieces(header.rows, header.feature_bytes):
        rows = np.arange(piece.start, piece.stop)
        features = origin.features(rows)
        finite = np.logical_and.reduce([np.isfinite(layer).reshape(len(rows), -1).all(axis=1) for layer in features])
        good = origin.status[rows] == GOOD
        yield from _name_rows(rows[origin.status[rows] == PENDING], "is not computed yet")
        yield from _name_rows(rows[~origin.intact(rows, features)], "does not match its commit checksum")
        yield from _name_rows(rows[good & ~finite], "is good, and its features are not finite")
        yield from _name_rows(rows[~good & finite], "is bad, and has features")
    nameless = (origin.status == GOOD) & ~origin.sha256.any(axis=1)
    yield from _name_rows(np.flatnonzero(nameless), "is good, and the content of its image is not known")


def _label_problems(file: RowFile) -> Iterator[str]:
    """Yield a line for invalid ids, splits and classes."""
    header = file.header
    try:
        ids, splits = decode_texts(file.column("id")), decode_texts(file.column("split"))
    except UnicodeDecodeError as error:
        yield f"an id or a split is not UTF-8: {error}"
        return
    yield from (f"the id {name!r} is there {count} times" for name, count in Counter(ids).items() if count > 1)
    yield from _name_rows(np.flatnonzero(~np.isin(splits, SPLITS)), "is of a split other than train, val and test")
    if header.part.total == header.rows and Part.whole(ids) != header.part:
        yield "the ids do not match the digest in the header"
    for name, classes in header.targets.items():
        if classes is not None:
            codes = file.column(name)
            strange = np.flatnonzero((codes < -1) | (codes >= len(classes)))
            yield from _name_rows(strange, f"is of a class of {plain_name(name)} that has no name")


def _name_rows(rows: NDArray[np.int64], problem: str) -> Iterator[str]:
    if len(rows):
        yield f"row {rows[0]}{f' (and {len(rows) - 1} more)' if len(rows) > 1 else ''} {problem}"


# --- images again


def sample(rows: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Choose at most `count` of `rows` (n,), at random, in order."""
    return np.sort(np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False))


def _source_of(store: FeatureStore, given: str | None) -> str:
    """Return the place of the images. Raises `SourceError` where only the file names it and nothing is there."""
    if given is not None:
        return given
    if not Path(store.source).exists():
        raise SourceError(
            f"{store.path} was made from {shown(store.source)}, which is no file or folder here, and what a file names"
            " is not fetched; say where its images are with --source"
        )
    return store.source


class Recomputation:
    """The extraction of a store, repeated for some of its rows."""

    def __init__(self, store: FeatureStore, settings: RerunSettings, *, source: str | None) -> None:
        from pipeline.engines.embedder import Embedder  # which the check of a file does without

        recipe, (weights, seed) = store.recipe, store.base_origin
        self._source = _source_of(store, source)
        self._store = store

        def load() -> Base:
            from pipeline.bases import base_of  # torch, which a graph at hand does without

            try:
                return base_of(recipe, settings.weights or weights, seed=seed)
            except BaseError as error:
                raise BaseError(f"{store.path}: its base cannot be loaded: {error}; give --weights FILE") from error

        # Weights that are named now are compared with those of the file.
        self._embedder = Embedder(load() if settings.weights else load, recipe, settings)
        self._batch_size = settings.batch_or(BATCH)
        self._manifest = read_manifest(self._source, SourceSettings.of(store.environment.source))

    def compare(self, rows: NDArray[np.int64], result: VerifyResult) -> None:
        """Extract `rows` again, and put into `result` how far they are off and what is wrong with their images."""
        store = self._store
        records = self._records(rows)
        for row in sorted(set(rows.tolist()) - {record.index for record in records}):
            result.problems.append(f"{store.ids[row]} is not in {self._source} any more; extract again")
        loaded = self._embedder.load(records, batch_size=self._batch_size)
        same = ([image for image in batch if self._same_content(image, result)] for batch in loaded)
        for batch in self._embedder.compute(same):
            if len(batch):
                self._compare_features(batch, result)

    def look_again(self, rows: NDArray[np.int64], result: VerifyResult) -> None:
        """Decode the images of `rows`, which have no features, and put into `result` those that are good today."""
        store = self._store
        for batch in self._embedder.load(self._records(rows), batch_size=self._batch_size):
            for loaded in batch:
                if loaded.error is None:
                    result.problems.append(
                        f"{store.ids[loaded.index]} in {self._source} is kept as {store.reasons[loaded.index]}"
                        " and is good today; extract again with --rehash"
                    )

    def _records(self, rows: NDArray[np.int64]) -> list[Record]:
        """Return the source's records of `rows`, with the row as their index."""
        records = {record.id: record for record in self._manifest.records}
        ids = [(row, self._store.ids[row]) for row in rows.tolist()]
        return [replace(records[name], index=row) for row, name in ids if name in records]

    def _same_content(self, loaded: Loaded, result: VerifyResult) -> bool:
        where = f"{self._store.ids[loaded.index]} in {self._source}"
        if loaded.sha256 is not None and loaded.sha256 != self._store.sha256[loaded.index].tobytes():
            result.problems.append(f"{where} was changed after it was extracted; extract again with --rehash")
        elif loaded.error is not None:
            result.problems.append(f"{where} is bad now, {loaded.error}; extract again with --rehash")
        else:
            return True
        return False

    def _compare_features(self, batch: Embedded, result: VerifyResult) -> None:
        store, recipe = self._store, self._store.recipe
        rows = np.array(batch.indices)
        tolerance = max(TOLERANCE[recipe.dtype], TOLERANCE[recipe.precision])
        for layer, features in zip(recipe.layers, batch.layers, strict=True):
            off = relative_difference(features, store.features(layer, rows))
            result.largest_difference = max(result.largest_difference, float(off.max()))
            for row, difference in zip(rows[off > tolerance], off[off > tolerance], strict=True):
                result.problems.append(
                    f"{layer} of {store.ids[row]} is off by {difference:.1e}, more than {tolerance:.0e}; extract again"
                    " with --force"
                )
        result.recomputed += len(rows)


def relative_difference(found: NDArray[Any], kept: NDArray[Any]) -> NDArray[np.float64]:
    """Compute for each row (n,) its largest difference over the largest number of the row that is kept."""
    rows = len(kept)
    kept = kept.reshape(rows, -1).astype(np.float64)
    largest = np.maximum(np.abs(kept).max(axis=1), np.finfo(np.float32).tiny)
    return np.asarray(np.abs(found.reshape(rows, -1) - kept).max(axis=1) / largest)
