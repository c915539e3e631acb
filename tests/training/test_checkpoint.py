from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from nursery import Nursery
from pictures import write_photos
from torch import Tensor, nn

from pipeline.bases import Base, load_base
from pipeline.config import FinetuneSettings
from pipeline.errors import ModelError, OutputExistsError
from pipeline.files import digest_json
from pipeline.training.batches import Batch
from pipeline.training.checkpoint import RECORD, STATE, Checkpoint, Saved, refuse_no_place, stopped_request
from pipeline.training.loop import OPTIMIZERS, Classes, History, Trainer, train
from pipeline.training.network import Network, build_network, freeze
from pipeline.training.recipes import Case, resolve

KILLS = int(os.environ.get("PIPELINE_KILLS", "50"))
REQUEST: dict[str, Any] = {"settings": {"lr": 0.1, "train": ("head",)}, "images, labels or splits": "a"}


def state() -> Saved:
    """Tensors of the kinds that a training has."""
    drawn = torch.Generator().manual_seed(3)
    tensors = {
        "weights/head.weight": torch.randn((3, 5), generator=drawn),
        "weights/norm.num_batches_tracked": torch.tensor(7),
        "random/cpu": torch.arange(16, dtype=torch.uint8),
    }
    return Saved(3, tensors, {"best": 1, "rates": [0.1 + 0.2, 1e-300]})


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoint:
    checkpoint = Checkpoint(tmp_path / "M", REQUEST)
    checkpoint.write(state())
    return checkpoint


# --- the folder


def test_what_was_saved_is_read_to_the_bit(kept: Checkpoint) -> None:
    found = kept.read()
    assert found is not None
    assert (found.epoch, found.progress) == (3, state().progress)
    assert found.tensors.keys() == state().tensors.keys()
    for name, tensor in state().tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_it_is_beside_the_output_and_goes_without_a_trace(kept: Checkpoint, tmp_path: Path) -> None:
    assert [path.name for path in tmp_path.iterdir()] == ["M.training"]
    assert {path.name for path in kept.path.iterdir()} == {RECORD, STATE}
    kept.remove()
    assert not list(tmp_path.iterdir())
    assert kept.read() is None
    kept.remove()


def test_a_later_epoch_takes_its_place(kept: Checkpoint, tmp_path: Path) -> None:
    kept.write(Saved(4, {"weights/a": torch.zeros(1)}, {}))
    found = kept.read()
    assert found is not None
    assert (found.epoch, list(found.tensors)) == (4, ["weights/a"])
    assert [path.name for path in tmp_path.iterdir()] == ["M.training"]


OTHER = [
    ({"settings": {"lr": 0.2, "train": ["head"]}}, "with lr=0.1, not lr=0.2;"),
    ({"settings": {"train": ["head"]}}, "with lr=0.1, not its default;"),
    ({"settings": {**REQUEST["settings"], "seed": 7}}, "with the default of seed, not 7;"),
    ({"images, labels or splits": "b"}, "with other images, labels or splits;"),
]


@pytest.mark.parametrize(("changed", "message"), OTHER)
def test_another_training_is_refused_with_the_first_difference(
    kept: Checkpoint, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    other = Checkpoint(tmp_path / "M", {**REQUEST, **changed})
    with pytest.raises(OutputExistsError) as caught:
        other.read()
    assert "M.training is a training that was stopped after epoch 3, " + message in str(caught.value)
    assert "--force to begin anew" in str(caught.value)
    assert other.read(force=True) is None
    assert kept.read(force=True) is not None, "force goes on with its own training"


def test_workers_may_change(kept: Checkpoint, tmp_path: Path) -> None:
    settings = {**REQUEST["settings"], "workers": 3}
    assert Checkpoint(tmp_path / "M", {**REQUEST, "settings": settings}).read() is not None


@pytest.mark.parametrize("name", [RECORD, STATE])
def test_a_flipped_byte_is_noticed_wherever_it_is(
    kept: Checkpoint, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = kept.path / name
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        caplog.clear()
        assert kept.read() is None, f"byte {place}"
        assert str(path) in caplog.text
        assert "the training begins anew" in caplog.text
    path.write_bytes(whole)
    assert kept.read() is not None


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b"[" * 100_000, b'{"format_version": true}'])
def test_what_is_no_record_is_damaged(kept: Checkpoint, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (kept.path / RECORD).write_bytes(content)
    assert kept.read() is None
    assert f"{RECORD} " in caplog.text
    assert "; the training begins anew" in caplog.text


def test_a_missing_state_is_damage_and_a_short_one_too(kept: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    os.truncate(kept.path / STATE, 20)
    assert kept.read() is None
    (kept.path / STATE).unlink()
    assert kept.read() is None
    assert "state.safetensors is missing" in caplog.text


def test_the_request_of_a_stopped_training_can_be_asked_for(kept: Checkpoint, tmp_path: Path) -> None:
    found = stopped_request(tmp_path / "M")
    assert found is not None
    assert found["images, labels or splits"] == "a"
    (kept.path / RECORD).write_bytes(b"{")
    assert stopped_request(tmp_path / "M") is None
    assert stopped_request(tmp_path / "other") is None


def test_a_later_version_is_not_taken_for_damage(kept: Checkpoint) -> None:
    record = json.loads((kept.path / RECORD).read_bytes())
    later = {**record, "format_version": 2, "surprise": True, "checksum": None}
    (kept.path / RECORD).write_text(json.dumps({**later, "checksum": digest_json(later)}))
    with pytest.raises(OutputExistsError, match="is of another version"):
        kept.read(force=True)


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "M.training").mkdir()
    (tmp_path / "M.training" / "diary.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="it is not replaced even with --force"):
        refuse_no_place(tmp_path / "M", size=1)
    with pytest.raises(OutputExistsError):
        Checkpoint(tmp_path / "M", REQUEST).write(state())
    assert (tmp_path / "M.training" / "diary.txt").read_text() == "mine"


# --- the loop


class Rows:
    """Sixteen noisy images to train on, eight to judge by."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.pixels: NDArray[np.uint8] = rng.integers(0, 256, (24, 64, 64, 3)).astype(np.uint8)
        self.codes = np.arange(24) % 2

    def training(self, number: int) -> Iterator[Batch]:
        order = np.random.default_rng(number).permutation(16)
        for part in np.split(order, 4):
            yield self.pixels[part], self.codes[part]

    def validation(self) -> Iterator[Batch]:
        yield self.pixels[16:], self.codes[16:]


@pytest.fixture(scope="module")
def squeezenet() -> Base:
    return load_base("squeezenet1_1", "embedded")


def network_of(base: Base) -> Network:
    """A network whose head has dropout and batch norm before it, so that random states and buffers matter."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = build_network(base, ["avgpool"], "none", outputs=2)
    vars(network)["_modules"]["head"] = nn.Sequential(nn.BatchNorm1d(512), nn.Dropout(0.5), network.head)
    freeze(network, ["features.12"])
    return network


def fit(base: Base, options: dict[str, Any], **more: Any) -> tuple[History, dict[str, Tensor]]:
    network, rows = network_of(base), Rows()
    trainer = Trainer(
        network,
        Classes(),
        normalize=base.transform.normalize,
        device=torch.device("cpu"),
        clip=options.get("clip", 5.0),
    )
    settings = resolve(FinetuneSettings.of(options), Case(rows=16))
    history = train(trainer, rows.training, rows.validation, settings=settings, steps=4, **more)
    return history, dict(network.state_dict())


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_training_that_goes_on_ends_with_the_same_bits(optimizer: str, squeezenet: Base, tmp_path: Path) -> None:
    options = {"optimizer": optimizer, "lr": 0.003, "epochs": 3, "step": 1, "gamma": 0.5, "weight_decay": 0.01}
    assert_a_stop_changes_no_bit(options, squeezenet, tmp_path)


def test_nor_does_it_in_the_middle_of_a_cosine(squeezenet: Base, tmp_path: Path) -> None:
    """Rates of their own for each block, warm-up, and three epochs kept to be averaged."""
    options = {"lr": 0.003, "epochs": 3, "warmup": 0.5, "layer_decay": 0.5, "batch_size": 4}
    assert_a_stop_changes_no_bit(options, squeezenet, tmp_path)


def assert_a_stop_changes_no_bit(options: dict[str, Any], squeezenet: Base, tmp_path: Path) -> None:
    checkpoints = {number: Checkpoint(tmp_path / str(number), REQUEST) for number in (1, 2, 3)}
    history, whole = fit(squeezenet, options, keep=lambda saved: checkpoints[saved.epoch].write(saved))
    for number in (1, 3):
        found = checkpoints[number].read()
        assert found is not None
        again, weights = fit(squeezenet, options, saved=found)
        assert again.best == history.best
        assert list(again.weights) == list(history.weights)
        for epoch, state in history.weights.items():
            assert all(torch.equal(again.weights[epoch][name], tensor) for name, tensor in state.items())
        assert [(one.train, one.val, one.lr) for one in again.epochs] == [
            (one.train, one.val, one.lr) for one in history.epochs
        ]
        assert weights.keys() == whole.keys()
        for name, tensor in whole.items():
            assert torch.equal(weights[name], tensor), name


def test_a_checkpoint_of_another_network_is_refused(squeezenet: Base) -> None:
    saved: list[Saved] = []
    fit(squeezenet, {"epochs": 1}, keep=saved.append)
    fewer = {name: one for name, one in saved[0].tensors.items() if "running_mean" not in name}
    for tensors in (fewer, {**fewer, "other": torch.zeros(1)}):
        with pytest.raises(ModelError, match="does not fit this network"):
            fit(squeezenet, {"epochs": 1}, saved=Saved(1, tensors, saved[0].progress))


# --- kills of the command


TUNING = [
    "--base",
    "squeezenet1_1",
    "--weights",
    "embedded",
    "--size",
    "64",
    "--device",
    "cpu",
    "--workers",
    "1",
    "--json",
]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        made = Nursery()
    yield made
    made.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 6), ("val", 3)):
        for number, colour in enumerate(((200, 60, 40), (40, 60, 200))):
            write_photos(folder / split / "ab"[number], count, first_seed=100 * number, colour=colour)
    return folder


def command(photos: Path, output: Path, *more: str) -> list[str]:
    """Three epochs of a fire module, with chance in crops and flips."""
    return [
        "finetune",
        str(photos),
        "-o",
        str(output),
        "--recipe",
        "tutorial",
        "--train",
        "features.12",
        "--epochs",
        "3",
        "--json",
        *TUNING,
        *more,
    ]


def weights_of(model: Path) -> tuple[bytes, bytes]:
    return (model / "head.safetensors").read_bytes(), (model / "base.safetensors").read_bytes()


def assert_kills_change_nothing(nursery: Nursery, photos: Path, folder: Path, kills: int, dice: random.Random) -> None:
    """Kill a run once or more often, before a step on the disk or at any time; then let it end."""
    whole_folder = folder / "whole"
    whole = nursery.run(command(photos, whole_folder / "M"), watch=whole_folder)
    assert whole.status == 0, whole.said
    assert json.loads(whole.said)["resumed"] == 0
    assert [path.name for path in whole_folder.iterdir()] == ["M"]
    killed, resumed = 0, []
    while killed < kills:
        place = folder / f"{killed}"
        run = command(photos, place / "M")
        while killed < kills:
            if dice.random() < 0.3:
                end = nursery.run_killed_after(dice.uniform(0, whole.seconds), run, watch=place)
            else:
                end = nursery.run(run, watch=place, kill_at=dice.randrange(whole.steps))
            killed += end.killed
            if not end.killed or dice.random() < 0.6:
                break
        ended = nursery.run(run, watch=place)
        if ended.status == 1 and "exists already" in ended.said:  # it was killed after the model was there
            ended = nursery.run([*run, "--force"], watch=place)
        assert ended.status == 0, ended.said
        resumed.append(json.loads(ended.said)["resumed"])
        assert weights_of(place / "M") == weights_of(whole_folder / "M"), f"it went on after epoch {resumed[-1]}"
        assert [path.name for path in place.iterdir()] == ["M"]
        shutil.rmtree(place)
    print(f"{killed} kills, went on after epochs {resumed}, {whole.steps} steps on the disk")
    assert any(resumed)


def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(
    nursery: Nursery, photos: Path, tmp_path: Path
) -> None:
    whole = nursery.run(command(photos, tmp_path / "whole" / "M"), watch=tmp_path / "whole")
    assert whole.status == 0, whole.said
    run = command(photos, tmp_path / "M")
    assert nursery.run(run, watch=tmp_path, kill_at=whole.steps // 3).killed
    ended = nursery.run(run, watch=tmp_path)
    assert ended.status == 0, ended.said
    assert json.loads(ended.said)["resumed"] in (1, 2)
    assert weights_of(tmp_path / "M") == weights_of(tmp_path / "whole" / "M")
    assert {path.name for path in tmp_path.iterdir()} == {"M", "whole"}


def test_from_cached_activations_too(nursery: Nursery, photos: Path, tmp_path: Path) -> None:
    for name in ("first", "whole"):  # the second one finds them
        run = command(photos, tmp_path / name / "M", "--cache", "always")
        whole = nursery.run(run, watch=tmp_path / name)
        assert whole.status == 0, whole.said
    run = command(photos, tmp_path / "M", "--cache", "always")
    assert nursery.run(run, watch=tmp_path, kill_at=whole.steps // 3).killed
    ended = nursery.run(run, watch=tmp_path)
    assert ended.status == 0, ended.said
    assert json.loads(ended.said)["resumed"] in (1, 2, 3)
    assert json.loads(ended.said)["cached"]
    for name in ("first", "whole"):
        assert weights_of(tmp_path / "M") == weights_of(tmp_path / name / "M")


@pytest.mark.slow
def test_the_head_and_the_verdict_of_the_default_recipe_are_those_of_an_undisturbed_run(
    nursery: Nursery, photos: Path, tmp_path: Path
) -> None:
    """The head that is fitted on the spot is fitted again, and three epochs are at hand to be averaged."""
    more = ("--recipe", "default", "--lr", "0.001")
    whole = nursery.run(command(photos, tmp_path / "whole" / "M", *more), watch=tmp_path / "whole")
    assert whole.status == 0, whole.said
    run = command(photos, tmp_path / "M", *more)
    assert nursery.run(run, watch=tmp_path, kill_at=whole.steps // 2).killed
    ended = nursery.run(run, watch=tmp_path)
    assert ended.status == 0, ended.said
    found, wanted = json.loads(ended.said), json.loads(whole.said)
    assert found["resumed"] in (1, 2, 3)
    assert {**found["verdict"], "time_ratio": 0} == {**wanted["verdict"], "time_ratio": 0}
    for name in ("head.safetensors", "base.safetensors"):
        one, other = tmp_path / "M" / name, tmp_path / "whole" / "M" / name
        assert one.exists() == other.exists()
        assert not one.exists() or one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_many_kills_at_any_moment(nursery: Nursery, photos: Path, tmp_path: Path) -> None:
    assert_kills_change_nothing(nursery, photos, tmp_path, KILLS, random.Random(13))


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept_and_the_next_run_where_it_goes_on(photos: Path, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "pipeline", *command(photos, tmp_path / "M", "--epochs", "400")]
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr
        for line in child.stderr:
            if line.startswith("epoch 2:"):
                child.send_signal(signal.SIGINT)
                break
        last = child.stderr.read().splitlines()[-1]
    assert child.returncode == 130
    assert last == "stopped; the epochs that ended are kept, and the same command goes on after them"
    refused = subprocess.run([*run, "--epochs", "3"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "with epochs=400, not epochs=3; repeat its command to go on with it, or give --force" in refused.stderr
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr
        said = next(line for line in child.stderr if line.startswith("goes on after epoch "))
        child.send_signal(signal.SIGTERM)
        child.stderr.read()
    assert int(said.removeprefix("goes on after epoch ").split(",")[0]) >= 2
