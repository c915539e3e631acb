"""Calls side by side in threads, that end with the one who waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from pipeline.devices import cores

Result = TypeVar("Result")


def in_threads(calls: Sequence[Callable[[], Result]], *, jobs: Literal["auto"] | int) -> list[Result]:
    """Return the results of `calls`, in their order, of which `jobs` run at once; auto is one a core.

    Whatever ends the wait, an error of a call or Ctrl-C, starts no further call and is raised once those that run are
    done: a thread that is left in C code brings down an interpreter that ends.
    """
    from joblib import Parallel, delayed

    stopped, idle = threading.Event(), threading.Condition()
    running = 0

    def enter() -> bool:
        nonlocal running
        with idle:
            running += not stopped.is_set()
            return not stopped.is_set()

    def run(call: Callable[[], Result]) -> Result | None:
        nonlocal running
        if not enter():
            return None
        try:
            return call()
        except BaseException:
            stopped.set()
            raise
        finally:
            with idle:
                running -= 1
                idle.notify_all()

    count = min(cores() if jobs == "auto" else jobs, len(calls))
    try:
        return list(Parallel(n_jobs=count, prefer="threads")(delayed(run)(call) for call in calls))
    except BaseException:
        stopped.set()
        with idle:
            idle.wait_for(lambda: running == 0)
        raise
