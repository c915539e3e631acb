"""Files that are whole or absent: atomic publishing, locks, digests, and the system calls that write stores.

Every byte that a feature store puts on a disk goes through the functions of the first section, so that a test
can record them, let them fail, or replay them up to any point.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import OutputExistsError, SettingsError, StoreError, StoreLockedError, require_posix

require_posix()
import fcntl  # noqa: E402

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The file in the folder of a model whose base was trained too.
TUNED = "base.safetensors"

# --- the system calls of a writer


def create(path: Path) -> int:
    """Create an empty file at `path`, whatever was there; return its descriptor.

    What a link at `path` names stays as it is: somebody else may have put it there.
    """
    path.unlink(missing_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def reserve(descriptor: int, size: int) -> None:
    """Make the file `size` bytes long and set them aside: a full disk is known now, not later."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:  # macOS: the size is set, the space is not promised
        os.ftruncate(descriptor, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(descriptor, size)  # a file system that sets nothing aside


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    left = memoryview(data).cast("B")
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def sync_data(descriptor: int) -> None:
    """Return when the bytes written so far would survive a loss of power."""
    _flush(descriptor, getattr(os, "fdatasync", os.fsync))


def sync(descriptor: int) -> None:
    """Return when the file's size and times would survive it too."""
    _flush(descriptor, os.fsync)


def _flush(descriptor: int, system_call: Callable[[int], None]) -> None:
    """Flush by `system_call`, or by its like on macOS, where that leaves the bytes in the memory of the disk."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        with contextlib.suppress(OSError):  # not every file system has it
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    system_call(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give `source` the name `target`, in one step and for good: a loss of power does not undo it."""
    source.replace(target)
    sync_folder(target.parent)


def remove(path: Path) -> None:
    """Remove the file if it is there."""
    path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _flush(descriptor, os.fsync)
    finally:
        os.close(descriptor)


#: Of Linux's renameat2.
_CURRENT_FOLDER, _EXCHANGE = -100, 2
#: How a file or folder is opened to be locked.
_TO_BE_LOCKED = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


# --- whole or absent


def _hidden(path: Path) -> tuple[Path, Path]:
    """Make two hidden names beside `path`: for what is made, and for what it takes the place of.

    They have a random number: that of the process would not do, since in containers all have the same.
    """
    number = secrets.randbits(48)
    return path.with_name(f".{path.name}.{number}.tmp"), path.with_name(f".{path.name}.{number}.old.tmp")


@contextlib.contextmanager
def made_parents(path: Path) -> Iterator[None]:
    """Make the folders above `path` that are missing; where the block fails, those of them that are empty go again."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # something is in it, which is worth keeping
            for folder in missing:
                folder.rmdir()
        raise


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that becomes `path` when the block ends well, and nothing when it does not.

    What is no file of its own, such as ``/dev/stdout`` or another link, is written to as it is. An `OSError` names
    `path`.

    >>> with atomic_write(Path("metrics.json")) as file:
    ...     _ = file.write(b"{}")
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with named(path), path.open("wb") as file:
            yield file
        return
    temporary, _ = _hidden(path)
    with named(path, instead_of=temporary), made_parents(path):
        _sweep(path)
        try:
            with os.fdopen(_make_held(temporary, create), "wb") as file:
                yield file
                file.flush()
                sync(file.fileno())
            rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # what went wrong first is what is told
                temporary.unlink()
            raise


@contextlib.contextmanager
def named(path: Path, *, instead_of: Path | None = None) -> Iterator[None]:
    """Have every `OSError` of the block name a file: `path`, where it names none, or a hidden one `instead_of` it."""
    try:
        yield
    except OSError as error:
        if error.filename is None or (instead_of is not None and str(error.filename) == str(instead_of)):
            error.filename = str(path)
        raise


@contextlib.contextmanager
def publish_folder(path: Path, *, last: str = "model.json", replace: bool = False) -> Iterator[Path]:
    """Make a temporary folder that takes the place of `path` when the block ends well, and is removed otherwise.

    `last` is the file that makes the folder what it is: the block must write it, and `replace` only ever
    replaces a folder that holds one. A kill leaves the old folder or the new one under `path`, never a part of
    either (where the system cannot exchange two names, `heal` may have to put the old one back). What it leaves
    beside `path` is removed by the next call. An `OSError` names `path`.
    Raises `OutputExistsError` where `path` exists and may not be replaced.
    """
    refuse_existing(path, last=last, replace=replace)
    temporary, old = _hidden(path)
    with contextlib.ExitStack() as held:
        with named(path, instead_of=temporary):
            held.enter_context(made_parents(path))
            _sweep(path)
            held.callback(os.close, _make_held(temporary, _make_folder))
        try:
            yield temporary
            if not (temporary / last).is_file():
                raise ValueError(f"nothing wrote {last} into {temporary}")
            with named(path, instead_of=temporary):
                _sync_tree(temporary)
                refuse_existing(path, last=last, replace=replace)
                _swap_in(temporary, path, old)
        finally:
            _remove_folder(temporary)
            heal(path)
            if path.exists():
                _remove_folder(old)


def discard_folder(path: Path) -> None:
    """Remove a folder that `publish_folder` made, in one step for whoever looks, and what kills left beside it."""
    temporary, _ = _hidden(path)
    if path.is_dir() and not path.is_symlink():
        rename(path, temporary)
        _remove_folder(temporary)
    _sweep(path)


def heal(path: Path) -> None:
    """Put the old folder back where a kill came between the two renames of a replacement.

    A folder that a living process holds is left to it, and one that may not be renamed stays where it is.
    """
    if path.exists() or path.is_symlink():
        return
    for old in _leftovers(path, "old.tmp"):
        with contextlib.suppress(OSError), _held(old) as free:
            if free and not path.exists():
                rename(old, path)
                return


def _sweep(path: Path) -> None:
    """Remove what dead processes left beside `path`."""
    for left in _leftovers(path, "tmp"):
        with contextlib.suppress(OSError), _held(left) as free:
            if free:
                _remove_folder(left) if left.is_dir() else remove(left)


def _leftovers(path: Path, what: str) -> list[Path]:
    """List files and folders beside `path` whose names are those of `_hidden`, of whichever process."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\d+\.(old\.)?tmp")
    try:
        beside = sorted(path.parent.iterdir())
    except OSError:
        return []
    fitting = (one for one in beside if pattern.fullmatch(one.name) and one.name.endswith(what))
    return [one for one in fitting if not one.is_symlink() and (one.is_dir() or one.is_file())]


def _make_folder(folder: Path) -> int:
    folder.mkdir(exist_ok=True)
    return os.open(folder, _TO_BE_LOCKED | os.O_DIRECTORY)


def _make_held(path: Path, make: Callable[[Path], int]) -> int:
    """Make a file or folder and lock it; return its descriptor.

    Another process that sweeps may take it for one of the dead before it is locked: then it is made again.
    """
    while True:
        try:
            descriptor = make(path)
        except FileNotFoundError:
            if not path.parent.exists():  # which no sweep removes
                raise
            continue
        with contextlib.suppress(OSError):  # a file system without locks, where nobody sweeps
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # waits for whoever is removing it
        if _is_named(descriptor, path):
            return descriptor
        os.close(descriptor)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Lock a file or folder while the block runs; yield True where that was possible, False where another holds it.

    The lock dies with its process on whichever machine it runs, which the number of a process does not tell.
    """
    descriptor = os.open(path, _TO_BE_LOCKED)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = _is_named(descriptor, path)
        except OSError:  # held, or a file system without locks, where nobody can tell
            free = False
        yield free
    finally:
        os.close(descriptor)


def _remove_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def require_room(path: Path, size: int) -> None:
    """Raise `OSError` unless the disk that `path` will be on has `size` bytes left: call it before hours of work."""
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        raise OSError(
            errno.ENOSPC, f"{size / 2**20:.1f} MB are needed and {free / 2**20:.1f} MB are left on its disk", str(path)
        )


@contextlib.contextmanager
def open_regular(path: Path, *, most: int) -> Iterator[io.BufferedReader]:
    """Open a file of `most` bytes at most; raise `OSError` for anything else, and wait for nothing.

    Links are followed; a pipe, a device or a folder is refused without being read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"it has {found.st_size} bytes, more than the {most} that are read", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_regular(path: Path, *, most: int) -> bytes:
    """Return the content of a file of `most` bytes at most, opened as `open_regular` does."""
    with open_regular(path, most=most) as file:
        return file.read(most)


def refuse_nul(path: str | Path) -> None:
    """Raise `SettingsError` for a path that can be none on any system: call it before hours of work, not after."""
    if "\0" in str(path):
        raise SettingsError(f"{str(path)!r} holds a NUL character, which no file name can hold")


def refuse_existing(path: Path, *, last: str, replace: bool) -> None:
    """Raise `OutputExistsError` where `publish_folder` would: call it before hours of work, not after."""
    refuse_nul(path)
    heal(path)
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


def _swap_in(temporary: Path, path: Path, old: Path) -> None:
    """Give `path` to the folder `temporary`; what was there has another name then, `temporary` or `old`."""
    if not path.is_dir() or not any(path.iterdir()):
        rename(temporary, path)
    elif not exchange(temporary, path):
        with _held(path):  # until the new one is there, nobody puts the old one back
            path.rename(old)
            rename(temporary, path)


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change names in one step and for good; return False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:  # an old C library
        return False
    if renameat2(_CURRENT_FOLDER, os.fsencode(one), _CURRENT_FOLDER, os.fsencode(other), _EXCHANGE):
        number = ctypes.get_errno()
        if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):  # an old kernel, or a file system without it
            return False
        raise OSError(number, os.strerror(number), str(other))
    sync_folder(other.parent)
    return True


# --- one writer at a time


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the right to write `path`, by a lock on the file `path` + ``.lock`` that dies with its process.

    Raises `StoreLockedError`, which names the holder, at once and not after a wait, and `StoreError` where the
    file system has no locks.
    """
    beside = path.with_name(path.name + ".lock")
    descriptor = _acquire(beside, path)
    try:
        yield
    finally:
        beside.unlink(missing_ok=True)  # while it is still held: whoever waits sees that its name is gone
        os.close(descriptor)


def refuse_unwritable(path: Path) -> None:
    """Raise an `OSError` where no file can be made at `path`, as far as that is known without trying."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def refuse_locked(path: Path) -> None:
    """Raise `StoreLockedError` where `lock` would, without writing anything."""
    try:
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        _lock_at_once(descriptor, path)
    finally:
        os.close(descriptor)


def _acquire(beside: Path, path: Path) -> int:
    while True:
        descriptor = _open_lock(beside)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, descriptor)
            _lock_at_once(descriptor, path)
            if _is_named(descriptor, beside):  # else its last holder removed the name between our open and our lock
                undo.callback(beside.unlink, missing_ok=True)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _introduce_self(), 0)
                undo.pop_all()
                return descriptor


def _open_lock(beside: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(beside).st_mode):
            raise StoreError(f"{beside} is not a lock file, but a link or a folder; remove it")
    return os.open(beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _lock_at_once(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _describe_holder(os.pread(descriptor, 1000, 0))
        raise StoreLockedError(f"{path} is being written by {holder}; wait for it or stop it") from None
    except OSError as error:
        raise StoreError(
            f"{path} cannot be locked against other writers, its file system refuses ({error.strerror}); give an -o on"
            " another disk, and move the file when it is finished"
        ) from None


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
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
    """Return the sha256 of `data`, 32 bytes."""
    return hashlib.sha256(data).digest()


def digest_json(content: Mapping[str, Any]) -> str:
    """Return the sha256, in hexadecimal, of JSON content, whatever its spaces and the order of its names."""
    return digest_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hex()


def digest_tensors(tensors: Mapping[str, NDArray[np.generic]]) -> str:
    """Return the sha256, in hexadecimal, over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype.str}\0{tensor.shape}\0".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
