"""The program as a shell starts it: streams that are closed, full, or gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Trained

HERE = Path(__file__).parent.parent


def test_a_closed_standard_stream_is_no_error(photo_folder: Path, tmp_path: Path) -> None:
    for stream in ("2>&-", "1>&-", "0<&-", "0<&- 1>&- 2>&-"):
        words = f"-m pipeline extract {photo_folder} -o {tmp_path}/f.h5 --base squeezenet1_1 --weights embedded"
        command = f"{sys.executable} {words} --force {stream}"
        done = subprocess.run(["sh", "-c", command], cwd=HERE, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (stream, done)


def test_the_module_runs_like_the_script_and_survives_a_closed_pipe() -> None:
    command = f"{sys.executable} -m pipeline bases | head -n 1"
    done = subprocess.run(["sh", "-c", command], cwd=HERE, capture_output=True, text=True, env=os.environ, check=False)
    assert done.stdout.startswith("alexnet")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_an_output_that_takes_no_more_is_one_line(trained: Trained, console_script: Path) -> None:
    command = [sys.executable, console_script, "info", trained.store]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: the output: No space left on device\n")
