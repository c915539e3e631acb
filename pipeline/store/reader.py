"""Reading feature files: every byte is checked before it is returned.

A `FeatureStore` is one file, or a folder of parts that together hold every row of one list. It holds no HDF5
handle and no position in a file, so that it may cross a fork, and it is pickled as its path, so that it may
be spawned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.errors import SettingsError, StoreDamagedError, StoreError
from pipeline.registry import refuse_unknown, unknown
from pipeline.sources import Target, choose_target
from pipeline.store.header import (
    FORMAT,
    GOOD,
    PENDING,
    STATUS_NAMES,
    Environment,
    Header,
    Part,
    decode_texts,
    layer_column,
    plain_name,
    unescape,
)
from pipeline.store.parts import check_parts, part_paths
from pipeline.store.rows import RowFile, row_numbers

if TYPE_CHECKING:
    import pandas

    from pipeline.store.dataset import FeatureDataset

#: So many files of a folder are open at once: a process may open few, 256 on macOS.
OPEN_FILES = 8


def is_store(path: str | Path) -> bool:
    """Return True where `path` begins as a feature file does, or is a folder of some: it may still be damaged.

    >>> is_store("README.md")
    False
    """
    path = Path(path)
    candidates = sorted(path.glob("*.h5"))[:1] if path.is_dir() else [path]
    if not candidates or not candidates[0].is_file():
        return False
    with candidates[0].open("rb") as file:
        return file.read(len(FORMAT)) == FORMAT.encode()


class FeatureStore:
    """The rows of a feature file, or of a folder of parts, in the order of their ids.

    >>> with FeatureStore.open("artifacts/photos.h5") as store:  # doctest: +SKIP
    ...     X, y = store.arrays(split="train")
    """

    def __init__(self, path: Path, parts: list[tuple[Path, Header]]) -> None:
        self.path = path
        self._parts = parts
        self._header = parts[0][1]
        self._starts = np.cumsum([0, *(header.rows for _, header in parts)])
        self._open_files: dict[int, RowFile] = {}

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a finished feature file, or a folder that holds all parts of one.

        Raises `StoreError` where it is missing or unfinished, or where parts are missing, overlap or do not
        belong together, and `StoreDamagedError` where bytes are not those that were written, or not of this
        format at all.
        """
        path = Path(path)
        if not path.exists():
            raise StoreError(_describe_missing(path))
        return cls._open(path, part_paths(path) if path.is_dir() else None)

    @classmethod
    def open_parts(cls, paths: list[Path]) -> Self:
        """Open files that together are one store, or the folder that holds them. Raises as `open` does."""
        if len(paths) == 1 and paths[0].is_dir():
            return cls.open(paths[0])
        return cls._open(paths[0].parent, paths)

    @classmethod
    def _open(cls, path: Path, part_files: list[Path] | None) -> Self:
        opened: dict[Path, RowFile] = {}
        try:
            parts = []
            for file_path in part_files or [path]:
                opened[file_path] = RowFile.open(file_path)
                parts.append((file_path, opened[file_path].header))
                if len(opened) > OPEN_FILES:
                    opened.pop(file_path).close()
            store = cls(path, check_parts(path, parts) if part_files else parts)
            store._open_files = {
                number: opened[name] for number, (name, _) in enumerate(store._parts) if name in opened
            }
            store._check_rows()
        except BaseException:
            for file in opened.values():
                file.close()
            raise
        return store

    def _check_rows(self) -> None:
        self._check_statuses()
        whole = self._header.part.model_copy(update={"start": 0, "stop": len(self)})
        if len(self._parts) > 1 and Part.whole(self.ids) != whole:
            raise StoreDamagedError(f"{self.path}: the ids of the parts do not match the digest of the whole list")

    @property
    def parts(self) -> int:
        """Number of its files."""
        return len(self._parts)

    def files(self) -> Iterator[tuple[RowFile, int]]:
        """Yield each file, and the store's index of its first row."""
        for number, start in enumerate(self._starts[:-1].tolist()):
            yield self._file(number), start

    def _check_statuses(self) -> None:
        waiting = np.flatnonzero(self.statuses == PENDING)
        strange = np.flatnonzero(self.statuses >= len(STATUS_NAMES))
        if len(waiting):
            raise StoreDamagedError(
                f"{self.path}: {len(waiting)} rows are not computed yet; run extract again to finish it"
            )
        if len(strange):
            raise StoreDamagedError(
                f"{self.path}: row {strange[0]} has an invalid status; restore the file from a copy, or extract again"
                " with --force"
            )

    def close(self) -> None:
        """Close the files, each when no other thread reads from it any more. Reading opens them again."""
        self._open_files.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self.path, self._identity)

    @property
    def _identity(self) -> tuple[str, ...]:
        return tuple(header.token for _, header in self._parts)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}: {len(self)} rows of {', '.join(self.layers)})"

    def __len__(self) -> int:
        return int(self._starts[-1])

    # --- the header and the small columns

    @property
    def recipe(self) -> Recipe:
        """The recipe of the features: everything that decides their numbers."""
        return self._header.recipe

    @property
    def environment(self) -> Environment:
        """The versions and the machine that computed them; of the first part, where there are parts."""
        return self._header.environment

    @property
    def base_origin(self) -> tuple[str, int]:
        """Weights and seed that the base was loaded with. Raises `StoreDamagedError` where the file lacks them."""
        weights, seed = self.environment.weights, self.environment.seed
        if weights is None or seed is None or not 0 <= seed < 1 << 63:
            raise StoreDamagedError(f"{self.path} does not say which weights and seed its base has; extract again")
        return weights, seed

    @property
    def header(self) -> Header:
        """The header of the file; of the first part, where there are parts."""
        return self._header

    @property
    def source(self) -> str:
        """The place of the images when they were read."""
        return unescape(self._header.source)

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Shape of one row for each layer."""
        return {plain_name(name): self._header.columns[name].shape[1:] for name in self._header.layers}

    @property
    def bytes(self) -> int:
        """Size of the file, or of all parts."""
        return sum(header.file_size for _, header in self._parts)

    @cached_property
    def ids(self) -> list[str]:
        """The id of every row."""
        return decode_texts(self.column("id"))

    @cached_property
    def splits(self) -> NDArray[np.str_]:
        """``train``, ``val``, ``test`` or the empty string for every row."""
        return np.array(decode_texts(self.column("split")))

    @cached_property
    def statuses(self) -> NDArray[np.uint8]:
        """1 for every row with features; 2 and more for those without."""
        return self.column("status")

    @property
    def reasons(self) -> list[str]:
        """The reason of `BAD_IMAGE` that each row has no features for; the empty string where it has some."""
        return [STATUS_NAMES[status] if status != GOOD else "" for status in self.statuses.tolist()]

    @cached_property
    def sha256(self) -> NDArray[np.uint8]:
        """sha256 of each image file, (N, 32); zeros where there is none."""
        return self.column("source/sha256")

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each image file; -1 where there is none."""
        return self.column("source/size")

    @cached_property
    def mtimes_ns(self) -> NDArray[np.int64]:
        """Time of the last change of each image file, in nanoseconds since 1970; -1 where there is none."""
        return self.column("source/mtime_ns")

    @cached_property
    def targets(self) -> dict[str, Target]:
        """The labels: codes with class names, or numbers."""
        return {
            plain_name(column): Target(
                name=plain_name(column),
                values=self.column(column),
                names=None if classes is None else tuple(map(unescape, classes)),
            )
            for column, classes in self._header.targets.items()
        }

    @cached_property
    def fingerprint(self) -> str:
        """The sha256, in hexadecimal, of recipe, ids, splits, labels, statuses and image contents.

        It names the data that a model learned from, and does not change with the place of the images, the machine, or
        the number of parts.
        """
        digest = hashlib.sha256(self.recipe.canonical().encode())
        for name in self.ids, self.splits.tolist():
            digest.update("\0".join(name).encode("utf-8", "surrogatepass") + b"\0\0")
        for target in self.targets.values():
            digest.update(repr((target.name, target.names)).encode("utf-8", "surrogatepass"))
            digest.update(target.values.tobytes())
        digest.update(self.statuses.tobytes() + self.sha256.tobytes())
        return digest.hexdigest()

    # --- rows

    def select(self, split: str | None = None, target: str | None = None) -> NDArray[np.int64]:
        """Return the indices (n,) of the rows that have features, are of `split`, and whose `target` is known.

        Raises `SettingsError` for a split or a target that the store lacks.
        """
        chosen = self.statuses == GOOD
        if split is not None:
            if split not in self.splits:
                known = sorted(set(self.splits.tolist()) - {""})
                raise SettingsError(unknown("split", split, known, where=self.path))
            chosen = chosen & (self.splits == split)
        if target is not None:
            chosen = chosen & self._target(target).known
        return np.flatnonzero(chosen)

    def features(
        self, layer: str | None = None, rows: NDArray[np.integer[Any]] | NDArray[np.bool_] | None = None
    ) -> NDArray[Any]:
        """Read the features (n, ...) of `rows`, by default of all, in the file's type; NaN in the rows of bad images.

        `rows` are indices, or a mask over all rows; `layer` may be left out where there is only one. Every block that
        is read is checked. Raises `StoreDamagedError` naming the block, `SettingsError` where `rows` are neither,
        `IndexError` where there is no such row.
        """
        column = self._layer_column(layer)
        if rows is None:
            return self.column(column)
        return self._rows(column, row_numbers(rows, len(self)))

    def arrays(
        self, layer: str | None = None, split: str | None = None, target: str | None = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return X (n, ...) and y (n,) of the rows that have features and a known target.

        `layer` and `target` may be left out where there is only one. y are the codes of classes, or numbers.

        >>> X, y = FeatureStore.open("artifacts/photos.h5").arrays(split="train")  # doctest: +SKIP
        >>> X.shape, y.shape  # doctest: +SKIP
        ((244, 512), (244,))
        """
        target = self._only_target() if target is None else target
        rows = self.select(split, target)
        return self.features(layer, rows), self._target(target).values[rows]

    def iter_blocks(
        self, layer: str | None = None, *, rows: int = 4096, split: str | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Yield indices (n,) and features (n, ...) of the rows that have some, at most `rows` at a time.

        Memory stays bounded, however large the store is.
        """
        if not isinstance(rows, int | np.integer) or rows < 1:
            raise SettingsError(f"rows={rows!r}: how many rows a block has, at least one")
        column, chosen = self._layer_column(layer), self.select(split)
        for start in range(0, len(chosen), rows):
            block = chosen[start : start + rows]
            yield block, self._rows(column, block)

    def torch_dataset(
        self, layer: str | None = None, split: str | None = None, target: str | None = None
    ) -> FeatureDataset:
        """Return a PyTorch dataset of (features, target) that reads from the file, in worker processes too."""
        from pipeline.store.dataset import FeatureDataset

        target = self._only_target() if target is None else target
        self._layer_column(layer)
        return FeatureDataset(self, layer, self.select(split, target), self._target(target).values)

    def frame(self, layer: str | None = None) -> pandas.DataFrame:
        """Return a pandas table with a row for each image: split, status, labels and source.

        With `layer` its features follow, flat, a column each. Raises `StoreError` where pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise StoreError("a frame needs pandas: python -m pip install pandas") from None
        columns: dict[str, Any] = {"split": self.splits.astype(object), "status": self.statuses}
        columns["reason"] = self.reasons
        for name, target in self.targets.items():
            columns[name] = (
                target.values
                if target.names is None
                else pandas.Categorical.from_codes(target.values.tolist(), list(target.names))
            )
        columns |= {"size": self.sizes, "mtime_ns": self.mtimes_ns}
        columns["sha256"] = [digest.tobytes().hex() for digest in self.sha256]
        if layer is not None:
            flat = self.features(layer).reshape(len(self), -1)
            columns |= {f"{layer}.{number}": flat[:, number] for number in range(flat.shape[1])}
        return pandas.DataFrame(columns, index=pandas.Index(self.ids, name="id", dtype=object))

    # --- names

    def _layer_column(self, layer: str | None) -> str:
        if layer is None:
            if len(self.layers) > 1:
                raise SettingsError(f"{self.path} has the layers {', '.join(self.layers)}; say which one")
            return self._header.layers[0]
        refuse_unknown("layer", layer, self.layers, where=self.path)
        return layer_column(layer)

    def _only_target(self) -> str:
        if len(self.targets) != 1:
            raise SettingsError(
                f"{self.path} has the targets {', '.join(self.targets)}; say which one"
                if self.targets
                else f"{self.path} has no target; extract again with --labels or from class folders"
            )
        return next(iter(self.targets))

    def _target(self, name: str) -> Target:
        return choose_target(self.targets, name=name, where=str(self.path), error=SettingsError)

    # --- bytes

    def _file(self, number: int) -> RowFile:
        """Open part `number`, and check that it is the file that this store was opened on.

        Any thread may ask, without a lock, which would not survive a fork: a file that is dropped here closes itself
        when the last thread that reads from it is done.
        """
        file = self._open_files.get(number)
        if file is None:
            file = self._open_files.setdefault(number, self._open_part(number))
            for oldest in list(self._open_files)[:-OPEN_FILES]:
                self._open_files.pop(oldest, None)
        return file

    def _open_part(self, number: int) -> RowFile:
        path, header = self._parts[number]
        file = RowFile.open(path)
        if file.header.token != header.token:
            file.close()
            raise StoreError(f"{path} was replaced while it was being read; open the store again")
        return file

    def column(self, name: str) -> NDArray[Any]:
        """Read a whole column of the format, checked: `header` lists them."""
        columns = [file.column(name) for file, _ in self.files()]
        return columns[0] if len(columns) == 1 else np.concatenate(columns)

    def _rows(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        if len(self._parts) == 1:
            return self._file(0).take(name, rows)
        taken = self._header.columns[name].empty(len(rows))
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(owners).tolist():
            which = np.flatnonzero(owners == number)
            taken[which] = self._file(number).take(name, rows[which] - self._starts[number])
        return taken


def _reopen(cls: type[FeatureStore], path: Path, identity: tuple[str, ...]) -> FeatureStore:
    store = cls.open(path)
    if store._identity != identity:
        raise StoreError(f"{path} was replaced since this store was opened; open it again")
    return store


def _describe_missing(path: Path) -> str:
    if path.with_name(path.name + ".partial").exists():
        return f"{path} is not finished: run the same extract command again, and it goes on where it stopped"
    return f"{path} does not exist"
