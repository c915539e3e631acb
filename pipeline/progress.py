"""Progress of long work, on stderr: a bar in a terminal, a line now and then elsewhere, or nothing at all.

    with progress(len(records), "reading", show=True) as bar:
        for record in records:
            ...
            bar.advance()

Work that consists of unlike pieces tells a `Watch` instead what share of it is done; `Course` makes one of several.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

#: Seconds between two lines where there is no terminal.
EVERY = 10.0
#: From less than this share nothing is foretold.
LEAST_SHARE = 0.03

#: A receiver of the share of some work that is done, from 0 to 1, and of what is being done now.
Watch = Callable[[float, str], None]


def unwatched(share: float, what: str) -> None:
    """Let nobody hear of it."""


class Bar(Protocol):
    """A receiver of a loop's progress."""

    def advance(self, count: int = 1) -> None:
        """Add `count` to what is done."""

    def reach(self, share: float, what: str) -> None:
        """Set the share that is done, and name `what` comes now; a bar never goes back."""

    def say(self, line: str) -> None:
        """Print a line that stays."""


@contextmanager
def progress(total: int, label: str, *, show: bool = True, every: float = EVERY) -> Iterator[Bar]:
    """Show how far a loop of `total` steps is while the block runs, `every` so many seconds where it is lines."""
    if not (show and total and _is_open(sys.stderr)):
        yield _Silent()
    elif sys.stderr.isatty():
        with _terminal_bar(total, label) as bar:
            yield bar
    else:
        yield _Lines(total, label, every)


def _is_open(stream: TextIO | None) -> bool:
    """Return True where there is anything to print to: a process may have been started without stderr."""
    return stream is not None and not stream.closed


class Course:
    """A sequence of pieces of work, of which `watch` hears as of one; all of them cost `total`."""

    def __init__(self, watch: Watch, total: float) -> None:
        self._watch = watch
        self._total = total
        self._before = 0.0

    def next(self, what: str, cost: float) -> Watch:
        """Begin the next piece, which takes the part `cost` of the total; return what it tells its own progress to."""
        start, length = self._before / self._total, cost / self._total
        self._before += cost
        self._watch(start, what)
        return lambda share, detail: self._watch(start + length * share, f"{what}, {detail}")


class Steps:
    """Equal steps, taken in any thread, of which `watch` hears; `noun` is what one of the `total` is called."""

    def __init__(self, watch: Watch, total: int, noun: str) -> None:
        self._watch = watch
        self._total = total
        self._noun = noun
        self._done = 0
        self._lock = threading.Lock()

    def step(self) -> None:
        """Count one more step that is done."""
        with self._lock:
            self._done += 1
            self._watch(self._done / self._total, f"{self._noun} {self._done} of {self._total}")


class _Silent:
    def advance(self, count: int = 1) -> None:
        """Do nothing: nobody is watching."""

    def reach(self, share: float, what: str) -> None:
        """Do nothing: nobody is watching."""

    def say(self, line: str) -> None:
        """Do nothing: nobody is watching."""


class _Lines:
    """A bar made of lines on stderr, one in `every` so many seconds."""

    def __init__(self, total: int, label: str, every: float) -> None:
        self._total = total
        self._label = label
        self._every = every
        self._done = 0.0
        self._started = self._last = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Count, and print where it is time for it."""
        self._done += count
        self._print_seldom(f"{self._label}: {self._done:.0f} of {self._total}")

    def reach(self, share: float, what: str) -> None:
        """Note the share, and print where it is time for it."""
        self._done = max(self._done, share * self._total)
        self._print_seldom(f"{self._label}: {what}, {self._done / self._total:.0%}".replace("%", " %"))

    def say(self, line: str) -> None:
        """Print it at once."""
        self._last = time.monotonic()
        try:
            print(line, file=sys.stderr, flush=True)
        except (OSError, ValueError):  # the reader left: no reason to stop the work
            self._every = float("inf")

    def _print_seldom(self, line: str) -> None:
        now = time.monotonic()
        if now - self._last >= self._every:
            elapsed = now - self._started
            self.say(f"{line}, {elapsed:.0f} s{_time_left(elapsed, self._done / self._total)}")


def _time_left(elapsed: float, share: float) -> str:
    return f", about {elapsed * (1 - share) / share:.0f} s left" if LEAST_SHARE <= share < 1 else ""


@contextmanager
def _terminal_bar(total: int, label: str) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(label, total=total, done="", left="")

        class _Shown:
            def advance(self, count: int = 1) -> None:
                done = shown.tasks[0].completed + count
                speed = shown.tasks[0].speed
                rate = f"  {speed:.1f}/s" if speed else ""
                self._update(completed=done, done=f"{done:.0f}/{total}{rate}")

            def reach(self, share: float, what: str) -> None:
                done = max(shown.tasks[0].completed, share * total)
                self._update(completed=done, description=f"{label}: {what}", done=f"{done / total:.0%}")

            def say(self, line: str) -> None:
                shown.console.print(line, markup=False, highlight=False, soft_wrap=True)

            def _update(self, *, completed: float, **fields: Any) -> None:
                left = _time_left(shown.tasks[0].elapsed or 0, completed / total)
                shown.update(task, completed=completed, left=left.removeprefix(", "), **fields)

        yield _Shown()
