"""The command line: what it prints where, and one line with the right exit status for everything that goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from conftest import Trained
from packaging.version import Version
from pictures import encoded, photo, write_photos

from pipeline import cli
from pipeline.config import SOURCES

HERE = Path(__file__).parent.parent
HAS_GEMMA = pytest.mark.skipif(
    Version(metadata.version("timm")) < Version("1.0.28"), reason="a timm before its first base without a classifier"
)


@dataclass
class Said:
    status: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the console script in this process."""
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # which the command line sets, for good

    def call(*words: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return Said(int(stopped.value.code or 0), said.out, said.err)

    return call


EMBEDDED = ("--base", "squeezenet1_1", "--weights", "embedded")


def test_the_main_job_in_json(run: Run, split_folder: Path, tmp_path: Path) -> None:
    store, model, image = tmp_path / "f.h5", tmp_path / "m", split_folder / "val/ants/000.jpg"
    extracted = json.loads(run("extract", split_folder, "-o", store, *EMBEDDED, "--json").out)
    assert {"store", "rows", "good", "bad", "computed", "reused", "seconds", "engine", "device"} <= set(extracted)
    assert {"total", "read", "decode", "forward", "write"} <= set(extracted["seconds"])
    fitted = json.loads(run("fit-head", store, "-o", model, "--head", "ridge", "--json").out)
    assert {"model", "head", "target", "layers", "metrics", "chosen"} <= set(fitted)
    assert set(fitted["metrics"]) >= {"val", "train"}
    predicted = json.loads(run("predict", model, image, "--json").out)
    assert predicted["predictions"][0]["label"] == "ants"
    evaluated = json.loads(run("evaluate", model, store, "--json").out)
    assert evaluated["metrics"]["accuracy"] == fitted["metrics"]["val"]["accuracy"]
    assert json.loads(run("info", store, "--json").out)["rows"] == 24
    assert json.loads(run("info", model, "--json").out)["classes"] == ["ants", "bees"]
    verified = json.loads(run("verify", store, "--recompute", "3", "--json").out)
    assert verified["ok"]
    assert verified["recomputed"] == 3


def test_people_get_lines_and_programs_get_json(run: Run, trained: Trained) -> None:
    image = trained.photos / "val/ants/000.jpg"
    assert run("predict", trained.linear, image).out.startswith(f"{image}\tants ")
    assert "accuracy" in run("evaluate", trained.linear, trained.store).out
    assert "format: pipeline-features" in run("info", trained.store).out
    assert run("verify", trained.store).out == "nothing is wrong\n"
    listed = run("bases", "vgg16").out.splitlines()
    assert [line.split()[0] for line in listed] == ["vgg16", "vgg16_bn"]
    assert {base["name"] for base in json.loads(run("bases", "vgg16", "--json").out)["bases"]} == {"vgg16", "vgg16_bn"}
    tree = run("bases", "resnet18", "--modules", "--train", "layer4").out.splitlines()
    assert next(line for line in tree if line.startswith("layer4 ")).endswith("trained")
    assert json.loads(run("bases", "scratch:cnn", "--modules", "--json").out)["layers"]["pool5"] == [32, 56, 56]
    assert [run("bases", *words).status for words in (["--modules"], ["resnet18", "--train", "layer4"])] == [2, 2]


def test_parts_are_merged(run: Run, split_folder: Path, tmp_path: Path) -> None:
    for number in ("1", "2"):
        run("extract", split_folder, "-o", tmp_path / f"p/{number}.h5", "--part", f"{number}/2", *EMBEDDED, "-q")
    assert run("merge", tmp_path / "p", "-o", tmp_path / "all.h5").out == f"{tmp_path}/all.h5: 24 rows of 2 parts\n"
    assert run("merge", tmp_path / "p/2.h5", "-o", tmp_path / "x.h5").status == 1


def test_options_reach_the_stage(run: Run, photo_folder: Path, tmp_path: Path) -> None:
    layers = ("--layer", "features.5", "--layer", "avgpool", "--pool", "avg")
    said = run("extract", photo_folder, "-o", tmp_path / "f.h5", *EMBEDDED, *layers, "--dtype", "float16", "--json")
    assert json.loads(said.out)["layers"] == {"features.5": [128], "avgpool": [512]}
    recipe = json.loads(run("info", tmp_path / "f.h5", "--json").out)["recipe"]
    assert recipe["dtype"] == "float16"


@pytest.fixture
def place(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to call from, with a bit of everything under short names."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "flat", 3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "one.jpg").write_bytes(encoded(photo(1)))
    (tmp_path / "text.h5").write_text("not HDF5")
    for name, target in (("classes.h5", trained.store), ("numbers.h5", trained.numbers), ("model", trained.linear)):
        (tmp_path / name).symlink_to(target)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("extract nowhere -o x.h5", 1, "there is no nowhere"),
        ("extract flatt -o x.h5", 1, "(did you mean 'flat'?)"),
        ("predict nowhere one.jpg", 1, "nowhere does not exist; train a model with pipeline fit-head"),
        ("predict flat one.jpg", 1, "flat is not a model folder: it has no model.json; train a model"),
        ("bases nonsense", 1, "no base has 'nonsense' in its name"),
        ("extract empty -o x.h5 --weights none", 1, "empty holds no images"),
        ("extract flat", 2, "Missing option '-o'"),
        ("extract flat -o x.h5 --base resnet81", 1, "unknown base 'resnet81' (did you mean 'resnet18'?)"),
        ("extract flat -o x.h5 --base tf_efficientnet_lite0", 1, "(did you mean 'timm:tf_efficientnet_lite0'?)"),
        ("extract flat -o x.h5 --base timm:resnet81 --weights none", 1, "(did you mean 'timm:resnet"),
        pytest.param(
            *("extract flat -o x.h5 --base timm:gemma4_vit_167m_enc --weights none", 1, "has no classifier"),
            marks=HAS_GEMMA,
        ),
        ("extract flat -o x.h5 --weights IMAGENET1K_V9", 1, "(did you mean 'IMAGENET1K_V1'?)"),
        ("extract flat -o x.h5 --base squeezenet1_1 --weights gone.pt", 1, "gone.pt"),
        ("extract flat -o x.h5 --base resnet18 --weights embedded", 1, "embedded"),
        ("extract flat -o x.h5 --views 2", 2, "views > 0 needs augment"),
        ("extract flat -o x.h5 --base squeezenet1_1 --weights embedded --views 2 --augment flop", 2, "'flip'"),
        ("extract flat -o x.h5 --base squeezenet1_1 --weights embedded --layer feature.5", 1, "'features.5'"),
        ("extract flat -o x.h5 --batch-size many", 2, "batch_size"),
        ("extract flat -o x.h5 --pool median", 2, "'median' is not one of"),
        ("extract flat -o empty --base squeezenet1_1 --weights embedded", 1, "is a folder"),
        ("extract flat -o text.h5 --base squeezenet1_1 --weights embedded", 1, "text.h5"),
        ("extract flat -o classes.h5 --base squeezenet1_1 --weights none", 1, "--force"),
        ("fit-head gone.h5 -o x", 1, "gone.h5"),
        ("fit-head text.h5 -o x", 1, "text.h5"),
        ("fit-head classes.h5 -o x --head linaer", 2, "(did you mean 'linear'?)"),
        ("fit-head classes.h5 -o x --head regressor", 1, "'regressor' learns numbers"),
        ("fit-head classes.h5 -o x --target clas", 2, "(did you mean 'class'?)"),
        ("fit-head classes.h5 -o model", 1, "--force"),
        ("fit-head classes.h5 -o x --layer fc7", 2, "fc7"),
        ("finetune flat -o x --base squeezenet1_1 --weights embedded", 1, "flat"),
        ("finetune nowhere -o x --base squeezenet1_1 --weights embedded", 1, "there is no nowhere"),
        ("predict model gone.jpg", 1, ""),
        ("predict empty one.jpg", 1, "has no model.json"),
        ("predict model", 2, "Missing argument 'IMAGE...'"),
        ("evaluate model flat", 1, "no target 'class'"),
        ("evaluate model numbers.h5", 1, "no target 'class'"),
        ("info empty", 1, "empty"),
        ("verify gone.h5", 1, "gone.h5"),
        ("merge empty -o x.h5", 1, "empty holds no feature file"),
        ("run gone.toml", 2, "gone.toml cannot be read"),
        ("run notes.txt", 2, "names no stage"),
        ("extrakt flat", 2, "No such command 'extrakt'"),
        ("extract flat -o x.h5 --bse resnet18", 2, "--base"),
    ],
)
def test_a_wrong_call_is_one_line(run: Run, place: Path, words: str, status: int, message: str) -> None:
    before = sorted(path.name for path in place.iterdir())
    said = run(*words.split())
    assert said.status == status, said.err
    assert message in said.err
    errors = [line for line in said.err.splitlines() if line.lower().startswith("error")]
    assert len(errors) <= 1
    assert "Traceback" not in said.err
    left = [path.name for path in place.iterdir() if path.name not in before]
    assert left == [], "nothing is left behind"


#: Longer than a file system takes: what is to be written there fails at the last moment.
LONG = "new/dir/" + "n" * 255


@pytest.mark.parametrize(
    "words",
    [
        "extract bad -o new/dir/x.h5 --base squeezenet1_1 --weights embedded",
        f"extract flat -o {LONG} --base squeezenet1_1 --weights embedded",
        f"merge classes.h5 -o {LONG}",
        f"fit-head classes.h5 -o {LONG}",
        f"finetune photos -o {LONG} --base squeezenet1_1 --weights embedded --size 64 --train head --epochs 1",
        f"predict model one.jpg --csv {LONG}",
        f"evaluate model classes.h5 -o {LONG}",
    ],
)
def test_a_call_that_is_refused_late_leaves_no_folder_that_it_made(
    run: Run, place: Path, trained: Trained, words: str
) -> None:
    (place / "photos").symlink_to(trained.photos)
    (place / "bad").mkdir()
    (place / "bad/one.jpg").write_bytes(b"no image")
    said = run(*words.split())
    assert said.status == 1, said.err
    assert not (place / "new").exists()
    [error] = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert "bad: 1 of 1 images are bad" in error or f"{LONG}" in error
    assert ".tmp" not in error, "a hidden file is named"


def test_a_head_on_images_without_labels_names_the_way_out(run: Run, place: Path) -> None:
    run("extract", "flat", "-o", "flat.h5", *EMBEDDED)
    said = run("fit-head", "flat.h5", "-o", "x")
    assert said.status in (1, 2)
    assert "--labels" in said.err


def test_messages_are_lines_whatever_a_name_holds(run: Run, place: Path) -> None:
    said = run("extract", "two\nlines", "-o", "x.h5")
    assert said.err.count("\n") == 1


ESCAPE = "\x1b]52;c;YQ==\x07"


@pytest.mark.filterwarnings("ignore:Glyph")  # of the plots, which are no terminal
def test_names_from_files_cannot_write_to_the_terminal(run: Run, tmp_path: Path) -> None:
    for seed, name in enumerate((f"an{ESCAPE}ts", "be\nes\x9b2J")):
        write_photos(tmp_path / "photos" / name, 4, first_seed=seed * 100)
        (tmp_path / "photos" / name / f"bad{ESCAPE}\nfake.jpg").write_bytes(b"no image")
    store, model = tmp_path / "f.h5", tmp_path / "m"
    said = [run("extract", tmp_path / "photos", "-o", store, *EMBEDDED, "-v")]
    said.append(run("fit-head", store, "-o", model, "--head", "ridge", "-v"))
    image = next((tmp_path / "photos").rglob("bad*"))
    for words in (
        ("predict", model, image.parent),
        ("predict", model, image),
        ("info", store),
        ("info", model),
        ("verify", store),
        ("evaluate", model, store),
        ("extract", image, "-o", store),
        ("info", store, image),
    ):
        said.append(run(*words))
        if "-o" not in words and len(words) < 3:
            said.append(run(*words, "--json"))
    text = "".join(one.out + one.err for one in said)
    assert not [sign for sign in text if not sign.isprintable() and sign not in "\n\t"]
    assert "fake.jpg" in text
    lines = text.splitlines()
    assert not [lines[number - 1 : number + 1] for number, line in enumerate(lines) if line.startswith(("fake", "es"))]


def test_a_file_system_that_refuses_is_one_line(run: Run, place: Path) -> None:
    said = run("predict", "model", "one.jpg", "--csv", "notes.txt/out.csv")
    assert said.status == 1
    assert said.err.startswith("error: ")


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys\nfrom pipeline.cli import cli\n"
        "try: cli(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'sklearn', 'matplotlib', 'h5py', 'onnxruntime', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in cli.cli.commands:
        assert command in done.stdout


@pytest.mark.parametrize("command", sorted(cli.cli.commands))
def test_every_option_is_explained(command: str) -> None:
    for parameter in cli.cli.commands[command].params:
        if isinstance(parameter, click.Option) and parameter.name not in ("output", "help"):
            assert parameter.help, parameter.name


def test_the_help_of_extract_lists_every_kind_of_source(run: Run) -> None:
    lines = [line.strip() for line in run("extract", "--help").out.splitlines()]
    assert set(SOURCES.values()) <= set(lines)


@HAS_GEMMA
def test_bases_are_printed_as_they_are_found_and_one_that_is_none_stops_nothing(run: Run) -> None:
    said = run("bases", "timm:gemma4_vit_167m*")
    assert said.status == 0
    assert "timm:gemma4_vit_167m_enc" in said.out
    assert "cannot be a base: has no classifier" in said.out
    found = json.loads(run("bases", "timm:gemma4_vit_167m*", "--json").out)
    assert [base["name"] for base in found["bases"]] == ["timm:gemma4_vit_167m"]
    assert list(found["unusable"]) == ["timm:gemma4_vit_167m_enc"]


def test_without_a_command_there_is_help_in_lines(run: Run) -> None:
    said = run()
    help_text = said.out + said.err  # which of the two depends on the version of click
    assert " [OPTIONS] COMMAND [ARGS]...\n\n  Transfer learning" in help_text
    assert "\n  fit-head  " in help_text


def test_the_version_is_told(run: Run) -> None:
    said = run("--version")
    assert (said.status, said.out) == (0, f"pipeline, version {metadata.version('cached-feature-pipeline')}\n")


def completed(script: Path, shell: str, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(HERE), "_PIPELINE_COMPLETE": shell, **variables}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(console_script: Path, shell: str) -> None:
    assert "_PIPELINE_COMPLETE=" + shell + "_complete" in completed(console_script, f"{shell}_source")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pipeline fit", ["plain,fit-head"]),
        ("pipeline fit-head --he", ["plain,--head", "plain,--help"]),
        ("pipeline fit-head --head re", ["plain,regressor"]),
        ("pipeline finetune --augment cr", ["plain,crop"]),
        ("pipeline extract --weights e", ["plain,embedded", "file,e"]),
        ("pipeline extract --labels l", ["file,l"]),
        ("pipeline extract phot", ["file,phot"]),
        ("pipeline extract --engine o", ["plain,onnxruntime", "plain,openvino"]),
    ],
)
def test_tab_offers_what_fits(console_script: Path, words: str, offered: list[str]) -> None:
    said = completed(console_script, "bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1))
    assert said.splitlines() == offered


def test_every_head_is_offered(console_script: Path) -> None:
    from pipeline.heads import HEADS
    from pipeline.heads.selection import CHOOSERS

    said = completed(console_script, "bash_complete", COMP_WORDS="pipeline fit-head --head ", COMP_CWORD="3")
    assert said.split() == [f"plain,{name}" for name in (*HEADS, *CHOOSERS)]


def test_the_list_of_commands_says_each_in_a_whole_sentence() -> None:
    lines = CliRunner().invoke(cli.cli, ["--help"]).output.partition("Commands:")[2].strip().splitlines()
    assert len(lines) == len(cli.cli.commands)
    assert [line for line in lines if not line.endswith(".") or line.endswith("...")] == []
