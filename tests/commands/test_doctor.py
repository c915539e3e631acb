"""What a bug report gets to know, also where half of what is installed does not work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands import doctor
from pipeline.devices import cores
from pipeline.files import lock

HERE = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with a cache."""
    (tmp_path / "home/cache/onnx").mkdir(parents=True)
    (tmp_path / "home/cache/onnx/a.onnx").write_bytes(bytes(1000))
    return tmp_path / "home"


def examined(home: Path, *words: str, packages: Path = HERE) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(home), "PIPELINE_CACHE": str(home / "cache"), "API_TOKEN": "s3cret"}
    environment["PYTHONPATH"] = os.pathsep.join([str(packages), str(HERE)])
    command = [sys.executable, "-m", "pipeline", "doctor", *words]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)


def test_a_machine_in_order(home: Path) -> None:
    done = examined(home, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"]
    assert found["failed"] == {}
    assert found["engines"] == {"torch": "works", "onnxruntime": "works", "openvino": "works"}
    assert found["devices"]["cpu"] == "works"
    assert found["versions"]["torch"] == metadata.version("torch")
    assert {"python", "h5py", "numpy", "Pillow", "torchvision"} <= set(found["versions"])
    assert "pytest" not in found["versions"]
    assert found["system"]["cores"] == cores()
    assert found["blas"]
    assert found["caches"]["graphs"] == {"path": "~/cache/onnx", "files": 1, "bytes": 1000}
    assert all(size > 0 for size in found["free"].values())
    assert set(found["free"]) == {"folder", "memory", "caches"}
    assert str(home) not in done.stdout
    assert "s3cret" not in done.stdout


def test_what_does_not_work_is_told_with_its_reason_and_stops_nothing_else(home: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    (broken / "openvino.py").write_text("raise ImportError('no libtbb')")
    (broken / "onnxruntime.py").write_text(f"raise ImportError({str(home / 'libonnx.so')!r} + ' cannot be opened')")
    done = examined(home, packages=broken)
    assert done.returncode == 1, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["engines"] == (
        "torch: its process ended with SIGILL; onnxruntime: ImportError: ~/libonnx.so cannot be opened;"
        " openvino: ImportError: no libtbb"
    )
    assert "no caches    its process ended with SIGILL" in done.stdout.splitlines()
    assert {"versions", "system", "cpu", "blas", "free"} <= set(lines)


CPUINFO = """
processor\t: 0
model name\t: AMD EPYC 9R14
flags\t\t: fpu sse2 avx2 fma avx512f avx512_bf16 hypervisor

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp bf16 i8mm\nCPU part\t: 0xd40\n"
APPLE = """machdep.cpu.brand_string: Apple M2
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_SME: 0
hw.optional.AdvSIMD: 1
hw.optional.floatingpoint: 1
"""
INTEL = """machdep.cpu.brand_string: Intel(R) Core(TM) i7
hw.optional.avx2_0: 1
hw.optional.avx512f: 0
hw.optional.fma: 1
"""


@pytest.mark.parametrize(
    ("read", "text", "model", "features"),
    [
        (doctor.read_cpuinfo, CPUINFO, "AMD EPYC 9R14", ["avx2", "fma", "avx512f", "avx512_bf16"]),
        (doctor.read_cpuinfo, ARM, "unknown", ["asimd", "asimddp", "bf16", "i8mm"]),
        (doctor.read_cpuinfo, "", "unknown", []),
        (doctor.read_sysctl, APPLE, "Apple M2", ["asimd", "asimddp", "bf16"]),
        (doctor.read_sysctl, INTEL, "Intel(R) Core(TM) i7", ["avx2", "fma"]),
        (doctor.read_sysctl, "", "unknown", []),
    ],
)
def test_the_cpu_by_what_its_system_tells(read: Any, text: str, model: str, features: list[str]) -> None:
    assert read(text) == (model, features)


def test_a_wrong_answer_is_no_engine_that_works() -> None:
    import numpy as np

    doctor._require_right(np.full((1, 4, 6, 6), 27.0))
    with pytest.raises(ArithmeticError, match="a convolution of ones gives 26"):
        doctor._require_right(np.full((1, 4, 6, 6), 26.0))
    result = doctor.DoctorResult(engines={"torch": "ArithmeticError: wrong", "onnxruntime": "works"})
    assert result.ok
    assert not doctor.DoctorResult(engines={"torch": "ArithmeticError: wrong"}).ok


def test_a_home_is_a_whole_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    said = {"a": ["/home/ann/x", "/home/anna/x", "in /home/ann, 3", 7]}
    assert doctor._without_home(said) == {"a": ["~/x", "/home/anna/x", "in ~, 3", 7]}


def test_clean_removes_what_finetune_cached_but_not_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path))
    cuts = tmp_path / "cuts"
    cuts.mkdir()
    for name in ("a.h5", "b.h5", "c.h5.partial"):
        (cuts / name).write_bytes(bytes(1_000_000))
    with lock(cuts / "a.h5"):
        assert doctor.remove_cuts() == 2_000_000
    assert [path.name for path in cuts.glob("*.h5*") if not path.name.endswith(".lock")] == ["a.h5"]
    assert "cleaned      2.0 MB of activations" in doctor.DoctorResult(cleaned=2_000_000).summary()
