"""A progress bar on stderr with rate and time left; nothing at all where stderr is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """What a loop tells its progress to."""

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""


class _Silent:
    def advance(self, count: int = 1) -> None:
        """Nobody is watching."""


@contextmanager
def progress(total: int, label: str, *, show: bool = True) -> Iterator[Bar]:
    """Show how far a loop of `total` steps is while the block runs."""
    if not (show and total and sys.stderr.isatty()):
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(label, total=total, rate="")

        class _Shown:
            def advance(self, count: int = 1) -> None:
                shown.advance(task, count)
                speed = shown.tasks[0].speed
                shown.update(task, rate=f"{speed:.1f}/s" if speed else "")

        yield _Shown()
