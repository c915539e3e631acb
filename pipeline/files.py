"""Files that are whole or absent: atomic publishing, locks, digests, and the few system calls that stores are
written with.

Every byte that a feature store puts on a disk goes through the functions of the first section, so that a test
can record them, let them fail, or replay them up to any point.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import OutputExistsError, StoreLockedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# --- the system calls of a writer


def create(path: Path) -> int:
    """A new, empty file at `path`, whatever was there; returns its descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)


def reserve(descriptor: int, size: int) -> None:
    """Make the file `size` bytes long and set them aside: a full disk is known now, not later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # macOS: the size is set, the space is not promised
        os.ftruncate(descriptor, size)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    left = memoryview(data).cast("B")
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def sync_data(descriptor: int) -> None:
    """Return when the bytes written so far would survive a loss of power."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def sync(descriptor: int) -> None:
    """As `sync_data`, for the file's size and times too."""
    os.fsync(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give `source` the name `target`, in one step and for good: a loss of power does not undo it."""
    source.replace(target)
    sync_folder(target.parent)


def remove(path: Path) -> None:
    """Remove the file if it is there."""
    path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- whole or absent


def _hidden(path: Path, what: str) -> Path:
    """A name beside `path` that a listing does not show, of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.{what}")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """An open binary file that becomes `path` when the block ends well, and nothing when it does not.

    >>> with atomic_write(Path("metrics.json")) as file:
    ...     file.write(b"{}")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden(path, "tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def publish_folder(path: Path, *, last: str = "model.json", replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well, and is removed when it
    does not.

    `last` is the file that makes the folder what it is: the block must write it, and `replace` only ever
    replaces a folder that holds one. A kill leaves the old folder or the new one under `path`, never a part
    of either; at worst a hidden `.NAME.*.tmp` stays beside it.
    Raises `OutputExistsError` where `path` exists and may not be replaced.
    """
    refuse_existing(path, last=last, replace=replace)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden(path, "tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if not (temporary / last).is_file():
            raise ValueError(f"nothing wrote {last} into {temporary}")
        _sync_tree(temporary)
        refuse_existing(path, last=last, replace=replace)
        _swap_in(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def refuse_existing(path: Path, *, last: str, replace: bool) -> None:
    """Raise `OutputExistsError` where `publish_folder` would: call it before hours of work, not after."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not replace:
        raise OutputExistsError(f"{path} exists already; give --force to replace it, or another -o")
    if not (path / last).is_file():
        raise OutputExistsError(f"{path} has no {last}, so it is not replaced even with --force; give another -o")


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(parent) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def _swap_in(temporary: Path, path: Path) -> None:
    if path.is_dir() and any(path.iterdir()):
        old = _hidden(path, "old.tmp")
        path.rename(old)
        rename(temporary, path)
        shutil.rmtree(old)
    else:
        rename(temporary, path)


# --- one writer at a time


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the right to write `path`, through a lock on the file `path` + ``.lock`` that dies with its
    process.

    Raises `StoreLockedError`, which names the holder, at once and not after a wait.
    """
    beside = path.with_name(path.name + ".lock")
    descriptor = _acquire(beside, path)
    try:
        yield
    finally:
        beside.unlink(missing_ok=True)  # while it is still held: whoever waits sees that its name is gone
        os.close(descriptor)


def _acquire(beside: Path, path: Path) -> int:
    while True:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _describe_holder(os.pread(descriptor, 1000, 0))
            os.close(descriptor)
            raise StoreLockedError(f"{path} is being written by {holder}; wait for it or stop it") from None
        if _is_named(descriptor, beside):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _introduce_self(), 0)
            return descriptor
        os.close(descriptor)  # its last holder removed the name between our open and our lock


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _introduce_self() -> bytes:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode()


def _describe_holder(note: bytes) -> str:
    try:
        holder: dict[str, Any] = json.loads(note)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


# --- digests


def digest_bytes(data: bytes | memoryview) -> bytes:
    """sha256 of `data`, 32 bytes."""
    return hashlib.sha256(data).digest()


def digest_tensors(tensors: Mapping[str, NDArray[np.generic]]) -> str:
    """sha256 in hexadecimal over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype.str}\0{tensor.shape}\0".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
