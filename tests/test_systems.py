"""Systems other than this one: macOS as tests/macos imitates it, and Windows, which is refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
USE_WSL = "pipeline runs on Linux and macOS; on Windows, install and run it in WSL"

JOURNEY = """
import multiprocessing, os, sys, sitecustomize
assert not hasattr(os, "sched_getaffinity") and not hasattr(os, "posix_fallocate"), "this is no macOS"
assert not hasattr(os, "fdatasync") and multiprocessing.get_start_method() == "spawn", "this is no macOS"
import pipeline
photos, artifacts = sys.argv[1:]
options = {"base": "squeezenet1_1", "weights": "embedded", "device": "cpu"}
extracted = pipeline.extract(photos, f"{artifacts}/photos.h5", **options)
assert extracted.to_json()["good"] == 12
synced = len(sitecustomize.full_syncs)
assert synced >= 3, "features, statuses and the folder reach the disk itself"
for head in "linear", "knn", "svm":
    pipeline.fit_head(f"{artifacts}/photos.h5", f"{artifacts}/{head}", head=head, val=0.25)
assert len(sitecustomize.full_syncs) > synced, "so does a model"
photo = f"{photos}/ants/000.jpg"
assert pipeline.predict(f"{artifacts}/knn", [photo]).to_json()["predictions"][0]["label"] == "ants"
assert pipeline.verify(f"{artifacts}/photos.h5", recompute=3).ok
"""


def test_a_mac_does_the_whole_journey(photo_folder: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(HERE / "macos"), str(HERE.parent)])
    command = [sys.executable, "-c", JOURNEY, str(photo_folder), str(tmp_path / "artifacts")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def without_fcntl(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `code` where the module is missing that Windows misses."""
    code = f"import sys; sys.modules['fcntl'] = None\n{code}"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=HERE.parent)


@pytest.mark.parametrize("command", ["info photos.h5", "extract photos -o photos.h5", "bases", "demo"])
def test_windows_is_told_in_one_line_to_use_wsl(command: str) -> None:
    done = without_fcntl("from pipeline.cli import main; main()", *command.split())
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {USE_WSL}\n")


@pytest.mark.parametrize("name", ["FeatureStore", "load_model"])
def test_the_library_tells_it_as_an_import_that_fails(name: str) -> None:
    code = f"try:\n    from pipeline import {name}\nexcept ImportError as error:\n    print(error, end='')"
    done = without_fcntl(code)
    assert (done.stdout, done.stderr) == (USE_WSL, "")
