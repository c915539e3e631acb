"""Ctrl-C and SIGTERM, obeyed in time whatever the main thread is doing.

Python raises an exception for a signal when the main thread is back from C code, which a search of an SVM or a large
decomposition may keep for minutes. So a second thread is told of the signal too: it leaves the main thread `GRACE`
seconds to unwind, in which an extraction commits its rows, and then ends the process. A second signal ends it at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

#: Seconds that the main thread has to unwind by itself.
GRACE = 1.5
#: Seconds that the last line waits for somebody who reads.
PATIENCE = 0.2
SHOW_CURSOR = b"\x1b[?25h"


class Stopped(BaseException):
    """A signal that asks this process to end; `status` is the exit status that says so."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class Interruption:
    """The end of a process after a signal; `epitaph` gives its last line: the part of the work that is kept."""

    def __init__(self, epitaph: Callable[[], str]) -> None:
        self._epitaph = epitaph
        self._leaving = threading.Lock()
        self.status: int | None = None

    def raise_stopped(self, number: int, frame: FrameType | None) -> None:
        """Unwind the main thread, once: a handler of signals."""
        if self.status is None:
            self.status = 128 + number
            raise Stopped(number)

    def watch(self, signals: int) -> None:
        """End the process after the first signal's grace, or at the second: the life of the watching thread.

        `signals` is a descriptor from which the numbers of signals are read; its end ends the watch.
        """
        if number := os.read(signals, 1):
            again, _, _ = select.select([signals], [], [], GRACE)
            if not again or os.read(signals, 1):
                self.leave(128 + number[0])

    def leave(self, status: int) -> None:
        """Say the last line and end at once: threads may be in C code, which does not survive the interpreter's end."""
        if not self._leaving.acquire(blocking=False):
            threading.Event().wait()  # the other thread is leaving with both
        with contextlib.suppress(OSError):  # nobody may be reading, or a full pipe or a held terminal takes no more
            if select.select([], [2], [], PATIENCE)[1]:
                os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + f"{self._epitaph()}\n".encode())
        if "multiprocessing" in sys.modules:
            for child in sys.modules["multiprocessing"].active_children():
                child.kill()
        os._exit(status)


@contextlib.contextmanager
def obeying_signals(epitaph: Callable[[], str]) -> Iterator[Interruption]:
    """Let SIGINT and SIGTERM raise `Stopped` in this block, which must be on the main thread, and see to their end."""
    interruption = Interruption(epitaph)
    read, write = os.pipe()
    os.set_blocking(write, False)
    # What a shell had us ignore, as it does Ctrl-C for its background jobs, stays ignored.
    heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interruption.raise_stopped) for number in heard}
    earlier = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watcher = threading.Thread(target=interruption.watch, args=(read,), name="signals", daemon=True)
    watcher.start()
    try:
        yield interruption
    finally:
        signal.set_wakeup_fd(earlier)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(write)
        watcher.join()
        os.close(read)


def flush_streams() -> None:
    """Flush stdout and stderr, whether or not anybody is reading."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
