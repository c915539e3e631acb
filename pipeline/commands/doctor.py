"""`pipeline doctor`: the machine and what is installed, for bug reports. One check that fails stops no other.

What loads foreign libraries runs in a process of its own: a library that does not fit the CPU ends its process.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.commands.results import Result
from pipeline.devices import cores
from pipeline.engines import openvino_runner
from pipeline.errors import StoreLockedError
from pipeline.files import refuse_locked
from pipeline.text import plural
from pipeline.versions import versions

PACKAGE = "cached-feature-pipeline"
CPUINFO = Path("/proc/cpuinfo")
#: What the kernels of torch, ONNX Runtime and the BLAS choose by, as Linux calls it.
FEATURES = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve", "sme"),
)
WORKS = "works"
SECONDS_TO_ANSWER = 120


@dataclass
class DoctorResult(Result):
    """The findings; `failed` has the reason for each check that was not possible, `cleaned` the bytes removed.

    `engines` and `devices` map a name to "works", or to what went wrong. Sizes are bytes. The home folder is ``~``.
    """

    versions: dict[str, str] = field(default_factory=dict)
    system: dict[str, Any] = field(default_factory=dict)
    blas: list[dict[str, Any]] = field(default_factory=list)
    engines: dict[str, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    caches: dict[str, dict[str, Any]] = field(default_factory=dict)
    free: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    cleaned: int | None = None

    @property
    def ok(self) -> bool:
        """True where an engine works."""
        return WORKS in self.engines.values()

    def to_json(self) -> dict[str, Any]:
        """Return the fields, with the verdict in front."""
        return {"ok": self.ok, **super().to_json()}

    def summary(self) -> str:
        """Return a line a check, to be pasted."""
        system = self.system
        lines = {"versions": ", ".join(f"{name} {version}" for name, version in self.versions.items())}
        if system:
            lines["system"] = system["platform"]
            lines["cpu"] = f"{system['cpu']}, {system['cores']} of {plural(system['cores_of_machine'], 'core')}"
            lines["features"] = " ".join(system["features"]) or "unknown"
        lines["blas"] = "; ".join(_blas_line(one) for one in self.blas)
        lines["engines"] = "; ".join(f"{name}: {state}" for name, state in self.engines.items())
        lines["devices"] = "; ".join(f"{name}: {state}" for name, state in self.devices.items())
        lines |= {name: _cache_line(cache) for name, cache in self.caches.items()}
        lines["free"] = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in self.free.items())
        lines |= {f"no {name}": reason for name, reason in self.failed.items()}
        if self.cleaned is not None:
            lines["cleaned"] = f"{self.cleaned / 1e6:.1f} MB of activations that finetune had cached"
        return "\n".join(f"{name:<12} {line}" for name, line in lines.items() if line)


def doctor(*, clean: bool = False) -> DoctorResult:
    """Look at the machine and at what is installed, and run each engine once; nothing is downloaded or kept.

    `clean` removes the activations that `finetune` has cached, but for those that are being written.

    >>> doctor().ok  # doctest: +SKIP
    True
    """
    result = DoctorResult(cleaned=remove_cuts() if clean else None)
    probes = [name for name in PROBES if name != "openvino" or openvino_runner.is_installed()]
    replies = {name: _reply(check) for name, check in CHECKS.items()} | _replies_of_processes(probes)
    for name, reply in _without_home(replies).items():
        if name in ENGINES:
            result.engines[name] = reply.get("failed", WORKS)
        elif "failed" in reply:
            result.failed[name] = reply["failed"]
        for part, found in reply.get("found", {}).items():
            if isinstance(found, dict):
                getattr(result, part).update(found)
            else:
                setattr(result, part, found)
    return result


def _reply(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a check found, or why it failed."""
    try:
        return {"found": check()}
    except Exception as error:  # noqa: BLE001 - the reason is what is asked for, whatever it is
        return {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}


def _replies_of_processes(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Ask `PROBES` all at once, each in a process that may end as it likes."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with ExitStack() as running:
        started = {}
        for name in names:
            code = f"from pipeline.commands.doctor import answer; answer({name!r})"
            command = [sys.executable, "-P", "-c", code]
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
            )
            running.enter_context(process)
            running.callback(process.kill)
            started[name] = process
        return {name: _heard(process) for name, process in started.items()}


def answer(name: str) -> None:
    """Print what the probe called `name` replies, as the last line of a process of its own."""
    print("\n" + json.dumps(_reply(PROBES[name])))


def _heard(process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        out, err = process.communicate(timeout=SECONDS_TO_ANSWER)
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer within {SECONDS_TO_ANSWER} seconds"}
    if process.returncode < 0:
        return {"failed": f"its process ended with {signal.Signals(-process.returncode).name}"}
    if process.returncode > 0:
        return {"failed": (err.strip().splitlines() or [f"exit status {process.returncode}"])[-1]}
    reply: dict[str, Any] = json.loads(out.splitlines()[-1])
    return reply


def _without_home(value: Any) -> Any:
    """Put ``~`` for the home folder, whose name is often that of a person."""
    if isinstance(value, Mapping):
        return {name: _without_home(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_home(one) for one in value]
    if isinstance(value, str):
        home = Path("~").expanduser()  # itself where there is none
        for spelling in {str(home), str(home.resolve())} - {"/"}:
            value = re.sub(rf"{re.escape(spelling)}(?![\w.-])", "~", value)
    return value


def _installed() -> dict[str, Any]:
    required = [one.partition(";") for one in metadata.requires(PACKAGE) or ()]
    names = [re.split(r"[^\w.-]", what, maxsplit=1)[0] for what, _, when in required if "test" not in when]
    return {"versions": versions(names)}


def _system() -> dict[str, Any]:
    model, features = _cpu()
    counted = {"cores": cores(), "cores_of_machine": os.cpu_count()}
    return {"system": {"platform": platform.platform(), "cpu": model, "features": features, **counted}}


def _cpu() -> tuple[str, list[str]]:
    """Model and features of the CPU; "unknown" and none where the system does not tell."""
    if sys.platform == "darwin":
        command = ["sysctl", "machdep.cpu.brand_string", "hw.optional"]
        return read_sysctl(subprocess.run(command, capture_output=True, text=True, timeout=10).stdout)
    return read_cpuinfo(CPUINFO.read_text()) if CPUINFO.exists() else ("unknown", [])


def read_cpuinfo(text: str) -> tuple[str, list[str]]:
    """Model and features of the first CPU in Linux's /proc/cpuinfo."""
    entries = [line.partition(":") for line in text.splitlines()]
    told = {name.strip(): value.strip() for name, _, value in reversed(entries)}
    flags = told.get("flags", told.get("Features", "")).split()
    return told.get("model name", "unknown"), [one for one in FEATURES if one in flags]


def read_sysctl(text: str) -> tuple[str, list[str]]:
    """Model and features in what macOS's sysctl prints, by the names of Linux: FEAT_BF16 is bf16, avx2_0 is avx2."""
    told = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    present = {name.rpartition(".")[2] for name, value in told.items() if value == "1"}
    flags = {name.removeprefix("FEAT_").removesuffix("_0").lower() for name in present}
    flags |= {linux for linux, other in (("asimd", "advsimd"), ("asimddp", "dotprod")) if other in flags}
    return told.get("machdep.cpu.brand_string", "unknown"), [one for one in FEATURES if one in flags]


def _folder() -> dict[str, Any]:
    return {"free": {"folder": shutil.disk_usage(".").free}}


def _torch() -> dict[str, Any]:
    """Run a convolution on the CPU, which must be right; then on each other device, where any failure is its state."""
    import torch

    from pipeline.devices import devices_of_kind

    def convolve(device: str) -> dict[str, Any]:
        image, weights = torch.ones(1, 3, 8, 8, device=device), torch.ones(4, 3, 3, 3, device=device)
        _require_right(torch.nn.functional.conv2d(image, weights).cpu().numpy())
        return {}

    convolve("cpu")
    others = devices_of_kind("cuda") + (devices_of_kind("mps") if torch.backends.mps.is_available() else [])
    states = {"cpu": WORKS}
    for device in others:
        called = torch.cuda.get_device_name(device) if device.startswith("cuda") else "Apple GPU"
        reply = _reply(partial(convolve, device))
        states[f"{device} ({called})"] = reply.get("failed", WORKS)
    return {"devices": states}


def _onnxruntime() -> dict[str, Any]:
    """Run the same convolution, as a graph."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(_convolution(), providers=["CPUExecutionProvider"])
    _require_right(session.run(None, {"x": np.ones((1, 3, 8, 8), dtype=np.float32)})[0])
    return {}


def _openvino() -> dict[str, Any]:
    """Run the same graph."""
    import numpy as np

    request = openvino_runner.compiled(_convolution(), cores=1, streams=1, precision="fp32").create_infer_request()
    _require_right(request.infer([np.ones((1, 3, 8, 8), dtype=np.float32)])[0])
    return {}


def _convolution() -> bytes:
    from onnx import TensorProto, helper

    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 3, 3, 3], [1.0] * 108)
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "check", [given], [made], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def _require_right(found: Any) -> None:
    """Each of the 4 x 6 x 6 sums has 3 x 3 x 3 ones."""
    if found.shape != (1, 4, 6, 6) or not (found == 27).all():
        raise ArithmeticError(f"a convolution of ones gives {found.ravel()[0]}, not 27")


def _blas() -> dict[str, Any]:
    import scipy.linalg  # noqa: F401 - it brings a BLAS of its own, beside that of NumPy
    from threadpoolctl import threadpool_info

    kept = ("user_api", "internal_api", "version", "architecture", "num_threads", "filepath")
    return {"blas": [{name: one[name] for name in kept if name in one} for one in threadpool_info()]}


def _caches() -> dict[str, Any]:
    import torch

    from pipeline.engines.cache import CUTS, cache_folder
    from pipeline.engines.memory import free

    ours = cache_folder()
    folders = {"graphs": ours / "onnx", "batch sizes": ours / "sizes", "cuts": ours / CUTS}
    folders["checkpoints"] = Path(torch.hub.get_dir()) / "checkpoints"
    there = next(folder for folder in (ours, *ours.parents) if folder.exists())
    room = {"memory": free("cpu"), "caches": shutil.disk_usage(there).free}
    return {"caches": {name: _measured(folder) for name, folder in folders.items()}, "free": room}


def remove_cuts() -> int:
    """Remove the cut files that nobody writes; return their bytes."""
    from pipeline.engines.cache import CUTS, cache_folder

    removed = 0
    for path in sorted((cache_folder() / CUTS).glob("*.h5*")):
        with suppress(StoreLockedError, OSError):
            refuse_locked(path.with_name(path.name.partition(".h5")[0] + ".h5"))
            size = path.stat().st_size
            path.unlink()
            removed += size
    return removed


def _measured(folder: Path) -> dict[str, Any]:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"path": str(folder), "files": len(sizes), "bytes": sum(sizes)}


def _blas_line(one: Mapping[str, Any]) -> str:
    words = [one.get("internal_api"), one.get("version"), one.get("architecture")]
    where = Path(one["filepath"]).parent.name
    return " ".join(word for word in words if word) + f" in {where}, {plural(one['num_threads'], 'thread')}"


def _cache_line(cache: Mapping[str, Any]) -> str:
    return f"{cache['path']}: {plural(cache['files'], 'file')}, {cache['bytes'] / 1e6:.1f} MB"


CHECKS = {"versions": _installed, "system": _system, "folder": _folder}
PROBES = {"torch": _torch, "onnxruntime": _onnxruntime, "openvino": _openvino, "blas": _blas, "caches": _caches}
ENGINES = ("torch", "onnxruntime", "openvino")
