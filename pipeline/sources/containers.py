"""Files that hold many images, checked for changes since they were listed."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from pipeline.errors import SourceError
from pipeline.sources.manifest import shown


@dataclass(frozen=True, slots=True)
class Container:
    """A file with many images in it, and its state when it was listed.

    Offsets and cells are those of that state. Who reads an image opens the file and calls `check` with what was
    opened, before and after: bytes of another state would be some other image's.
    """

    path: str
    size: int
    mtime_ns: int
    identity: tuple[int, int] | None

    def __reduce__(self) -> tuple[type[Container], tuple[str, int, int, None]]:
        """Leave the file's number at home: another process may be on another machine, where it has another."""
        return Container, (self.path, self.size, self.mtime_ns, None)

    @classmethod
    def of(cls, path: str, file: BinaryIO) -> Self:
        """Record the state of an open file; raise `SourceError` for a pipe or a device."""
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise SourceError(f"{shown(path)} is not a regular file: copy it to one first")
        return cls(path, found.st_size, found.st_mtime_ns, (found.st_dev, found.st_ino))

    def open(self) -> BinaryIO:
        """Open the file again, unbuffered; raise `SourceError` where it is not the one that was listed."""
        try:
            file = open_regular(self.path)
        except OSError as error:
            raise SourceError(f"{shown(self.path)} cannot be read any more ({error.strerror}); {_AGAIN}") from error
        try:
            self.check(file)
        except SourceError:
            file.close()
            raise
        return file

    def check(self, file: BinaryIO) -> None:
        """Raise `SourceError` unless this open file is in the state that was listed."""
        found = os.fstat(file.fileno())
        identity = self.identity and (found.st_dev, found.st_ino)
        if (found.st_size, found.st_mtime_ns, identity) != (self.size, self.mtime_ns, self.identity):
            raise SourceError(f"{shown(self.path)} was changed or replaced while it was being read; {_AGAIN}")

    def require_unchanged(self) -> None:
        """Raise `SourceError` unless the path still leads to the file in the state that was listed."""
        self.open().close()


_AGAIN = "run the same command again, once nobody writes it"


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading, unbuffered, without waiting for the writer of a pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    return os.fdopen(descriptor, "rb", buffering=0)


def is_hidden(name: str) -> bool:
    """Tell whether a member's name, or that of a folder that it is in, is one that systems hide or add."""
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


def safe_name(container: str | Path, name: str) -> str:
    """Return a member's name as a relative path; refuse one that would leave a folder, though none is made."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts:
        raise SourceError(f"{shown(container)} has a member called {name!r}, which is not a path inside it")
    return "/".join(parts)
