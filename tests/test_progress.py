"""What is said of long work: in a terminal, without one, and where there is nobody to say it to."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.progress import Course, Steps, progress, unwatched

WORK = """
import time
from pipeline.progress import progress
with progress(5, "reading", show={show}, every={every}) as bar:
    bar.say("begin [bold]with 5[/bold]")
    for _ in range(5):
        time.sleep(0.05)
        bar.advance()
with progress(100, "searching", show={show}, every={every}) as bar:
    for share in (0.2, 0.1, 0.9):
        time.sleep(0.15)
        bar.reach(share, "svm, fit 3 of 8")
print("done")
"""


def run(*, stderr: int | None = subprocess.PIPE, show: bool = True, every: float = 0.08, shell: str = "") -> list[str]:
    """Lines on stderr of a process that works a little."""
    command = [sys.executable, "-c", WORK.format(show=show, every=every)]
    if shell:
        command = ["bash", "-c", f'"$0" -c "$1" {shell}', sys.executable, command[-1]]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    return (done.stderr or "").splitlines()


def test_without_a_terminal_lines_come_at_intervals() -> None:
    lines = run()
    assert lines[0] == "begin [bold]with 5[/bold]"
    counted = [line for line in lines if line.startswith("reading: ")]
    assert 1 <= len(counted) <= 4
    assert all(re.fullmatch(r"reading: \d of 5, \d+ s(, about \d+ s left)?", line) for line in counted)
    shares = [line for line in lines if line.startswith("searching: ")]
    assert [re.sub(r", \d+ s.*", "", line) for line in shares] == [
        "searching: svm, fit 3 of 8, 20 %",
        "searching: svm, fit 3 of 8, 20 %",  # never back
        "searching: svm, fit 3 of 8, 90 %",
    ]


def test_short_work_says_nothing_but_what_it_is_asked_to() -> None:
    assert run(every=10) == ["begin [bold]with 5[/bold]"]


def test_quiet_is_quiet() -> None:
    assert run(show=False) == []


@pytest.mark.parametrize("shell", ["2>&-", "2>/dev/full", "2>&- <&-"])
def test_stderr_that_is_closed_or_full_stops_no_work(shell: str) -> None:
    assert run(shell=shell) == []


def test_a_terminal_gets_a_bar_and_the_lines_that_stay() -> None:
    master, slave = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        while True:
            try:
                piece = os.read(master, 4096)
            except OSError:
                return
            if not piece:
                return
            seen.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        run(stderr=slave)
    finally:
        os.close(slave)
        reader.join(10)
        os.close(master)
    text = b"".join(seen).decode()
    assert "begin [bold]with 5[/bold]" in text
    assert "5/5" in text
    assert "searching: svm, fit 3 of 8" in text
    assert "90%" in text
    assert "left" in text


def test_pieces_of_a_course_make_one_share_that_only_grows() -> None:
    heard: list[tuple[float, str]] = []
    course = Course(lambda share, what: heard.append((share, what)), 4.0)
    first = course.next("ridge", 1.0)
    first(0.5, "penalty 1 of 2")
    second = course.next("svm", 3.0)
    second(1.0, "fit 9 of 9")
    assert heard == [
        (0.0, "ridge"),
        (0.125, "ridge, penalty 1 of 2"),
        (0.25, "svm"),
        (1.0, "svm, fit 9 of 9"),
    ]
    inner = Course(Course(unwatched, 1.0).next("blend", 1.0), 2.0)
    inner.next("linear", 2.0)(1.0, "done")


def test_steps_are_counted_in_any_thread() -> None:
    heard: list[float] = []
    steps = Steps(lambda share, what: heard.append(share), 400, "fit")
    threads = [threading.Thread(target=lambda: [steps.step() for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == [done / 400 for done in range(1, 401)]


def test_nothing_to_do_is_nothing_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(0, "reading", every=0) as bar:
        bar.say("nothing")
    assert capsys.readouterr().err == ""


def test_a_reader_who_leaves_stops_no_work(tmp_path: Path) -> None:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", WORK.format(show=True, every=0.01)], stdout=subprocess.PIPE, stderr=write
    )
    os.close(write)
    time.sleep(0.01)
    os.close(read)
    assert process.communicate(timeout=60)[0] == b"done\n"
