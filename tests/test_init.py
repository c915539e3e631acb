"""The public face of the package, and what its import sees to."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from house import HEAVY
from pictures import write_photos

import pipeline
from pipeline.cli import cli
from pipeline.commands import demo

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


#: Runs one command in the process, and prints the packages that were imported for it as the last line.
IMPORTS = """
import json, sys
from pipeline.cli import cli
try:
    cli(sys.argv[1:])
except SystemExit as left:
    assert not left.code, left.code
print("\\n", json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
#: Command -> what it needs of all that is `HEAVY`: torch is not among it, nor is the base loaded.
NEEDS = {
    "info f.h5": {"h5py"},
    "info ridge": {"h5py", "safetensors"},
    "verify f.h5": {"h5py"},
    "verify f.h5 --recompute 2": {"h5py", "onnxruntime"},
    "extract photos -o f.h5 --base squeezenet1_1 --weights embedded": {"h5py", "onnxruntime", "safetensors"},
    "extract photos -o e.h5 --base squeezenet1_1 --weights embedded": {"h5py", "onnxruntime", "safetensors"},
    "extract photos -o b.h5 --base squeezenet1_1 --weights embedded --engine openvino": {"h5py", "safetensors"},
    "extract photos -o i.h5 --base squeezenet1_1 --weights embedded --precision int8": {
        *("h5py", "onnx", "onnxruntime", "safetensors")
    },
    "merge f.h5 -o g.h5": {"h5py"},
    "label photos -o l.csv --normal ants=1,1,0 --normal bees=9,1,0": {"matplotlib"},
    "compare ridge svm": {"h5py", "scipy"},
    "predict ridge photos/ants/000.jpg": {"safetensors", "onnxruntime"},
    "predict svm photos/ants/000.jpg": {"safetensors", "onnxruntime"},
    "predict ridge photos": {"safetensors", "onnxruntime"},
    "evaluate svm photos": {"h5py", "safetensors", "onnxruntime", "scipy"},
    "evaluate ridge f.h5": {"h5py", "safetensors", "scipy"},
    "fit-head f.h5 --head linear -o linear": {"h5py", "safetensors", "scipy", "matplotlib", "jinja2"},
    "fit-head f.h5 --head ridge -o ridge2": {"h5py", "safetensors", "scipy", "matplotlib", "jinja2"},
    "fit-head f.h5 --head svm -o svm2": {"h5py", "safetensors", "scipy", "matplotlib", "jinja2"},
    "fit-head f.h5 --head knn -o knn": {
        "h5py",
        "safetensors",
        "scipy",
        "matplotlib",
        "jinja2",
        "sklearn",
        "joblib",
        "pandas",
        "pyarrow",
    },
    "fit-head n.h5 --head binned --target length -o binned": {"h5py", "safetensors", "scipy", "matplotlib", "jinja2"},
}


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, their features and two models, whose graph is in the cache."""
    folder = tmp_path_factory.mktemp("worked")
    write_photos(folder / "photos" / "ants", 6, first_seed=0, colour=(200, 60, 40))
    write_photos(folder / "photos" / "bees", 6, first_seed=100, colour=(40, 60, 200))
    pipeline.extract(folder / "photos", folder / "f.h5", base="squeezenet1_1", weights="embedded")
    (folder / "lengths.csv").write_text(
        "id,length\n"
        + "".join(f"{name}/00{n}.jpg,{n + 7 * (name == 'bees')}.5\n" for name in ("ants", "bees") for n in range(6))
    )
    pipeline.extract(
        folder / "photos", folder / "n.h5", base="squeezenet1_1", weights="embedded", labels=folder / "lengths.csv"
    )
    for head in ("ridge", "svm"):
        pipeline.fit_head(folder / "f.h5", folder / head, head=head)
    return folder


def imported_by(command: str, folder: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *command.split()],
        env={**os.environ, "PYTHONPATH": str(HERE)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("command", "needs"), NEEDS.items())
def test_a_command_imports_only_what_it_needs(command: str, needs: set[str], worked: Path) -> None:
    assert imported_by(command, worked) & set(HEAVY) <= needs


#: Runs one command after the other; their exit statuses are the last line.
COMMANDS = """
import json, sys
from pipeline.cli import cli
from pipeline.errors import PipelineError
def status(words):
    try:
        cli(words)
    except SystemExit as left:
        return left.code
    except PipelineError:
        return 1
print("\\n", json.dumps([status(words) for words in json.loads(sys.argv[1])]))
"""


@pytest.fixture
def offline(tmp_path: Path) -> Callable[..., tuple[list[int], str]]:
    """Run commands where every attempt to reach the network fails; exit statuses, and what was attempted."""
    reached = tmp_path / "reached"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE / "tests/offline"), str(HERE)])}
    environment |= {"REACHED": str(reached), "TORCH_HOME": str(tmp_path / "hub")}

    def run(*commands: str) -> tuple[list[int], str]:
        words = json.dumps([command.split() for command in commands])
        called = [sys.executable, "-c", COMMANDS, words]
        reached.write_text("")
        done = subprocess.run(called, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), reached.read_text()

    return run


def test_nothing_asks_the_network_that_needs_no_download(
    offline: Callable[..., tuple[list[int], str]], photo_folder: Path
) -> None:
    photo = next(photo_folder.rglob("*.jpg")).relative_to(photo_folder.parent)
    statuses, reached = offline(
        "extract photos -o f.h5 --base squeezenet1_1 --weights embedded",
        "fit-head f.h5 -o m --head ridge",
        f"predict m {photo}",
        "evaluate m f.h5",
        "info m",
        "verify f.h5",
        "bases squeezenet",
    )
    assert (statuses, reached) == ([0] * 7, "")


def test_weights_that_are_not_here_are_asked_for(
    offline: Callable[..., tuple[list[int], str]], photo_folder: Path
) -> None:
    statuses, reached = offline("extract photos -o f.h5 --base resnet18")
    assert statuses == [1]
    assert reached.startswith("socket.getaddrinfo ")
    assert "import" not in reached


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


def test_type_checkers_are_told_of_the_names_that_are_imported_when_asked_for() -> None:
    assert pipeline.__all__ == sorted(pipeline._HOMES)
    body = ast.parse(Path(pipeline.__file__).read_text()).body
    block = next(node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {name.name: node.module for node in imports for name in node.names} == {
        name: f"pipeline.{home}" for name, home in pipeline._HOMES.items()
    }


def test_no_name_of_a_users_script_is_any_to_mypy() -> None:
    """It takes the checkout's cache, which a run of mypy on the package has filled; seconds more without."""
    script = HERE / "tests/users_script.py"
    assert set(pipeline.__all__) <= set(re.findall(r"\w+", script.read_text()))
    command = [sys.executable, "-m", "mypy", "tests/users_script.py"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert done.returncode < 2, done.stderr
    assert "1 source file" in done.stdout
    # Lines of other files are about the package, which is checked with the newest stubs elsewhere.
    assert [line for line in done.stdout.splitlines() if line.startswith("tests/users_script.py")] == []


#: Modules with examples in their docstrings.
EXAMPLES = [path for path in sorted((HERE / "pipeline").rglob("*.py")) if ">>> " in path.read_text()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(HERE)))
def test_the_examples_of_docstrings_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = ".".join(path.relative_to(HERE).with_suffix("").parts).removesuffix(".__init__")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


NUL = "a\0b"


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize(
    "call",
    [
        lambda path: pipeline.fit_head("f.h5", path),
        lambda path: pipeline.finetune("p", path),
        lambda path: pipeline.predict("m", "p", csv=path),
        lambda path: pipeline.predict(path, "p"),
        lambda path: pipeline.evaluate("m", "p", output=path),
        lambda path: pipeline.info(path),
        lambda path: pipeline.verify(path),
        lambda path: pipeline.merge([path], "w.h5"),
        lambda path: pipeline.merge(["f.h5"], path),
        lambda path: pipeline.run(path),
        lambda path: pipeline.load_model(path),
        lambda path: pipeline.FeatureStore.open(path),
        lambda path: pipeline.extract("p", "g.h5", labels=path),
        lambda path: demo.demo(path),
        lambda path: pipeline.FeatureExtractor("squeezenet1_1", weights="embedded").fit_transform([path]),
    ],
)
def test_a_path_with_a_nul_is_refused_by_all_that_take_paths(
    call: Callable[[Any], Any], kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pipeline.PipelineError, match=r"NUL|null|give text|a.+b does not exist"):
        call(kind(NUL))
    assert not list(tmp_path.iterdir())
