"""Every command that writes is killed at any moment, and meets a full disk at any moment.

What is there afterwards is the old or the new, never a part, and the same command goes on. Half of the kills come
before a step on the disk, chosen among all steps of an undisturbed run (every third of them with half of a write done),
half at a random time. PIPELINE_KILLS says how many kills, and how many sizes of the disk, there are for each command.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from nursery import End, Nursery
from pictures import write_photos

from pipeline.commands.extract import extract
from pipeline.commands.fit_head import fit_head
from pipeline.errors import ModelError
from pipeline.models.model import load_model
from pipeline.store import FeatureStore

KILLS = int(os.environ.get("PIPELINE_KILLS", "2"))
BASE: dict[str, Any] = {"base": "squeezenet1_1", "weights": "embedded", "size": 64, "batch_size": 1}
NAMED = ["--base", "squeezenet1_1", "--weights", "embedded", "--size", "64"]
#: One image at a time: features are the same to the bit whichever images a run that goes on has before it.
FLAGS = [*NAMED, "--batch-size", "1"]
TUNING = ["--train", "head", "--epochs", "1", "--augment", "none", *NAMED]

State = Any


@dataclass(frozen=True)
class Case:
    """A command, run in a copy of the folder `template`; `state` reads what it makes at `output`."""

    template: str
    arguments: tuple[str, ...]
    output: str
    state: Callable[[Path], State]


@dataclass(frozen=True, eq=False)
class Shares:
    """What a head says, equal to 1e-4: training in another process may round otherwise."""

    values: NDArray[np.floating[Any]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shares) and np.allclose(self.values, other.values, rtol=0, atol=1e-4)

    __hash__ = None  # type: ignore[assignment]


def store_state(path: Path) -> State:
    """All that a finished feature file says of its rows; None where there is none."""
    if not path.exists():
        return None
    with FeatureStore.open(path) as store:
        features = {layer: store.features(layer).tobytes() for layer in store.layers}
        targets = {name: target.values.tobytes() for name, target in store.targets.items()}
        return store.ids, store.statuses.tobytes(), store.sha256.tobytes(), features, targets, store.recipe


def model_state(folder: Path) -> State:
    """What a model answers; None where there is none. Opening comes first: it may finish what a kill left undone."""
    try:
        model = load_model(folder)
    except ModelError:
        if folder.exists():
            raise
        return None
    numbers = np.random.default_rng(13).random((20, 512), dtype=np.float32)
    return model.record.head["name"], Shares(model.head.predict_proba(numbers)), model.base.digest


def table_state(path: Path) -> State:
    """The text of a table without the place it is in; None where there is none."""
    return path.read_text().replace(str(path.parent), "") if path.exists() else None


CASES = {
    "extract": Case("photos", ("extract", "photos", "-o", "F.h5", *FLAGS), "F.h5", store_state),
    "update": Case("store", ("extract", "photos", "-o", "F.h5", *FLAGS), "F.h5", store_state),
    "force": Case("other store", ("extract", "photos", "-o", "F.h5", "--force", *FLAGS), "F.h5", store_state),
    "part": Case(
        "photos", ("extract", "photos", "-o", "parts/1.h5", "--part", "1/2", *FLAGS), "parts/1.h5", store_state
    ),
    "merge": Case("parts", ("merge", "parts", "-o", "whole.h5"), "whole.h5", store_state),
    "fit-head": Case("store", ("fit-head", "F.h5", "-o", "M"), "M", model_state),
    "fit-head --force": Case("model", ("fit-head", "F.h5", "-o", "M", "--head", "svm", "--force"), "M", model_state),
    "finetune": Case("photos", ("finetune", "photos", "-o", "M", *TUNING), "M", model_state),
    "finetune --force": Case("model", ("finetune", "photos", "-o", "M", "--force", *TUNING), "M", model_state),
    "predict --csv": Case("model", ("predict", "M", "photos", "--csv", "answers.csv"), "answers.csv", table_state),
}


#: Those that the fast part of the tests tries.
FAST = ("update", "merge", "fit-head --force", "predict --csv")
every_command = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders that commands begin in."""
    root = tmp_path_factory.mktemp("templates")
    photos, store, other, parts, model = (root / name for name in ("photos", "store", "other", "parts", "model"))
    for split, count in (("train", 6), ("val", 2)):
        for number, colour in enumerate(((200, 60, 40), (40, 60, 200))):
            write_photos(photos / "photos" / split / "ab"[number], count, first_seed=100 * number, colour=colour)
    shutil.copytree(photos, store)
    extract(store / "photos", store / "F.h5", **BASE)
    shutil.copytree(store, model)
    fit_head(model / "F.h5", model / "M", head="linear")
    for part in (1, 2):
        extract(photos / "photos", parts / "parts" / f"{part}.h5", part=f"{part}/2", **BASE)
    shutil.copytree(photos, other)
    extract(other / "photos", other / "F.h5", layer=("features.3",), pool="avg", **BASE)
    write_photos(store / "photos/train/a", 1, first_seed=999)  # one file has changed since
    write_photos(store / "photos/train/c", 3, first_seed=500)
    return {"photos": photos, "store": store, "other store": other, "parts": parts, "model": model}


def names(folder: Path) -> set[str]:
    """Everything in a folder but the photos."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {name for name in found if not name.startswith("photos")}


def committed(folder: Path) -> int:
    """Final rows of an unfinished feature file."""
    partial = next(folder.rglob("*.h5.partial"), None)
    if partial is None:
        return 0
    with h5py.File(partial) as file:
        return int(np.count_nonzero(file["status"][:]))


def kill(nursery: Nursery, case: Case, folder: Path, whole: End, dice: random.Random) -> End:
    """One run of the command in `folder`, killed somewhere."""
    if dice.random() < 0.5:
        return nursery.run_killed_after(dice.uniform(0, whole.seconds), in_folder(case, folder), watch=folder)
    step = dice.randrange(whole.steps)
    return nursery.run(in_folder(case, folder), watch=folder, kill_at=step, torn=dice.random() < 0.3)


def in_folder(case: Case, folder: Path) -> list[str]:
    """The command with its paths below `folder`, so that children need not change theirs."""
    paths = {"photos", "F.h5", "M", "parts", "parts/1.h5", "whole.h5", "answers.csv"}
    return [str(folder / word) if word in paths else word for word in case.arguments] + ["--json"]


@every_command
def test_a_kill_leaves_the_old_or_the_new_and_the_command_goes_on(
    name: str, nursery: Nursery, templates: dict[str, Path], tmp_path: Path
) -> None:
    case, dice = CASES[name], random.Random(name)
    whole_folder = Path(shutil.copytree(templates[case.template], tmp_path / "whole"))
    old = case.state(whole_folder / case.output)
    whole = nursery.run(in_folder(case, whole_folder), watch=whole_folder)
    assert whole.status == 0, whole.said
    new, listed = case.state(whole_folder / case.output), names(whole_folder)
    assert new is not None
    assert new != old
    killed = 0
    for number in range(KILLS):
        folder = Path(shutil.copytree(templates[case.template], tmp_path / f"{number}"))
        end = kill(nursery, case, folder, whole, dice)
        assert end.killed or end.status == 0, end
        killed += end.killed
        assert_old_or_new(case, folder, old, new)
        done = committed(folder)
        again = run_again(nursery, case, folder)
        assert again.status == 0, again.said
        assert case.state(folder / case.output) == new
        assert names(folder) == listed
        if case.state is store_state and "--force" not in case.arguments and case.template != "parts":
            said = json.loads(again.said)
            assert said["computed"] <= said["rows"] - done
        shutil.rmtree(folder)
    print(f"{name}: {KILLS} runs, {killed} killed, {whole.steps} steps on the disk")
    assert killed


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, whose size `mount` changes."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or mount(place, size=1 << 26).returncode:
        pytest.skip("mounting needs root and its permission")
    yield place
    subprocess.run(["umount", place], check=True)


def mount(place: Path, *, size: int, remount: bool = False) -> subprocess.CompletedProcess[bytes]:
    """Mount a file system in memory of so many bytes, or give it another size."""
    options = f"size={size}" + ",remount" * remount
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, check=remount)


@every_command
def test_a_full_disk_leaves_the_old_or_the_new_and_the_command_goes_on(
    name: str, nursery: Nursery, templates: dict[str, Path], disk: Path
) -> None:
    case, dice = CASES[name], random.Random(name)
    folder = disk / "desk"
    shutil.copytree(templates[case.template], folder)
    old, before = case.state(folder / case.output), used(disk)
    whole = nursery.run(in_folder(case, folder), watch=folder)
    assert whole.status == 0, whole.said
    new, listed, grown = case.state(folder / case.output), names(folder), used(disk) - before
    refused = 0
    for number in range(KILLS):
        shutil.rmtree(folder)
        shutil.copytree(templates[case.template], folder)
        room = 0 if number == 0 else dice.randrange(max(grown, PAGE))
        mount(disk, size=used(disk) // PAGE * PAGE + room // PAGE * PAGE, remount=True)
        end = nursery.run(in_folder(case, folder), watch=folder)
        assert end.status in (0, 1), end
        if end.status == 1:
            refused += 1
            [error] = [line for line in end.said.splitlines() if line.startswith("error: ")]
            assert str(disk) in error, "the message names the file"
        assert_old_or_new(case, folder, old, new)
        mount(disk, size=1 << 26, remount=True)
        assert run_again(nursery, case, folder).status == 0
        assert case.state(folder / case.output) == new
        assert names(folder) == listed
    print(f"{name}: {KILLS} sizes of the disk, {refused} too small, {grown} bytes are needed")
    assert refused


#: Bytes that a file system in memory deals in.
PAGE = 4096


def used(disk: Path) -> int:
    """Bytes that are taken."""
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def run_again(nursery: Nursery, case: Case, folder: Path) -> End:
    """The same command; with --force where it asks for that, since the killed run had finished or begun a file."""
    end = nursery.run(in_folder(case, folder), watch=folder)
    if end.status == 1 and "--force" in end.said:
        end = nursery.run([*in_folder(case, folder), "--force"], watch=folder)
    return end


def assert_old_or_new(case: Case, folder: Path, old: State, new: State) -> None:
    """Never a part of either, and never nothing where something was."""
    found = case.state(folder / case.output)
    assert found in (old, new)
