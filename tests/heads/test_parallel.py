"""Calls in threads end together, whatever ends them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.heads.parallel import in_threads


@pytest.mark.parametrize("jobs", ["auto", 1, 3, 64])
def test_results_come_in_order(jobs):
    calls = [lambda number=number: time.sleep(0.002 * (5 - number)) or number for number in range(6)]
    assert in_threads(calls, jobs=jobs) == list(range(6))


def test_an_error_is_raised_once_no_call_runs():
    started, ended = [], []

    def call(number: int) -> None:
        started.append(number)
        if number == 1:
            time.sleep(0.05)
            raise ZeroDivisionError("the second")
        time.sleep(0.3)
        ended.append(number)

    with pytest.raises(ZeroDivisionError, match="the second"):
        in_threads([lambda number=number: call(number) for number in range(40)], jobs=2)
    assert set(ended) == set(started) - {1}
    assert len(started) < 6
    time.sleep(0.4)
    assert len(ended) == len(started) - 1


INTERRUPTED = """
import threading, time
from pipeline.heads.parallel import in_threads
log = []
def call():
    log.append("started")
    if len(log) == 1:
        print("running", flush=True)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        sum(range(1000))
    log.append("ended")
try:
    in_threads([call] * 100, jobs=2)
except KeyboardInterrupt:
    print(log.count("started"), log.count("ended"), flush=True)
    raise SystemExit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_starts_no_call_and_leaves_none_running():
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=30)[0]
    assert process.returncode == 7
    started, ended = map(int, rest.split())
    assert started == ended < 10


SEARCH = """
import sys
sys.path.append(sys.argv[1])
import numpy as np
from examples import problem_of
from pipeline.config import FitSettings
from pipeline.heads import HEADS
random = np.random.default_rng(0)
features = random.normal(size=(1500, 64)).astype(np.float32)
problem = problem_of(features, random.integers(0, 30, 1500))
print("running", flush=True)
HEADS["svm"]("classes", FitSettings.of({"jobs": 4})).fit(problem)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_in_a_search_ends_it_without_a_crash():
    """The interpreter ends after the last fit has; one that is left in libsvm would bring it down."""
    command = [sys.executable, "-c", SEARCH, str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in told.splitlines()[-1]
    assert process.returncode in (1, -signal.SIGINT)


def test_no_thread_stays():
    before = threading.active_count()
    in_threads([lambda: 1] * 8, jobs=4)
    time.sleep(0.1)
    assert threading.active_count() <= before + 1
