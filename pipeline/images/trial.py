"""Trial of images, one by one in a process of its own: one that hangs a decoder, or eats memory, ends that alone.

records --one at a time--> a child with a limit on its memory --fine, bad, or no answer in time--> what is harmful
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from pipeline.config import Recipe
from pipeline.errors import ImageError
from pipeline.images import decoding
from pipeline.images.preprocess import make_preprocess
from pipeline.images.transform import InputTransform
from pipeline.sources import Record

#: The most that a decoder takes for a pixel (see `decoding.Limits`), and what the process and a file take beside it.
BYTES_A_PIXEL, BYTES_BESIDE = 16, 2**30
#: Seconds that a child has to start.
STARTS_WITHIN = 120.0


@dataclass(frozen=True)
class Trial:
    """Limits under which images of a recipe are tried: seconds for each, and memory by its pixels."""

    recipe: Recipe
    max_pixels: int
    seconds: float

    def harmful(self, records: Iterable[Record]) -> Iterator[tuple[Record, ImageError | None]]:
        """Yield every record as it was tried, with an error where it ends or holds up a process.

        An image that is bad in the usual way has none: whoever loads it finds the same.
        """
        child = None
        try:
            for record in records:
                child = child or _Child(self)
                error = child.tried(record, self.seconds)
                if error is not None:
                    child.end()
                    child = None
                yield record, error
        finally:
            if child is not None:
                child.end()


class _Child:
    """A process that tries images."""

    def __init__(self, trial: Trial) -> None:
        context = multiprocessing.get_context("spawn")  # whoever asks has threads
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(theirs, trial), daemon=True)
        with nothing_imported_from_here():
            self._process.start()
        theirs.close()
        self._answer(STARTS_WITHIN)

    def tried(self, record: Record, seconds: float) -> ImageError | None:
        """Return why it is harmful, if it is."""
        self._pipe.send(record)
        if not self._answer(seconds):
            return self._ended("unreadable", "reading it", seconds)
        if not self._answer(seconds):
            return self._ended("too-large", "decoding it", seconds)
        return None

    def _answer(self, seconds: float) -> bool:
        """Return True where the child says something in time."""
        if not self._pipe.poll(seconds):
            return False
        try:
            self._pipe.recv()
        except (EOFError, OSError):
            return False
        return True

    def _ended(self, reason: str, what: str, seconds: float) -> ImageError:
        self._process.join(timeout=0.5)
        code = self._process.exitcode
        if code is None:
            return ImageError(reason, f"{what} takes more than {seconds:.0f} s")
        if code == _OUT_OF_MEMORY:
            return ImageError("too-large", f"{what} takes more memory than any image of so many pixels needs")
        if code == -signal.SIGKILL:  # by the system, as it is short of memory: another day there may be room
            return ImageError("unreadable", f"{what} took more memory than this machine has")
        return ImageError("corrupt", f"{what} ends the process: {_how(code)}")

    def end(self) -> None:
        """End the process, whatever it is at."""
        self._pipe.close()
        self._process.kill()
        self._process.join()


#: Status of a child that has met its limit.
_OUT_OF_MEMORY = 77


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"status {code}"


def _serve(pipe: Connection, trial: Trial) -> None:
    """Try images until there are no more: say that one was read, then that it was decoded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory(BYTES_BESIDE + BYTES_A_PIXEL * trial.max_pixels)
    transform = InputTransform.from_description(trial.recipe.transform)
    preprocess = make_preprocess(trial.recipe, transform, max_pixels=trial.max_pixels)
    pipe.send(None)
    with suppress(EOFError):
        while True:
            record: Record = pipe.recv()
            data = b""
            try:
                with suppress(ImageError):
                    data = record.image.read(decoding.Limits().max_bytes)
                pipe.send(None)
                with suppress(ImageError), decoding.preprocessing():
                    preprocess(data, bytes(32))
            except MemoryError:
                os._exit(_OUT_OF_MEMORY)
            pipe.send(None)


def _limit_memory(limit: int) -> None:
    with suppress(ValueError, OSError):  # a system without such a limit has the one on time
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))


@contextmanager
def nothing_imported_from_here() -> Iterator[None]:
    """Keep Python processes that start in this block from importing what lies in the current folder.

    They would look there first: `multiprocessing` starts them with ``-c``.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
