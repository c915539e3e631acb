"""Ctrl-C and SIGTERM: real signals to real commands, which end in time, with the status and the truth."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from cheap import LAYERS, recipe
from conftest import Trained
from pictures import write_photos

from pipeline.sources import FileImage, Manifest, Record, Target
from pipeline.store import Environment, Source, StoreWriter

#: Seconds that a stop may take. It takes up to 1.5, the grace, and the process's end: less than 2 on a machine at rest,
#: and 1.8 was seen with five times as many processes as cores. The rest is for a machine where even that is little.
IN_TIME = 5.0
EMBEDDED = ("--base", "squeezenet1_1", "--weights", "embedded")


@dataclass
class Ended:
    status: int
    seconds: float
    said: str


def stop(
    words: list[str],
    folder: Path,
    when: Callable[[subprocess.Popen[bytes]], None],
    *,
    number: signal.Signals = signal.SIGINT,
    terminal: bool = False,
    times: int = 1,
) -> Ended:
    """Run `pipeline` on `words`, send `number` (or type Ctrl-C) once `when` returns, and say how it ended."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", "import pipeline.cli; pipeline.cli.main()", *words],
        cwd=folder,
        stdin=theirs if terminal else subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        preexec_fn=_take_terminal if terminal else None,
    )
    os.close(theirs)
    said: list[bytes] = []
    reader = threading.Thread(target=_keep, args=(ours, said))  # as a terminal does: who writes to a full one waits
    reader.start()
    try:
        when(child)
        assert child.poll() is None, f"it ended before it was stopped: {said}"
        started = time.monotonic()
        for _ in range(times):
            os.write(ours, b"\x03") if terminal else child.send_signal(number)
            time.sleep(0.2 * (times > 1))
        status = child.wait(timeout=60)
        seconds = time.monotonic() - started
        reader.join()
        return Ended(status, seconds, b"".join(said).decode(errors="replace"))
    finally:
        child.kill()
        child.wait()
        reader.join()
        os.close(ours)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _keep(descriptor: int, said: list[bytes]) -> None:
    """Read until nobody writes any more."""
    with contextlib.suppress(OSError):  # a terminal whose other side is closed
        while more := os.read(descriptor, 65536):
            said.append(more)


def after(seconds: float) -> Callable[[subprocess.Popen[bytes]], None]:
    """Once the child has computed for so long, by its own clock: a busy machine changes nothing."""

    def wait(child: subprocess.Popen[bytes]) -> None:
        while child.poll() is None:
            spent = subprocess.run(["ps", "-o", "cputime=", "-p", str(child.pid)], capture_output=True, text=True)
            hours, minutes, rest = spent.stdout.strip().split(":")[-3:] if spent.stdout.strip() else ("0", "0", "0")
            if int(hours.split("-")[-1]) * 3600 + int(minutes) * 60 + float(rest) >= seconds:
                return
            time.sleep(0.05)

    return wait


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with noise.h5: 6,000 rows of nothing in 300 classes, which keep an SVM busy for minutes in libsvm."""
    folder = tmp_path_factory.mktemp("noise")
    count = 6_000
    random = np.random.default_rng(13)
    records = [Record(row, f"{row:06}.jpg", FileImage(f"{row:06}.jpg"), "") for row in range(count)]
    target = Target("class", random.integers(0, 300, count), tuple(map(str, range(300))))
    environment = Environment(weights="none", seed=13)
    manifest = Manifest("images", records, {"class": target})
    with StoreWriter.open(
        folder / "noise.h5", manifest=manifest, layers=LAYERS, recipe=recipe(), environment=environment
    ) as writer:
        layers = {layer.name: random.random((count, *layer.shape)).astype(layer.dtype) for layer in LAYERS}
        sources = [Source(1, 1, row.to_bytes(32)) for row in range(count)]
        writer.write(list(range(count)), layers, sources)
        writer.publish()
    return folder


FIT = ["fit-head", "noise.h5", "-o", "model", "--head", "svm"]


def assert_fit_was_stopped(ended: Ended, folder: Path, status: int = 130) -> None:
    assert ended.status == status, ended
    assert ended.seconds < IN_TIME
    assert "stopped; no model was saved; the cached features are as they were" in ended.said
    assert "Traceback" not in ended.said
    assert not (folder / "model").exists()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_search_in_c_code_is_stopped(noise: Path, terminal: bool) -> None:
    assert_fit_was_stopped(stop(FIT, noise, after(7), terminal=terminal), noise)


def test_sigterm_has_its_own_status(noise: Path) -> None:
    assert_fit_was_stopped(stop(FIT, noise, after(6), number=signal.SIGTERM), noise, status=143)


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [False, True])
def test_a_search_is_stopped_at_any_moment(noise: Path, terminal: bool) -> None:
    for tenth in range(10, 160, 12):
        assert_fit_was_stopped(stop(FIT, noise, after(tenth / 10), terminal=terminal), noise)


def test_a_second_signal_is_immediate(noise: Path) -> None:
    ended = stop(FIT, noise, after(7), times=2)
    assert_fit_was_stopped(ended, noise)
    assert ended.seconds < 1.4, "before the first one's grace is over"


#: Fills the pipe that it says its last line to, and is stopped.
FILL = """
import os, signal, time
from pipeline.interruption import Stopped, obeying_signals

with obeying_signals(lambda: "stopped") as interruption:
    os.set_blocking(2, False)
    try:
        while True:
            os.write(2, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(2, True)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except Stopped as stopped:
        interruption.leave(stopped.status)
"""


def test_nobody_who_does_not_read_holds_up_a_stop() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    child = subprocess.Popen([sys.executable, "-c", FILL], stderr=subprocess.PIPE, env=environment)
    try:
        assert child.wait(timeout=30) == 130
    finally:
        child.kill()
        child.communicate()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with 300 photos of 2 classes."""
    for seed, name in enumerate(("ants", "bees")):
        write_photos(tmp_path / "photos" / name, 150, first_seed=seed * 1000)
    return tmp_path


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_an_extraction_keeps_its_rows_and_says_so(photos: Path, device: str) -> None:
    partial = photos / "f.h5.partial"

    def rows_are_there(child: subprocess.Popen[bytes]) -> None:
        while child.poll() is None:
            with contextlib.suppress(OSError, KeyError), h5py.File(partial, "r", locking=False) as file:
                if (file["status"][:] == 1).sum() >= 8:
                    return
            time.sleep(0.02)

    slow = ["--size", "640", "--batch-size", "2"]  # rows are committed every two seconds: it must take more than that
    words = ["extract", "photos", "-o", "f.h5", *EMBEDDED, *slow, "--device", device]
    ended = stop(words, photos, rows_are_there)
    assert ended.status == 130, ended
    assert ended.seconds < IN_TIME
    assert "the rows that were computed are kept, and the same command goes on from there" in ended.said
    assert partial.exists()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *words], cwd=photos, capture_output=True, text=True, check=True
    )
    assert 8 <= int(re.findall(r"reused (\d+)", done.stdout)[0]) < 300


def test_a_training_says_that_ended_epochs_are_kept(photos: Path) -> None:
    words = ["finetune", "photos", "-o", "tuned", *EMBEDDED, "--epochs", "50"]
    ended = stop(words, photos, after(12))
    assert ended.status == 130, ended
    assert ended.seconds < IN_TIME
    assert "stopped; the epochs that ended are kept, and the same command goes on after them" in ended.said
    assert {path.name for path in photos.glob("*tuned*")} <= {"tuned.training", "tuned.lock"}


#: Sends Ctrl-C to its own process as the module is imported that the environment names: no clock is that exact.
CTRL_C_ON_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(name, path=None, target=None):
        if name == os.environ["STOP_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize("module", ["click", "pydantic", "pipeline.config", "pipeline.interruption"])
@pytest.mark.parametrize("way", ["script", "-m"])
def test_ctrl_c_while_the_command_line_is_imported(module: str, way: str, tmp_path: Path, console_script: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(CTRL_C_ON_IMPORT)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    started = [str(console_script)] if way == "script" else ["-m", "pipeline"]
    done = subprocess.run(
        [sys.executable, *started, "extract", "photos", "-o", "f.h5"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "STOP_AT": module},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped; nothing was written\n")


def test_what_a_shell_had_ignored_stays_ignored(trained: Trained) -> None:
    """A background job of a script: Ctrl-C is for the script, and the job goes on."""
    words = f"fit-head {trained.store} -o {trained.store.parent / 'ignoring'} --force".split()
    code = "import pipeline.cli; pipeline.cli.main()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    while child.poll() is None:
        child.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert child.communicate()[1].decode().count("stopped") == 0
    assert child.returncode == 0
