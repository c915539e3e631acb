"""The public face of the package, and what its import sees to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline.cli import cli

HERE = Path(__file__).parent.parent


def test_a_run_reports_nothing_to_anybody(photo_folder: Path, tmp_path: Path) -> None:
    """ONNX Runtime keeps an identity of the device, and a queue of reports, where its telemetry is on."""
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-m", "pipeline", "extract", str(photo_folder), "-o", str(tmp_path / "f.h5")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    done = subprocess.run(
        [*command, "--base", "squeezenet1_1", "--weights", "embedded"],
        env={**environment, "HOME": str(home)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "(onnxruntime on cpu)" in done.stdout
    assert not (home / ".cache" / "Microsoft").exists()


def test_the_user_may_decide_otherwise() -> None:
    code = "import pipeline, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, expected in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")} | given
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=HERE)
        assert done.stdout.strip() == expected


def test_the_version_is_that_of_the_command_line() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", pipeline.__version__)


#: Command -> the function that it is, where that has another name, or none.
OTHERWISE = {"bases": "list_bases", "demo": None}


@pytest.mark.parametrize("command", list(cli.commands))
def test_a_command_is_a_function(command: str) -> None:
    name = OTHERWISE.get(command, command.replace("-", "_"))
    if name is not None:
        assert callable(getattr(pipeline, name))
