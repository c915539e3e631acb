"""Model folders that rotted or were forged: an error of one line, or the very answers that were saved; never others.

PIPELINE_FLIPS and PIPELINE_FORGERIES say how many damages and forgeries the slow tests try.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Trained

from pipeline.artifact import checksum, load_model
from pipeline.description import info
from pipeline.errors import ModelError
from pipeline.files import digest_bytes
from pipeline.fitting import fit_head

FLIPS = int(os.environ.get("PIPELINE_FLIPS", "1000"))
FORGERIES = int(os.environ.get("PIPELINE_FORGERIES", "500"))
FEATURES = np.random.default_rng(13).random((8, 512), dtype=np.float32)

Dice = random.Random
Content = dict[str, Any]


@pytest.fixture(scope="module")
def models(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each kind of head; a test may change them and has to put them back."""
    root = tmp_path_factory.mktemp("models")
    made = {name: fit_head(trained.store, root / name, head=name).model for name in ("ridge", "svm", "knn", "mlp")}
    return {**made, "linear": Path(shutil.copytree(trained.linear, root / "linear"))}


def answers(folder: Path) -> str:
    return json.dumps(load_model(folder).answers(FEATURES))


def flip(folder: Path, name: str, dice: Dice, count: int) -> int:
    """Flip one bit at `count` places of a file, one at a time; how many went by without changing an answer."""
    path, right, unnoticed = folder / name, answers(folder), 0
    content = path.read_bytes()
    try:
        for _ in range(count):
            damaged = bytearray(content)
            damaged[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            path.write_bytes(damaged)
            try:
                found = answers(folder)
            except ModelError as error:
                assert "\n" not in str(error)  # noqa: PT017 (most, not all, of them are noticed)
                continue
            assert found == right
            unnoticed += 1
    finally:
        path.write_bytes(content)
    return unnoticed


@pytest.mark.parametrize("head", ["linear", "ridge", "svm", "knn", "mlp"])
def test_one_wrong_bit_is_no_wrong_answer(models: dict[str, Path], head: str) -> None:
    dice = Dice(head)
    (weights,) = models[head].glob("head.*")
    assert flip(models[head], weights.name, dice, 60) == 0
    flip(models[head], "model.json", dice, 60)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "ridge", "svm", "knn", "mlp"])
def test_a_thousand_wrong_bits_are_no_wrong_answer(models: dict[str, Path], head: str) -> None:
    dice = Dice(head + " for long")
    (weights,) = models[head].glob("head.*")
    assert flip(models[head], weights.name, dice, FLIPS) == 0
    flip(models[head], "model.json", dice, FLIPS)


def test_heads_that_changed_places_and_cut_files_are_noticed(models: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["linear"], tmp_path / "m"))
    shutil.copy(models["ridge"] / "head.safetensors", folder / "head.safetensors")
    for show in load_model, info:
        with pytest.raises(ModelError, match=r"head\.safetensors is not what was written; restore the folder"):
            show(folder)
    content = (models["linear"] / "head.safetensors").read_bytes()
    for length in (0, 7, len(content) - 1):
        (folder / "head.safetensors").write_bytes(content[:length])
        with pytest.raises(ModelError, match="is not what was written"):
            load_model(folder)
    (folder / "head.safetensors").unlink()
    (folder / "head.safetensors").symlink_to(models["linear"] / "head.safetensors")
    assert answers(folder) == answers(models["linear"])


def test_a_checksum_that_is_taken_away_is_missed(models: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["linear"], tmp_path / "m"))
    content = json.loads((folder / "model.json").read_text())
    for gone in ("files", "checksum"):
        (folder / "model.json").write_text(json.dumps({name: content[name] for name in content if name != gone}))
        with pytest.raises(ModelError, match=r"model\.json is (damaged|not what was written)"):
            load_model(folder)


# --- forged: the checksums fit, the content does not


def resign(folder: Path, content: Content) -> None:
    """What a forger does: every checksum is that of what is there."""
    for name in content.get("files") or ():
        path = folder / name
        if path.is_file() and path.stat().st_size < 1 << 24:
            data = path.read_bytes()
            content["files"][name] = {"size": len(data), "sha256": digest_bytes(data).hex()}
    content["checksum"] = checksum(content)
    (folder / "model.json").write_text(json.dumps(content))


def _places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in inner for place in _places(value, (*path, key)))]


STRANGE: tuple[Any, ...] = (
    *(None, True, 0, -1, 10**12, 10**30, 1e308, float("nan"), float("inf"), "", "\ud800", "\x1b[2J", "../../etc"),
    *([], {}, [[]], {"": None}, ["x"] * 1000, "x" * 10**5, 0.5, "none", "classes", "numbers", 2, [8192, 8192]),
)


def change_a_value(folder: Path, content: Content, dice: Dice) -> None:
    """Some value of model.json is another one, or is gone."""
    *way, last = dice.choice([place for place in _places(content) if place and place[0] not in ("metrics", "checksum")])
    inner: Any = content
    for key in way:
        inner = inner[key]
    if dice.random() < 0.2 and isinstance(inner, dict):
        del inner[last]
    else:
        inner[last] = dice.choice(STRANGE)


def change_an_array(folder: Path, content: Content, dice: Dice) -> None:
    """Some array of the head has another shape, type or number."""
    from safetensors.numpy import load_file, save_file

    path = folder / "head.safetensors"
    arrays = load_file(path)
    name = dice.choice(sorted(arrays))
    array = arrays[name]
    changes: list[Callable[[], Any]] = [
        lambda: array[:-1] if array.ndim else array,
        lambda: array.ravel(),
        lambda: array.astype(np.float16),
        lambda: array.astype(np.int64),
        lambda: np.full_like(array, np.nan) if array.dtype.kind == "f" else array - 10**9,
        lambda: np.full_like(array, np.inf) if array.dtype.kind == "f" else array + 10**9,
        lambda: np.zeros((0, *array.shape[1:]), array.dtype),
        lambda: np.zeros((*array.shape, 3), array.dtype),
        lambda: np.concatenate([array, array]) if array.ndim else array,
    ]
    arrays[name] = np.ascontiguousarray(dice.choice(changes)())
    if dice.random() < 0.1:
        del arrays[name]
    save_file(arrays, path)


def change_a_file(folder: Path, content: Content, dice: Dice) -> None:
    """Some file of the head is none: a pipe, a device, a folder, a link to itself, noise, an endless header."""
    path = folder / "head.safetensors"
    path.unlink()
    kinds: list[Callable[[], Any]] = [
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path.name),
        path.mkdir,
        lambda: path.write_bytes(dice.randbytes(dice.randrange(1000))),
        lambda: path.write_bytes((10**9).to_bytes(8, "little") + b"{" * 1000),
        lambda: path.write_bytes((2000).to_bytes(8, "little") + b'{"a":' * 400),
        lambda: None,
    ]
    dice.choice(kinds)()


def change_the_record(folder: Path, content: Content, dice: Dice) -> None:
    """model.json itself is none, or none that can be read."""
    path = folder / "model.json"
    path.unlink()
    kinds: list[Callable[[], Any]] = [
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        path.mkdir,
        lambda: path.write_text("[" * 10**6),
        lambda: path.write_text('{"a":' * 500 + "1" + "}" * 500),
        lambda: path.write_text("9" * 10**6),
        lambda: path.write_text("[" + "[]," * 10**7 + "[]]"),
        lambda: path.open("wb").truncate(250 << 20),
        lambda: path.write_bytes(dice.randbytes(1000)),
    ]
    dice.choice(kinds)()


FORGE = (change_a_value, change_a_value, change_an_array, change_an_array, change_a_file, change_the_record)

#: Opens one folder after the other; prints a line for each: an error's class, or what it answers.
PROGRAM = """
import json, resource, sys
import numpy as np
from pipeline.artifact import load_model
from pipeline.description import info
from pipeline.errors import PipelineError
from pipeline.prediction import predict
from pipeline.evaluation import evaluate
image, store = sys.argv[1:3]
for folder in sys.argv[3:]:
    for ask in (lambda: info(folder).summary(), lambda: predict(folder, image).predictions,
                lambda: evaluate(folder, store).metrics):
        try:
            said = ask()
            ok = "nan" not in json.dumps(said).lower() and "error" not in str(said)[:80]
            print(folder, "answered" if ok else f"WRONG {said}"[:300])
        except PipelineError as error:
            print(folder, "refused", "" if "\\n" not in str(error) else "IN SEVERAL LINES")
        except Exception as error:
            print(folder, "TRACEBACK", type(error).__name__, str(error)[:200].replace("\\n", " "))
print("memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def forge(models: dict[str, Path], root: Path, dice: Dice, number: int) -> Path:
    head = dice.choice([name for name in sorted(models) if (models[name] / "head.safetensors").exists()])
    folder = Path(shutil.copytree(models[head], root / f"{number:03}-{head}"))
    content = json.loads((folder / "model.json").read_text())
    change = dice.choice(FORGE)
    change(folder, content, dice)
    if change is not change_the_record:
        resign(folder, content)
    return folder


def assert_refused_or_answered(models: dict[str, Path], trained: Trained, root: Path, seed: int, count: int) -> None:
    """No traceback, no hang, no answer that is no number, at most 2 GB: in a process of its own."""
    dice = Dice(seed)
    folders = [forge(models, root, dice, number) for number in range(count)]
    image = trained.photos / "val/ants/000.jpg"
    command = [sys.executable, "-c", PROGRAM, str(image), str(trained.store), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 10 * count, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, memory = done.stdout.splitlines()
    wrong = [line for line in lines if not line.endswith(("answered", "refused "))]
    assert not wrong, "\n".join(wrong)
    assert len(lines) == 3 * count
    assert int(memory.split()[1]) < 2 * 2**20
    assert sum("refused" in line for line in lines) > count


@pytest.mark.slow
def test_forged_models_are_refused_in_one_line(models: dict[str, Path], trained: Trained, tmp_path: Path) -> None:
    assert_refused_or_answered(models, trained, tmp_path, seed=1, count=40)


@pytest.mark.slow
def test_many_forged_models_are_refused_in_one_line(models: dict[str, Path], trained: Trained, tmp_path: Path) -> None:
    for seed in range(10):
        assert_refused_or_answered(models, trained, tmp_path / str(seed), seed=seed + 2, count=FORGERIES // 10)
