"""Several processes that train one network: real ones, by torchrun, on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import photo
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from pipeline.commands.finetune import finetune
from pipeline.errors import SettingsError
from pipeline.training.processes import Team, dealt_back

SETTINGS = {"base": "squeezenet1_1", "weights": "embedded", "size": 64, "recipe": "tutorial", "train": "features.12"}
OPTIONS = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--rdzv-endpoint=127.0.0.1:0", "--nproc-per-node")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen pictures to train on, of which batches of four leave three, and five to judge by."""
    folder = tmp_path_factory.mktemp("photos")
    for part, counts in (("train", (8, 7)), ("val", (3, 2))):
        for kind, (count, tint) in enumerate(zip(counts, ((200, 120, 40), (40, 120, 200)), strict=True)):
            (folder / part / "ab"[kind]).mkdir(parents=True)
            for number in range(count):
                picture = photo(number + 100 * kind + 1000 * (part == "val"), (80, 64))
                tinted = Image.blend(picture, Image.new("RGB", (80, 64), tint), 0.25)
                tinted.save(folder / part / "ab"[kind] / f"{number}.png")
    return folder


def torchrun(count: int, *arguments: str | Path, stderr: Path | None = None) -> subprocess.Popen[str]:
    """`pipeline finetune` in so many processes."""
    command = [sys.executable, *TORCHRUN, str(count), "-m", "pipeline", "finetune", *map(str, arguments)]
    with Path(os.devnull if stderr is None else stderr).open("w") as errors:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE if stderr is None else errors, text=True
        )


def require_same(one: Path, other: Path) -> None:
    """The same training within rounding: losses of all epochs, and weights."""
    epochs = [json.loads((model / "metrics.json").read_text())["epochs"] for model in (one, other)]
    assert len(epochs[0]) == len(epochs[1])
    for mine, theirs in zip(*epochs, strict=True):
        for name in set(mine) - {"seconds"}:
            assert mine[name] == pytest.approx(theirs[name], abs=1e-5), name
    for file in ("head.safetensors", "base.safetensors"):
        tensors = [load_file(model / file) for model in (one, other)]
        for name, tensor in tensors[0].items():
            torch.testing.assert_close(tensor, tensors[1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_take_the_steps_of_one(source: Path, tmp_path: Path, count: int) -> None:
    cached = {"cache": "always", "views": 2} if count == 3 else {"cache": "never"}
    alone = finetune(source, tmp_path / "one", **SETTINGS, epochs=2, class_weight="balanced", **cached)
    options = [word for name, value in cached.items() for word in (f"--{name}", str(value))]
    more = [*OPTIONS, "--epochs", "2", "--class-weight", "balanced", *options]
    running = torchrun(count, source, "-o", tmp_path / "several", *more, "--json")
    said, told = running.communicate(timeout=300)
    assert running.returncode == 0, told
    result = json.loads(said)
    for name in ("accuracy", "log_loss"):
        assert result["metrics"]["val"][name] == pytest.approx(alone.metrics["val"][name], abs=1e-5)
    assert told.count("epoch 1: ") == 1, "the first process speaks alone"
    require_same(alone.model, tmp_path / "several")


@pytest.mark.slow
def test_the_kill_of_one_process_ends_all_and_another_number_goes_on(source: Path, tmp_path: Path) -> None:
    options = [source, *OPTIONS, "--epochs", "5", "--cache", "never", "-o"]
    errors = tmp_path / "stderr"
    running = torchrun(3, *options, tmp_path / "killed", stderr=errors)
    while "epoch 2: " not in errors.read_text():
        assert running.poll() is None, errors.read_text()
        time.sleep(0.05)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    started = time.monotonic()
    running.communicate(timeout=60)
    assert running.returncode != 0
    assert time.monotonic() - started < 20
    ours = [line for line in errors.read_text().splitlines() if line.startswith(("error: ", "stopped; "))]
    assert len(ours) == 1, ours
    assert "the epochs that ended are kept" in ours[0]
    again = torchrun(2, *options, tmp_path / "killed")
    _, told = again.communicate(timeout=300)
    assert again.returncode == 0, told
    assert "goes on after epoch" in told
    whole = finetune(source, tmp_path / "whole", **SETTINGS, epochs=5, cache="never")
    require_same(whole.model, tmp_path / "killed")


@pytest.mark.slow
def test_an_error_of_all_is_one_line(source: Path, tmp_path: Path) -> None:
    running = torchrun(2, source, *OPTIONS, "--batch-size", "1", "-o", tmp_path / "none")
    _, told = running.communicate(timeout=300)
    assert running.returncode != 0
    ours = [line for line in told.splitlines() if line.startswith(("error: ", "stopped; "))]
    assert ours == ["error: 2 processes part batches of 1 of 15 training rows; take fewer processes"]


def test_one_process_parts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    network = nn.Linear(2, 1)
    with Team.of_environment() as team:
        assert (team.rank, team.count, team.is_first) == (0, 1, True)
        assert team.share(np.arange(5)).tolist() == [0, 1, 2, 3, 4]
        assert team.weight(0.3) == 1
        assert team.spread(network, torch.device("cpu")) is network
        assert team.in_turn(lambda: team.first(lambda: 7)) == 7


def test_every_row_of_a_batch_is_in_one_process() -> None:
    for rows in range(9):
        shares = [Team(rank, 4).share(np.arange(rows)).tolist() for rank in range(4)]
        assert [row for share in shares for row in share] == list(range(rows))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    batches = [list(range(rank, 7, 3)) for rank in range(3)]
    assert dealt_back(batches) == list(range(7))


def test_what_several_processes_would_do_otherwise_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    Team().refuse(network, batch_size=1, rows=1)
    with pytest.raises(SettingsError, match=r"batch norm that learns .* give --freeze-norm, or take one process"):
        Team(0, 2).refuse(network, batch_size=4, rows=10)
    with pytest.raises(SettingsError, match="4 processes part batches of 3 of 10 training rows"):
        Team(0, 4).refuse(nn.Linear(2, 1), batch_size=3, rows=10)
