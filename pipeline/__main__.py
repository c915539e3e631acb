"""Entry point of `python -m pipeline` and of the console script: Ctrl-C is obeyed before the command line is there."""

from __future__ import annotations

import atexit
import gc
import os
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; a Ctrl-C while that is imported ends the process with a line and 130, as later on."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started us ignores it
        signal.signal(signal.SIGINT, _leave)
    _collect_garbage_seldom()
    from pipeline.cli import main as run

    run()


def _collect_garbage_seldom() -> None:
    """Collect garbage seldom: imports make a million objects that stay, and walking through them takes a second.

    Freezing them saves another second at the end of the process, where they would all be looked at once more.
    """
    gc.set_threshold(50_000, 20, 20)
    atexit.register(gc.freeze)


def _leave(*_: object) -> NoReturn:
    """End the process with a line and the status of Ctrl-C: nothing has begun that could be unwound."""
    os.write(2, b"stopped; nothing was written\n")
    os._exit(130)


if __name__ == "__main__":
    main()
