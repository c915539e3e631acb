"""Whole processes that have little to do: wall and processor seconds, and peak memory, of one photo or one small file.

python tests/benchmarks/start.py FOLDER          FOLDER holds class folders of images (a few hundred)
python tests/benchmarks/start.py FOLDER --runs 9

The median of the runs, taken in turn after one that is not counted, so that graphs are in the cache and files in
memory. Beside them one prediction as timm documents it, in a process of its own (resnet18 with random weights).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: The command line in a process that says its own peak: the system's figure for a child begins at its parent's.
COMMAND = """
import sys
from pipeline.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
TIMM = """
import sys
import timm, torch
from PIL import Image
model = timm.create_model("resnet18", pretrained=False).eval()
config = timm.data.resolve_data_config({}, model=model)
transform = timm.data.create_transform(**config)
with torch.inference_mode():
    print(model(transform(Image.open(sys.argv[1]).convert("RGB")).unsqueeze(0)).softmax(1).topk(5))
"""
PEAK = """
with open("/proc/self/status") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmHWM")), file=sys.stderr)
"""


@dataclass(frozen=True)
class Run:
    """A finished process: seconds of wall and processor, MB at its peak."""

    wall: float
    cpu: float
    peak: float


def run(program: str, words: list[str]) -> Run:
    """Run a program with these words to its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", program + PEAK, *words]
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, os.times()
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(wall, cpu, int(done.stderr.split()[-1]) / 1000)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    photo = str(next(path for path in sorted(given.folder.rglob("*.jpg"))))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        store, model, exported = str(work / "f.h5"), str(work / "m"), str(work / "m.onnx")
        base = ["--base", "squeezenet1_1", "--weights", "embedded"]
        run(COMMAND, ["extract", str(given.folder), "-o", store, *base, "-q"])
        run(COMMAND, ["fit-head", store, "--head", "linear", "-o", model, "-q"])
        run(COMMAND, ["export", model, "-o", exported, "-q"])
        quiet = ["-q", "--json"]
        heads = {
            f"fit-head --head {head}": (COMMAND, ["fit-head", store, "--head", head, "-o", model + head, "--force"])
            for head in ("ridge", "svm", "linear")
        }
        cases: dict[str, tuple[str, list[str]]] = {
            "--help": (COMMAND, ["--help"]),
            "predict MODEL PHOTO": (COMMAND, ["predict", model, photo, *quiet]),
            "predict model.onnx PHOTO": (COMMAND, ["predict", exported, photo, *quiet]),
            "evaluate MODEL F.h5": (COMMAND, ["evaluate", model, store, *quiet]),
            "info F.h5": (COMMAND, ["info", store, *quiet]),
            "verify F.h5": (COMMAND, ["verify", store, *quiet]),
            "extract, all up to date": (COMMAND, ["extract", str(given.folder), "-o", store, *base, *quiet]),
            **{name: (program, [*words, *quiet]) for name, (program, words) in heads.items()},
            "timm, one prediction": (TIMM, [photo]),
        }
        found: dict[str, list[Run]] = {name: [] for name in cases}
        for turn in range(given.runs + 1):
            for name, (program, words) in cases.items():
                done = run(program, words)
                if turn:
                    found[name].append(done)
    print(f"{'':<26}{'wall s':>8}{'cpu s':>8}{'peak MB':>9}   median of {given.runs}")
    for name, runs in found.items():
        wall, cpu, peak = (statistics.median(getattr(one, what) for one in runs) for what in ("wall", "cpu", "peak"))
        print(f"{name:<26}{wall:8.2f}{cpu:8.2f}{peak:9.0f}")


if __name__ == "__main__":
    main()
