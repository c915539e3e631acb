"""Model folders that rotted or were forged: an error of one line, or the very answers that were saved; never others.

PIPELINE_FLIPS and PIPELINE_FORGERIES say how many damages and forgeries the slow tests try.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Trained
from safetensors.numpy import load_file, save_file

from pipeline.bases import load_base
from pipeline.commands.fit_head import fit_head
from pipeline.commands.info import info
from pipeline.errors import ModelError
from pipeline.files import digest_bytes
from pipeline.heads import HEADS
from pipeline.models.folder import checksum, head_files
from pipeline.models.model import load_model
from pipeline.training.network import write_base

FLIPS = int(os.environ.get("PIPELINE_FLIPS", "1000"))
FORGERIES = int(os.environ.get("PIPELINE_FORGERIES", "500"))
OLD = Path(__file__).parents[1] / "data" / "0.1.0"
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


def flip(folder: Path, name: str, dice: Dice, count: int, ask: Callable[[Path], str] = answers) -> int:
    """Flip one bit at `count` places of a file, one at a time; how many went by without changing an answer."""
    path, right, unnoticed = folder / name, ask(folder), 0
    content = path.read_bytes()
    try:
        for _ in range(count):
            damaged = bytearray(content)
            damaged[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            path.write_bytes(damaged)
            try:
                found = ask(folder)
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


@pytest.mark.parametrize("count", [10, pytest.param(FLIPS // 10, marks=pytest.mark.slow)])
def test_one_wrong_bit_of_a_tuned_base_is_no_wrong_answer(trained: Trained, tmp_path: Path, count: int) -> None:
    folder = Path(shutil.copytree(trained.linear, tmp_path / "m"))
    write_base(load_base("squeezenet1_1", "embedded"), folder / "base.safetensors")
    content = json.loads((folder / "model.json").read_text())
    content["base"]["fine_tuned"] = True
    resign(folder, content)
    image = trained.photos / "val/ants/000.jpg"
    dice = Dice(f"base {count}")

    def ask(folder: Path) -> str:  # of torch, which takes no graph from the cache
        return json.dumps(load_model(folder, engine="torch").predict(image))

    flip(folder, "base.safetensors", dice, count, ask)


def test_heads_that_changed_places_and_cut_files_are_noticed(models: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["linear"], tmp_path / "m"))
    shutil.copy(models["ridge"] / "head.safetensors", folder / "head.safetensors")
    for show in load_model, info:
        with pytest.raises(ModelError, match=r"head\.safetensors fails its checksum; restore the folder"):
            show(folder)
    content = (models["linear"] / "head.safetensors").read_bytes()
    for length in (0, 7, len(content) - 1):
        (folder / "head.safetensors").write_bytes(content[:length])
        with pytest.raises(ModelError, match="fails its checksum"):
            load_model(folder)
    (folder / "head.safetensors").unlink()
    (folder / "head.safetensors").symlink_to(models["linear"] / "head.safetensors")
    assert answers(folder) == answers(models["linear"])


def test_a_checksum_that_is_taken_away_is_missed(models: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["linear"], tmp_path / "m"))
    content = json.loads((folder / "model.json").read_text())
    for gone in ("files", "checksum"):
        (folder / "model.json").write_text(json.dumps({name: content[name] for name in content if name != gone}))
        with pytest.raises(ModelError, match=r"model\.json (is damaged|fails its checksum)"):
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


HOSTILE: dict[str, list[Any]] = {
    "crop": [[8192, 8192], [4096, 4096], [1024, 1024], [8192, 1], [1, 1], [0, 5], [2**40, 2**40]],
    "resize": [[8192, 8192], [1, 8192], [1, 1]],
    "mean": [[float("nan")] * 3, [1e308] * 3, [-1e30] * 3, [10**400] * 3],
    "std": [[float("inf")] * 3, [0.0] * 3, [1e-308] * 3, [-1.0] * 3],
    "interpolation": ["nearest", "lanczos", "telepathy"],
    "fit": ["stretch", "longest", "none"],
}


def change_the_recipe(folder: Path, content: Content, dice: Dice) -> None:
    """Images are seen otherwise, by as many pixels as there can be, or by no number."""
    name = dice.choice(sorted(HOSTILE))
    content["recipe"]["transform"][name] = dice.choice(HOSTILE[name])


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a head, also of one that version 0.1.0 wrote."""
    if path.suffix == ".safetensors":
        return load_file(path)
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        return {name: np.load(io.BytesIO(archive.read(name))) for name in names}


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """What `read_arrays` gave, changed."""
    if path.suffix == ".safetensors":
        save_file(arrays, path)
        return
    with zipfile.ZipFile(path) as archive:
        others = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".npy")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in others.items():
            archive.writestr(name, content)
        for name, array in arrays.items():
            with archive.open(name, "w") as file:
                np.save(file, array)


def change_an_array(folder: Path, content: Content, dice: Dice) -> None:
    """Some array of the head has another shape, type or number."""
    path = folder / dice.choice(head_files(folder))
    arrays = read_arrays(path)
    name = dice.choice(sorted(arrays))
    array = arrays[name]
    real = array.dtype.kind == "f"
    changes: list[Callable[[], Any]] = [
        lambda: array[:-1] if array.ndim else array,
        lambda: array.ravel(),
        lambda: array.astype(np.float16),
        lambda: array.astype(np.int64),
        lambda: np.full_like(array, np.nan) if real else array - 10**9,
        lambda: np.full_like(array, np.inf) if real else array + 10**9,
        lambda: array * np.finfo(array.dtype).max if real else array * 0,
        lambda: np.zeros((0, *array.shape[1:]), array.dtype),
        lambda: np.zeros((*array.shape, 3), array.dtype),
        lambda: np.concatenate([array, array]) if array.ndim else array,
        lambda: np.zeros((10**7, 0), array.dtype),
        lambda: np.zeros(10**7, array.dtype),
    ]
    with np.errstate(all="ignore"):
        arrays[name] = np.ascontiguousarray(dice.choice(changes)())
    if dice.random() < 0.1:
        del arrays[name]
    write_arrays(path, arrays)


def write_bomb(path: Path) -> None:
    """A megabyte that unpacks to a gigabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("schema.json", "w") as file:
        for _ in range(1024):
            file.write(bytes(1 << 20))


def write_sparse(path: Path, size: int) -> None:
    """Nothing, as many bytes of it as are asked for."""
    with path.open("wb") as file:
        file.truncate(size)


def change_a_file(folder: Path, content: Content, dice: Dice) -> None:
    """Some file of the head is none: a pipe, a device, a folder, a link to itself, noise, an endless header."""
    path = folder / dice.choice(head_files(folder))
    path.unlink()
    kinds: list[Callable[[], Any]] = [
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path.name),
        path.mkdir,
        lambda: path.write_bytes(dice.randbytes(dice.randrange(1000))),
        lambda: path.write_bytes((10**9).to_bytes(8, "little") + b"{" * 1000),
        lambda: path.write_bytes((2000).to_bytes(8, "little") + b'{"a":' * 400),
        lambda: write_bomb(path),
        lambda: write_sparse(path, 3 << 30),
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
        lambda: write_sparse(path, 250 << 20),
        lambda: path.write_bytes(dice.randbytes(1000)),
    ]
    dice.choice(kinds)()


FORGE = (change_a_value, change_a_value, change_the_recipe, change_an_array, change_an_array, change_a_file)
FORGE += (change_the_record,)

#: Opens one folder after the other; prints a line for each: an error's class, or what it answers.
PROGRAM = """
import faulthandler, json, resource, sys
import numpy as np
resource.setrlimit(resource.RLIMIT_DATA, (5 << 30, 5 << 30))
from pipeline.models.model import load_model
from pipeline.commands.info import info
from pipeline.errors import PipelineError
features, image, stores, thorough, folders = json.loads(sys.argv[1])
features = np.load(features)
def questions(folder):
    yield lambda: info(folder).summary()
    yield lambda: load_model(folder).answers(features)
    if thorough:
        from pipeline.commands.evaluate import evaluate
        from pipeline.commands.predict import predict
        yield lambda: predict(folder, image, memory=1).predictions
        yield lambda: evaluate(folder, stores["numbers" in folder], memory=1).metrics
def peak():
    try:
        with open("/proc/self/status") as file:  # getrusage begins at the peak of the parent
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
for folder in folders:
    for number, ask in enumerate(questions(folder)):
        faulthandler.dump_traceback_later(100, exit=True)
        try:
            said = json.dumps(ask())
            ok = number == 0 or not ("NaN" in said or "Infinity" in said)
            print(folder, "answered" if ok else f"WRONG {said}"[:300])
        except PipelineError as error:
            print(folder, "refused" if "\\n" not in str(error) else f"IN SEVERAL LINES {error!r}")
        except Exception as error:
            print(folder, number, "TRACEBACK", type(error).__name__, str(error)[:200].replace("\\n", " "))
    if (memory := peak()) > 2 << 20:
        sys.exit(f"{folder}: {memory} kB")
"""


def forge(models: list[Path], root: Path, dice: Dice, number: int) -> Path:
    model = dice.choice(models)
    change = dice.choice(FORGE)
    folder = Path(shutil.copytree(model, root / f"{number:03}-{model.name}-{change.__name__}"))
    content = json.loads((folder / "model.json").read_text())
    change(folder, content, dice)
    if change is not change_the_record:
        resign(folder, content)
    return folder


def assert_refused_or_answered(
    models: list[Path], trained: Trained, root: Path, *, seed: int, count: int, thorough: bool
) -> None:
    """No traceback, no hang, no answer that is no number, at most 2 GB: in a process of its own."""
    dice = Dice(seed)
    folders = [str(forge(models, root, dice, number)) for number in range(count)]
    np.save(root / "features.npy", FEATURES)
    paths = [root / "features.npy", trained.photos / "val/ants/000.jpg"]
    stores = [str(trained.store), str(trained.numbers)]
    asked = json.dumps([*map(str, paths), stores, thorough, folders])
    done = subprocess.run([sys.executable, "-c", PROGRAM, asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout[-500:], done.stderr[-2000:])
    lines = done.stdout.splitlines()
    wrong = [line for line in lines if not line.endswith((" answered", " refused"))]
    assert not wrong, "\n".join(wrong)
    assert len(lines) == (4 if thorough else 2) * count
    assert sum(line.endswith("refused") for line in lines) > count / 2
    shutil.rmtree(root)


def test_forged_models_are_refused_in_one_line(models: dict[str, Path], trained: Trained, tmp_path: Path) -> None:
    some = [*models.values(), trained.ridge, *sorted(OLD.glob("*-*"))]
    assert_refused_or_answered(some, trained, tmp_path / "forged", seed=1, count=50, thorough=False)


@pytest.fixture(scope="module")
def every_model(models: dict[str, Path], trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models of every head, for classes and for numbers, and those of version 0.1.0."""
    root = tmp_path_factory.mktemp("every")
    kinds = [name for name in HEADS if "numbers" in HEADS[name].learns]
    numbers = [fit_head(trained.numbers, root / f"numbers-{name}", head=name).model for name in kinds]
    blend = fit_head(trained.store, root / "blend", head="blend").model
    return [*models.values(), blend, *numbers, *sorted(OLD.glob("*-*"))]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_many_forged_models_are_refused_in_one_line(
    every_model: list[Path], trained: Trained, tmp_path: Path, seed: int
) -> None:
    assert_refused_or_answered(
        every_model, trained, tmp_path / "forged", seed=seed, count=FORGERIES // 10, thorough=True
    )
