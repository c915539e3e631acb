"""Children that die where they are told to, forked from a process that has every module loaded: tests kill hundreds.

Run as a program it forks children that run real commands. A kill is a real SIGKILL: after so many steps on the disk,
counted by the child itself, or from outside at any time.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Functions of `pipeline.files` that change the disk without telling an audit hook.
SYSTEM_CALLS = ("create", "reserve", "write_at", "sync_data", "sync", "rename", "remove", "sync_folder", "exchange")
#: What Python tells an audit hook before it changes the disk.
AUDITED = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
#: The status of a child that ended with an error that the command line does not know.
TRACEBACK = 70
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class ForkServer:
    """A program that runs `serve`, whose children have at once what it has loaded. One child at a time."""

    def __init__(self, program: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def fork(self, order: dict[str, Any]) -> int:
        """Have a child do what `order` says; return its process id."""
        return int(self._ask(json.dumps(order)))

    def end(self) -> tuple[int, str, float]:
        """Wait for the last child; its exit status (negative: the signal), what it said, and its seconds."""
        status, said, seconds = json.loads(self._ask("wait"))
        return status, said, seconds

    def _ask(self, line: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()

    def close(self) -> None:
        """End the program."""
        self._process.communicate()


def serve(child: Callable[[dict[str, Any], int], None]) -> None:
    """Fork for every line that is read: `child` gets its order, and a descriptor to say something on, and exits."""
    for line in sys.stdin:
        read, write = os.pipe()
        started = time.monotonic()
        process = os.fork()
        if not process:
            os.close(read)
            child(json.loads(line), write)
        os.close(write)
        print(process, flush=True)
        assert sys.stdin.readline() == "wait\n"
        with os.fdopen(read) as pipe:
            said = pipe.read()
        _, status = os.waitpid(process, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), said, time.monotonic() - started]), flush=True)


@dataclass(frozen=True)
class End:
    """How a child ended: its exit status (negative: the signal), what it said, and its steps on the disk."""

    status: int
    said: str
    steps: int
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether it was killed, and not done before."""
        return self.status == -signal.SIGKILL


class Nursery(ForkServer):
    """Starts commands one at a time.

    >>> nursery.run(["fit-head", "F.h5", "-o", "M"], watch=folder, kill_at=17).killed  # doctest: +SKIP
    True
    """

    def __init__(self) -> None:
        super().__init__(__file__)

    def start(self, arguments: list[str], *, watch: Path, kill_at: int | None = None, torn: bool = False) -> int:
        """Run `pipeline` with `arguments`; return the child's process id.

        It kills itself before step `kill_at` on files below `watch`; with `torn`, half of a write gets there first.
        """
        return self.fork({"arguments": arguments, "watch": os.fspath(watch), "kill_at": kill_at, "torn": torn})

    def wait(self) -> End:
        """Wait for the child that was started last."""
        status, said, seconds = self.end()
        steps, _, text = said.partition("\n")
        return End(status, text, int(steps or 0), seconds)

    def run(self, arguments: list[str], *, watch: Path, kill_at: int | None = None, torn: bool = False) -> End:
        """`start` and `wait`."""
        self.start(arguments, watch=watch, kill_at=kill_at, torn=torn)
        return self.wait()

    def run_killed_after(self, seconds: float, arguments: list[str], *, watch: Path) -> End:
        """The same, killed from outside after so many seconds."""
        child = self.start(arguments, watch=watch)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        return self.wait()


def _load() -> None:
    """What children share, imported before any fork."""
    import torch  # noqa: F401

    from pipeline.commands import evaluate, extract, finetune, fit_head, merge, predict  # noqa: F401


def _child(order: dict[str, Any], say: int) -> None:
    from pipeline.cli import main

    counter = Counter(order["watch"], order["kill_at"], torn=order["torn"])
    status, said = TRACEBACK, ""
    sys.argv = ["pipeline", *order["arguments"]]
    out, errors = io.StringIO(), io.StringIO()
    try:
        counter.begin()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            main()
    except SystemExit as leaving:
        status = int(leaving.code or 0)
        said = errors.getvalue() if status else out.getvalue()
    except BaseException as error:  # noqa: BLE001 - a traceback, which no user should see
        said = f"{type(error).__name__}: {error}"
    finally:
        os.write(say, f"{counter.steps}\n{said}".encode())
        os._exit(status)


class Counter:
    """Counts steps on files below a folder, and kills its own process before one of them."""

    def __init__(self, folder: str, kill_at: int | None, *, torn: bool) -> None:
        self.steps = 0
        self._folder = os.path.realpath(folder)
        self._kill_at = kill_at
        self._torn = torn

    def begin(self) -> None:
        """Listen to Python and stand before the system calls of `pipeline.files`."""
        from pipeline import files

        sys.addaudithook(self._heard)
        for name in SYSTEM_CALLS:
            if hasattr(files, name):
                setattr(files, name, self._counted(name, getattr(files, name)))

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            changes = bool(flags & WRITING)
        elif event in AUDITED:
            path, changes = arguments[0], True
        else:
            return
        if changes and isinstance(path, str | os.PathLike) and Path(path).absolute().is_relative_to(self._folder):
            self._step()

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def step_and_call(*arguments: Any, **more: Any) -> Any:
            if name == "write_at" and self._torn and self.steps == self._kill_at:
                descriptor, data, offset = arguments
                half = memoryview(data).cast("B")
                os.pwrite(descriptor, half[: len(half) // 2], offset)
            self._step()
            return call(*arguments, **more)

        return step_and_call

    def _step(self) -> None:
        if self.steps == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps += 1


if __name__ == "__main__":
    _load()
    serve(_child)
