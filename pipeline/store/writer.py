"""Writing a feature file so that no crash, full disk or second writer can make it say something wrong.

    earlier files -> plan of the new one -> space reserved -> rows that are known copied -> `NAME.partial`
    -> rows written to their places -> data synced, then their status -> all final: checksums, synced, named
    `NAME`

The structure is on the disk before the first row and never changes. A row whose status says that it is final
has its features, its source and a checksum over both on the disk already, in that order, so that it is right
after a kill, and after a loss of power. A final row is never written again: where one has to go, a new file
is made beside.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline import files
from pipeline.config import Recipe
from pipeline.errors import BAD_IMAGE, OutputExistsError, SettingsError, StoreDamagedError, StoreError
from pipeline.sources import Manifest
from pipeline.store.header import (
    FIRST_BAD,
    GOOD,
    PENDING,
    STATUS_NAMES,
    Environment,
    Header,
    Part,
    decode_texts,
    layer_column,
    plain_name,
)
from pipeline.store.layout import LayerSpec, lay_out
from pipeline.store.plan import Request
from pipeline.store.reuse import UNKNOWN, Earlier, Origin, Seen, Source, Start, origins_of, partial_path, pieces
from pipeline.store.rows import RowFile, as_bytes, row_checksums, row_numbers, write_rows

#: A kill loses at most the rows of so many seconds or bytes.
COMMIT_SECONDS, COMMIT_BYTES = 2.0, 1 << 26
#: Columns that are written row by row; all others are known from the start.
_LATE = ("source/size", "source/mtime_ns", "source/sha256", "commit", "status")


class StoreWriter:
    """Writer of the feature file of one manifest; it keeps every row that an earlier file already has.

    >>> environment = Environment(weights="DEFAULT", seed=13)
    >>> asked = {"manifest": manifest, "layers": layers, "recipe": recipe}  # doctest: +SKIP
    >>> with StoreWriter.open(path, environment=environment, **asked) as writer:  # doctest: +SKIP
    ...     for index in writer.pending:
    ...         writer.write([index], {"avgpool": compute(index)}, [source(index)])
    ...     writer.publish()
    """

    def __init__(self, path: Path, own: Origin, origins: Sequence[Origin], *, settled: bool) -> None:
        self.path = path
        self._own = own
        self._origins = origins
        self._settled = settled  # `path` already holds all that is asked: nothing is written
        self._staged: list[NDArray[np.int64]] = []  # written, and not yet committed
        self._staged_bytes = 0
        self._last_commit = time.monotonic()
        self._broken = False
        self._contents: dict[bytes, tuple[Origin, int]] | None = None
        self._contents_lock = threading.Lock()
        self._found_bad: dict[bytes, int] = {}  # contents that this very run could not use, and a row of each

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        path: str | Path,
        *,
        manifest: Manifest,
        layers: Sequence[LayerSpec],
        recipe: Recipe,
        environment: Environment,
        force: bool = False,
        part: Part | None = None,
        rehash: bool = False,
        beside: Sequence[Path] = (),
    ) -> Iterator[Self]:
        """Lock `path`, find out which rows are known, and reserve the space for all of them.

        `force` starts anew whatever lies at `path`, and goes on where a run with `force` was stopped; `rehash`
        believes no size and time of a file, so that every image is read again, though only new content is computed.
        `part` says which rows of a longer list these are, `beside` names other files whose rows may be kept too.
        Raises `StoreLockedError`, `RecipeMismatchError`, `StoreDamagedError`, `OutputExistsError` where most rows of
        other images would go, and `StoreError` where the disk is full or refuses.
        """
        path = usable_path(path)
        if force:
            environment = environment.model_copy(update={"forced": True})
        request = Request.of(manifest, layers, recipe, environment, part)
        with contextlib.ExitStack() as opened:
            with explained(path):
                opened.enter_context(files.made_parents(path))
                opened.enter_context(files.lock(path))
                earlier = (Earlier.find_forced if force else Earlier.find)(path, recipe, opened)
                more = list(origins_of(beside, recipe, opened))
                writer = cls._start(path, request, earlier, Seen.of(manifest), more, force=force, rehash=rehash)
                opened.callback(writer.close)
            try:
                yield writer
            except BaseException:
                with contextlib.suppress(StoreError):  # the first error is the one to report
                    writer.flush()
                raise
            writer.flush()

    @classmethod
    def _start(
        cls,
        path: Path,
        request: Request,
        earlier: Earlier,
        seen: Seen,
        more: Sequence[Origin],
        *,
        force: bool,
        rehash: bool,
    ) -> Self:
        start = Start.of(request, earlier, seen, rehash=rehash)
        origins = [*start.origins, *more]
        for origin in more:
            origin.heed(request.header.environment)
        if start.own:
            path.with_name(f".{path.name}.tmp").unlink(missing_ok=True)  # of a run that was killed as it began
            return cls(path, start.own, origins, settled=start.settled)
        if not force:
            start.refuse_to_drop(request, seen)
        return cls.create(path, request, origins, None if rehash else seen)

    @classmethod
    def create(cls, path: Path, request: Request, origins: Sequence[Origin] = (), seen: Seen | None = None) -> Self:
        """Make the unfinished file, with all rows that `origins` have of what is `seen`; the lock is held."""
        temporary = path.with_name(f".{path.name}.tmp")  # the lock is ours, so is the name
        file = _create_file(temporary, request.header)
        try:
            writer = cls(path, Origin.blank(file), origins, settled=False)
            for name, values in request.fixed.items():
                writer._write_column(name, values)
            if seen is not None:
                writer._copy_known(request.fixed["id"], seen)
            writer.flush()
            files.sync(file.descriptor)
            files.rename(temporary, partial_path(path))
            file.path = partial_path(path)
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):
                files.remove(temporary)
            raise
        return writer

    def _write_column(self, name: str, values: NDArray[Any]) -> None:
        column = self._own.file.header.columns[name]
        write_rows(self._own.file.descriptor, column, np.arange(len(values)), values)
        self._write_checksums(name)

    def _copy_known(self, ids: NDArray[np.bytes_], seen: Seen) -> None:
        for origin in self._origins:
            rows, places = origin.matches(ids, seen)
            new = self._own.status[places] == PENDING
            self.copy(origin, rows[new], places[new])

    def copy(self, origin: Origin, rows: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Copy those `rows` of `origin` that match their commit checksum; the others stay pending."""
        for piece in pieces(len(rows), self._own.file.header.feature_bytes):
            features = origin.features(rows[piece])
            good = origin.intact(rows[piece], features)
            kept = rows[piece][good]
            self._put(
                places[piece][good],
                [layer[good] for layer in features],
                size=origin.size[kept],
                mtime_ns=origin.mtime_ns[kept],
                sha256=origin.sha256[kept],
                status=origin.status[kept],
            )

    # --- what is left to do

    @property
    def pending(self) -> NDArray[np.int64]:
        """Indices of the rows that have no final status yet, in order."""
        return np.flatnonzero(~self._own.final)

    def bad(self) -> dict[str, str]:
        """Return id and reason of every row that has no features, so far."""
        file, status = self._own.file, self._own.status
        rows = np.flatnonzero(self._own.final & (status != GOOD))
        names = decode_texts(file.take("id", rows))
        return {name: STATUS_NAMES[status[row]] for name, row in zip(names, rows.tolist(), strict=True)}

    @property
    def dropped(self) -> int:
        """Number of images with features in earlier files that have neither their id nor their content in this one."""
        if not self._origins:
            return 0
        ids, contents = set(self._own.file.column("id").tolist()), {digest.tobytes() for digest in self._own.sha256}
        return len(
            {
                key
                for origin in self._origins
                for key, status, digest in zip(
                    origin.file.column("id").tolist(), origin.status, origin.sha256, strict=True
                )
                if key not in ids and status == GOOD and digest.tobytes() not in contents
            }
        )

    def knows(self, sha256: bytes) -> bool:
        """Return True where `adopt` would find the content with this sha256, good or bad.

        It was computed here or in an earlier file, or found bad by this very run. May be asked by any thread.
        """
        return self._locate(sha256) is not None

    def _locate(self, sha256: bytes) -> tuple[Origin, int] | None:
        with self._contents_lock:
            if self._contents is None:
                everyone = (*self._origins, self._own)
                self._contents = {key: (origin, row) for origin in everyone for key, row in origin.contents()}
            found = self._contents.get(sha256)
            if found is None and sha256 in self._found_bad:
                found = self._own, self._found_bad[sha256]
        if found is None:
            return None
        origin, row = found
        rows = np.array([row])
        return found if origin.intact(rows, origin.features(rows))[0] else None

    # --- rows

    def close(self) -> None:
        """Close the file; rows that were not committed are computed again by another run."""
        self._own.file.close()

    def write(
        self,
        indices: Sequence[int] | NDArray[np.integer[Any]],
        features: Mapping[str, NDArray[np.floating[Any]]],
        sources: Sequence[Source],
    ) -> None:
        """Keep the features of rows, (n, ...) for each layer. A row that is not finite is kept as ``non-finite``.

        They are committed, so that a kill does not lose them, at the next `flush`: at the latest about two
        seconds later. Raises `SettingsError` where names or shapes are not those of the layers, `StoreError`
        where the disk refuses; then no row of this call counts, and the writer takes no more.
        """
        rows = row_numbers(indices, self._own.file.header.rows)
        layers = self._as_columns(features, len(rows))
        status = np.full(len(rows), GOOD, np.uint8)
        for layer in layers:
            finite = np.isfinite(layer).reshape(len(rows), -1).all(axis=1)
            status[~finite] = FIRST_BAD + BAD_IMAGE.index("non-finite")
        for layer in layers:
            layer[status != GOOD] = np.nan
        self._put(rows, layers, status=status, **_as_arrays(sources))
        self._remember_bad(rows)

    def fail(self, index: int, reason: str, source: Source | None = None) -> None:
        """Keep a row without features, for a reason of `BAD_IMAGE`. Its features read as NaN."""
        row = row_numbers([index], self._own.file.header.rows)
        header = self._own.file.header
        nothing = [np.full((1, *header.columns[layer].shape[1:]), np.nan) for layer in header.layers]
        status = np.array([FIRST_BAD + BAD_IMAGE.index(reason)], np.uint8)
        self._put(row, nothing, status=status, **_as_arrays([source]))
        self._remember_bad(row)

    def adopt(self, index: int, source: Source) -> None:
        """Copy to a row what another row of the same content has. Ask `knows` first."""
        found = self._locate(source.sha256 or b"")
        if found is None:
            raise KeyError(f"no row has the content of row {index}")
        origin, row = found
        rows = np.array([row])
        self._put(np.array([index]), origin.features(rows), status=origin.status[rows], **_as_arrays([source]))

    def _as_columns(self, features: Mapping[str, NDArray[Any]], rows: int) -> list[NDArray[Any]]:
        header = self._own.file.header
        expected = [plain_name(layer) for layer in header.layers]
        if sorted(features) != sorted(expected):
            raise SettingsError(f"{self.path} holds the layers {expected}, not {list(features)}")
        arrays = []
        for name in expected:
            column, given = header.columns[layer_column(name)], np.asarray(features[name])
            if given.shape != (rows, *column.shape[1:]):
                raise SettingsError(f"layer {name}: {given.shape} given for {rows} rows of {column.shape[1:]}")
            with np.errstate(over="ignore"):  # too large for float16 becomes infinite, and so a named reason
                arrays.append(given.astype(column.dtype))
        return arrays

    def _put(
        self,
        indices: NDArray[np.int64],
        features: Sequence[NDArray[Any]],
        *,
        size: NDArray[np.int64],
        mtime_ns: NDArray[np.int64],
        sha256: NDArray[np.uint8],
        status: NDArray[np.uint8],
    ) -> None:
        """Write everything of some pending rows but their status, which `flush` writes once this is safe."""
        own, header = self._own, self._own.file.header
        if self._settled or (own.status[indices] != PENDING).any():
            raise ValueError("a row that has a final status is never written again")
        features = [
            values.astype(header.columns[layer].dtype, copy=False)
            for layer, values in zip(header.layers, features, strict=True)
        ]
        columns = dict(zip(header.layers, features, strict=True))
        columns |= {"source/size": size, "source/mtime_ns": mtime_ns, "source/sha256": sha256}
        columns["commit"] = row_checksums(features, size=size, mtime_ns=mtime_ns, sha256=sha256, status=status)
        with self._fatal():
            for name, values in columns.items():
                write_rows(own.file.descriptor, header.columns[name], indices, values)
        own.size[indices], own.mtime_ns[indices] = size, mtime_ns
        own.sha256[indices], own.status[indices] = sha256, status
        self._remember(indices)
        if self._staged_bytes > COMMIT_BYTES or time.monotonic() - self._last_commit > COMMIT_SECONDS:
            self.flush()

    def _remember(self, indices: NDArray[np.int64]) -> None:
        self._staged.append(indices)
        self._staged_bytes += len(indices) * self._own.file.header.feature_bytes
        with self._contents_lock:
            if self._contents is not None:
                for index in indices[self._own.status[indices] == GOOD].tolist():
                    self._contents[self._own.sha256[index].tobytes()] = (self._own, index)

    def _remember_bad(self, indices: NDArray[np.int64]) -> None:
        own = self._own
        with self._contents_lock:
            for index in indices[(own.status[indices] != GOOD) & own.sha256[indices].any(axis=1)].tolist():
                self._found_bad[own.sha256[index].tobytes()] = index

    # --- making it last

    def flush(self) -> None:
        """Commit the rows written so far: their data reaches the disk, and only then their status."""
        if not self._staged:
            return
        file = self._own.file
        with self._fatal():
            files.sync_data(file.descriptor)
            rows = np.unique(np.concatenate(self._staged))
            write_rows(file.descriptor, file.header.columns["status"], rows, self._own.status[rows])
        self._staged, self._staged_bytes = [], 0
        self._last_commit = time.monotonic()

    def discard(self) -> None:
        """Remove the unfinished file, in which nothing is worth keeping; a finished one stays."""
        if not self._settled:
            self._staged, self._staged_bytes = [], 0
            with self._fatal():
                files.remove(partial_path(self.path))

    def publish(self) -> Path:
        """Check every row once more, write the checksums, and give the file its name. Returns that name.

        Raises `StoreError` while rows are pending, `StoreDamagedError` where a row fails its commit checksum.
        """
        if not self._settled:
            waiting = len(self.pending)
            if waiting:
                raise StoreError(
                    f"{waiting} rows of {self.path} are not computed yet; run the same command again to go on"
                )
            self.flush()
            with self._fatal():
                self._check_rows()
                for name in (*self._own.file.header.layers, *_LATE):
                    self._write_checksums(name)
                files.sync(self._own.file.descriptor)
                files.rename(partial_path(self.path), self.path)
            self._settled = True
        with self._fatal():
            files.remove(partial_path(self.path))  # one of an update that is not wanted any more
        return self.path

    def _check_rows(self) -> None:
        for piece in pieces(self._own.file.header.rows, self._own.file.header.feature_bytes):
            rows = np.arange(piece.start, piece.stop)
            good = self._own.intact(rows, self._own.features(rows))
            if not good.all():
                raise StoreDamagedError(
                    f"row {rows[~good][0]} of {self._own.file.path} does not match its commit checksum: the disk or"
                    " the memory of this machine fails; run the same command again to recompute it"
                )

    def _write_checksums(self, name: str) -> None:
        """Write the checksum of each block of a column, from what lies in the file."""
        file, column = self._own.file, self._own.file.header.columns[name]
        crcs = [
            zlib.crc32(as_bytes(file.raw(name, start, min(start + column.block, file.header.rows))))
            for start in range(0, file.header.rows, column.block)
        ]
        files.write_at(file.descriptor, np.array(crcs, "<u4").tobytes(), column.checksum)

    @contextlib.contextmanager
    def _fatal(self) -> Iterator[None]:
        """Commit nothing more after a failed write or sync: nobody knows what the disk holds then."""
        if self._broken:
            raise StoreError(f"{self.path}: an earlier write failed; run the same command again to go on")
        try:
            with explained(self.path):
                yield
        except StoreError:
            self._broken = True
            raise


def waiting_rows(
    path: str | Path,
    *,
    manifest: Manifest,
    layers: Sequence[LayerSpec],
    recipe: Recipe,
    force: bool = False,
    part: Part | None = None,
    rehash: bool = False,
) -> NDArray[np.int64]:
    """Return the indices of the rows that a `StoreWriter` opened with the same arguments would have to compute.

    Nothing is written. Raises what opening it would.
    """
    path = usable_path(path)
    request, seen = Request.of(manifest, layers, recipe, Environment(), part), Seen.of(manifest)
    with contextlib.ExitStack() as opened, explained(path):
        files.refuse_unwritable(path)
        files.refuse_locked(path)
        earlier = (Earlier.find_forced if force else Earlier.find)(path, recipe, opened, writable=False)
        start = Start.of(request, earlier, seen, rehash=rehash)
        if not force:
            start.refuse_to_drop(request, seen)
        return np.arange(len(manifest)) if rehash else start.waiting(request.fixed["id"], seen)


def usable_path(path: str | Path) -> Path:
    """Return the file that `path` names, through links.

    Raises `SettingsError` or `OutputExistsError` where it cannot be a file.
    """
    files.refuse_nul(path)
    path = Path(os.path.realpath(path))
    with explained(path):
        if path.is_dir():
            raise OutputExistsError(f"{path} is a folder; give -o the name of a file")
    return path


def _as_arrays(sources: Sequence[Source | None]) -> dict[str, NDArray[Any]]:
    known = [source or Source(UNKNOWN, UNKNOWN, None) for source in sources]
    digests = b"".join(source.sha256 or bytes(32) for source in known)
    return {
        "size": np.array([source.size for source in known], np.int64),
        "mtime_ns": np.array([source.mtime_ns for source in known], np.int64),
        "sha256": np.frombuffer(digests, np.uint8).reshape(len(known), 32),
    }


def _create_file(path: Path, header: Header) -> RowFile:
    """Create the file `path` with all its space reserved and its structure in place."""
    layout = lay_out(header)
    descriptor = files.create(path)
    try:
        files.reserve(descriptor, layout.header.file_size)
        for offset, piece in layout.pieces:
            files.write_at(descriptor, piece, offset)
    except BaseException:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            files.remove(path)
        raise
    return RowFile(path, descriptor, layout.header, len(layout.pieces[0][1]))


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one line that says what is safe and what to do."""
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename not in (None, str(path)) else ""
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}{place}; rows committed before are kept:"
            " make room or fix it, then run the same command again"
        ) from error
