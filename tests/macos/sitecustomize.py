"""Make this Linux look like macOS to Python: on PYTHONPATH, it is imported at the start of every interpreter.

    PYTHONPATH=tests/macos python -m pytest tests/test_files.py

What macOS lacks is removed, what only macOS has is added and recorded, the kernel's files cannot be opened, and
processes are spawned, not forked, unless code says which. ``os.preadv`` stays: macOS 11 has it, and torch needs that.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import multiprocessing
import os
import resource
import select
import signal
import sys
from types import FrameType
from typing import Any

ABSENT = {
    os: (
        *("sched_getaffinity", "sched_setaffinity", "posix_fallocate", "posix_fadvise", "fdatasync", "copy_file_range"),
        *("memfd_create", "eventfd", "splice", "pidfd_open", "getrandom", "pipe2", "waitid", "setns", "unshare"),
        *("getxattr", "setxattr", "listxattr", "removexattr", "getresuid", "setresuid", "timerfd_create"),
        *("O_TMPFILE", "O_DIRECT", "O_PATH", "O_NOATIME", "O_LARGEFILE", "O_RSYNC"),
    ),
    resource: ("prlimit",),
    select: ("epoll",),
    signal: ("sigwaitinfo", "sigtimedwait", "pidfd_send_signal"),
    fcntl: ("F_ADD_SEALS", "F_OFD_SETLK", "F_OFD_SETLKW", "F_SETPIPE_SZ"),
}
#: Functions of the C library that only Linux has.
ABSENT_FROM_C = ("renameat2", "malloc_trim", "prctl", "fallocate", "statx", "sync_file_range")
LINUX_FOLDERS = ("/proc/", "/sys/")
#: Whom they are hidden from. Other packages look for them where ``sys.platform`` is what it is here.
OURS = ("pipeline", "test_", "tests.")

#: Descriptors that were synced through the disk's own cache, in order.
full_syncs: list[int] = []


def _remove() -> None:
    for module, names in ABSENT.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)


def _hide_from_c() -> None:
    found = ctypes.CDLL.__getattr__

    def get(library: ctypes.CDLL, name: str) -> Any:
        if name in ABSENT_FROM_C:
            raise AttributeError(f"{library._name}: undefined symbol: {name}")
        return found(library, name)

    ctypes.CDLL.__getattr__ = get  # type: ignore[method-assign]


def _add_full_sync() -> None:
    real = fcntl.fcntl

    def control(descriptor: Any, command: int, argument: Any = 0) -> Any:
        if command != fcntl.F_FULLFSYNC:
            return real(descriptor, command, argument)
        os.fsync(descriptor)
        full_syncs.append(descriptor)
        return 0

    fcntl.F_FULLFSYNC = 51  # type: ignore[attr-defined,misc]
    fcntl.fcntl = control  # type: ignore[assignment]


def _hide_folders(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in ("open", "os.listdir", "os.scandir"):
        return
    if str(arguments[0]).startswith(LINUX_FOLDERS) and _caller().startswith(OURS):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), arguments[0])


def _caller() -> str:
    """The module that called the standard library."""
    frame: FrameType | None = sys._getframe(2)
    while frame and frame.f_globals.get("__name__", "").split(".")[0] in sys.stdlib_module_names:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")) if frame else ""


# joblib warns where Linux lacks sched_getaffinity; on macOS it counts the cores without a word.
os.environ.setdefault("LOKY_MAX_CPU_COUNT", str(os.cpu_count()))
_remove()
_hide_from_c()
_add_full_sync()
multiprocessing.set_start_method("spawn")
sys.addaudithook(_hide_folders)
