"""A TOML file that is a whole experiment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import write_photos
from steps import EXTRACT, HEAD, TUNED

from pipeline.commands.fit_head import fit_head
from pipeline.commands.run import ExperimentResult, read_experiment, run
from pipeline.errors import OutputExistsError, PipelineError, SettingsError

COMPARE = """
[compare]
name = "both"
models = ["linear", "ridge"]
"""


@pytest.fixture
def config(split_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment of an extraction and two heads, in the current folder."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "e.toml"
    config.write_text(EXTRACT + HEAD.format(head="linear") + HEAD.format(head="ridge"))
    return config


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file each model.json is; a number of a file that is gone may be given to another."""
    files = {name: (folder / name / "model.json").stat() for name in ("linear", "ridge")}
    return {name: (file.st_ino, file.st_ctime_ns) for name, file in files.items()}


def ran(result: ExperimentResult) -> list[bool]:
    return [step["ran"] for step in result.to_json()["steps"]]


def why(result: ExperimentResult) -> list[str]:
    return [step.why for step in result.steps]


SAME = "up to date, made by the same settings on the same data"


def test_the_second_run_computes_nothing_and_says_so_for_each_step(config: Path, tmp_path: Path) -> None:
    result = run(config)
    assert [step.name for step in result.steps] == ["extract", "fit-head", "fit-head"]
    assert [next(iter(step)) for step in result.to_json()["steps"]] == ["extract", "fit-head", "fit-head"]
    assert result.to_json()["steps"][1]["fit-head"]["model"] == "linear"
    assert "[fit-head]" in result.summary()
    assert (ran(result), why(result)) == ([True] * 3, ["it was not there"] * 3)
    before = state(tmp_path)
    again = run(config)
    assert (ran(again), why(again)) == ([False] * 3, [SAME] * 3)
    assert "linear: up to date" in again.summary()
    assert again.steps[1].recorded["metrics"]["val"]["n"] == 8
    assert state(tmp_path) == before
    config.write_text(config.read_text() + HEAD.format(head="knn"))
    assert ran(run(config)) == [False, False, False, True]
    forced = run(config, force=True)
    assert ran(forced) == [True, True, True, True]
    assert forced.steps[0].result is not None
    assert forced.steps[0].result.to_json()["computed"] == 0, "features are never discarded"
    assert not set(state(tmp_path).values()) & set(before.values())


def test_a_key_runs_its_step_and_what_depends_on_it_alone(config: Path, tmp_path: Path) -> None:
    run(config)
    text = config.read_text()
    config.write_text(text.replace('head = "ridge"', 'head = "ridge"\nseed = 14'))
    changed = run(config)
    assert ran(changed) == [False, False, True]
    assert changed.steps[2].why == "seed is 14, it was left out"
    config.write_text(text.replace("[extract]", '[extract]\npool = "avg"\nlayer = "features.5"'))
    assert ran(run(config)) == [True, True, True]
    kept = next(tmp_path.glob("f.????????.h5"))
    config.write_text(text)
    back = run(config)
    assert ran(back) == [True, True, True]
    assert back.steps[0].to_json()["result"]["computed"] == 0, "the features of the first run were kept"
    assert kept != next(tmp_path.glob("f.????????.h5"))


@pytest.mark.parametrize("tuned", ["", pytest.param(TUNED, marks=pytest.mark.slow)])
def test_an_image_a_label_or_a_touch(config: Path, tmp_path: Path, tuned: str) -> None:
    table = tmp_path / "labels.csv"
    files = sorted(path.relative_to(tmp_path) for path in (tmp_path / "splits").rglob("*.jpg"))
    lines = [f"{path},{path.parts[2]},{path.parts[1]}" for path in files]
    table.write_text("\n".join(["image,class,split", *lines]))
    config.write_text((config.read_text() + tuned).replace('"splits"', '"labels.csv"'))
    steps = len(read_experiment(config))
    run(config)
    for path in files:
        os.utime(tmp_path / path, (1, 1))
    assert ran(run(config)) == [False] * steps, "times alone change nothing"
    write_photos(tmp_path / files[0].parent, 1, first_seed=5000, colour=(220, 30, 30))
    one_image = run(config)
    assert ran(one_image) == [True] * steps
    assert one_image.steps[0].to_json()["result"]["computed"] == 1
    table.write_text(table.read_text().replace(f"{files[1]},ants", f"{files[1]},bees"))
    one_label = run(config)
    assert ran(one_label) == [True] * steps
    assert one_label.steps[0].to_json()["result"]["computed"] == 0
    assert one_label.steps[1].why == "its store changed"
    table.write_text(table.read_text() + "\n")
    assert ran(run(config)) == [False] * steps, "another table with the same rows"


def test_what_depends_on_nothing_that_changed_stays(config: Path, tmp_path: Path) -> None:
    config.write_text(EXTRACT + HEAD.format(head="linear") + HEAD.format(head="ridge") + COMPARE)
    first = run(config)
    assert ran(first) == [True] * 4
    assert first.steps[3].name == "both"
    assert ran(run(config)) == [False] * 4
    config.write_text(config.read_text().replace('head = "ridge"', 'head = "ridge"\nval = 0.2'))
    third = run(config)  # the file has a split of its own: another request, the same model
    assert ran(third) == [False, False, True, False]


def test_another_version_of_the_package_runs_everything_again(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config)
    monkeypatch.setattr("pipeline.commands.run.versions", lambda: {"cached-feature-pipeline": "99"})
    again = run(config)
    assert ran(again) == [True] * 3
    assert again.steps[1].why.endswith("this is 99")
    assert again.steps[0].to_json()["result"]["computed"] == 0


def test_a_model_that_no_run_made_is_refused_before_anything_runs(config: Path, tmp_path: Path) -> None:
    run(config)
    shutil.rmtree(tmp_path / "ridge")
    fit_head("f.h5", "ridge", head="knn")
    (tmp_path / "f.h5").unlink()
    with pytest.raises(
        OutputExistsError, match=r"\[3/3 fit-head\] ridge exists already and was made by other settings"
    ):
        run(config)
    assert not (tmp_path / "f.h5").exists()
    run(config, force=True)
    assert ran(run(config)) == [False] * 3


def test_a_head_of_the_command_line_is_current_too(config: Path, tmp_path: Path) -> None:
    run(config)
    (tmp_path / ".e.run.json").unlink()
    shutil.rmtree(tmp_path / "linear")
    fit_head("f.h5", "linear")  # linear is what is fitted without a word
    assert ran(run(config)) == [True, False, False]
    assert ran(run(config)) == [False, False, False]


def test_a_plan_says_what_would_run_and_runs_nothing(config: Path, tmp_path: Path) -> None:
    config.write_text(EXTRACT + HEAD.format(head="linear").replace("f.h5", "@extract") + HEAD.format(head="ridge"))
    plan = run(config, dry_run=True)
    assert [(step.due, step.why) for step in plan.steps] == [
        (True, "it was not there"),
        (True, "after extract"),
        (True, "after extract"),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"e.toml", "splits"}
    assert plan.to_json()["steps"][0]["due"] is True
    run(config)
    assert [step.due for step in run(config, dry_run=True).steps] == [False] * 3
    config.write_text(config.read_text().replace('head = "ridge"', 'head = "ridge"\nseed = 14'))
    assert [step.due for step in run(config, dry_run=True).steps] == [False, False, True]
    assert "would run: seed is 14" in run(config, dry_run=True).summary()


def test_paths_start_from_the_file_or_from_the_root(config: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    moved = tmp_path / "configs/e.toml"
    moved.write_text(EXTRACT)
    with pytest.raises(SettingsError, match=r"there is no configs/splits, but splits is in the current folder.*--root"):
        run("configs/e.toml")
    assert read_experiment(moved, root=".")[0].options["source"] == "splits"
    (tmp_path / "splits").rename(tmp_path / "configs/splits")
    assert run(moved).steps[0].output == tmp_path / "configs/f.h5"
    with pytest.raises(SettingsError, match="the root gone is not a folder"):
        run(moved, root="gone")


EVERY = """
[[extract]]
name = "first"
source = "splits"
output = "p/1.h5"
base = "squeezenet1_1"
weights = "embedded"
part = "1/2"

[[extract]]
name = "second"
source = "splits"
output = "p/2.h5"
base = "squeezenet1_1"
weights = "embedded"
part = "2/2"

[merge]
parts = ["@first", "@second"]
output = "f.h5"

[verify]
store = "@merge"

[label]
source = "splits"
output = "numbers.csv"
normal = ["ants=100,30,20", "bees=40,8,10"]

[extract]
"""


def test_every_command_can_be_a_step(config: Path, tmp_path: Path) -> None:
    more = """
[[fit-head]]
name = "a"
store = "@merge"
output = "a"

[[fit-head]]
name = "b"
store = "@merge"
output = "b"
head = "knn"

[predict]
model = "@a"
images = ["splits/val/ants/000.jpg", "splits/val/bees"]
csv = "answers.csv"

[evaluate]
model = "@b"
source = "splits"
output = "scores"

[compare]
models = ["@a", "@b"]
output = "c.png"

[export]
model = "@a"
output = "a.onnx"

[[plot]]
name = "seen"
path = "@first"
kind = "batch"
output = "seen.png"

[[plot]]
name = "answered"
path = "@a"
output = "pictures"

[[plot]]
name = "given"
path = "splits"
output = "given.png"
"""
    config.write_text(EVERY.replace("[extract]\n", "").rstrip() + more)
    first = run(config)
    assert ran(first) == [True] * 14
    again = run(config)
    assert ran(again) == [False, False, False, True, *[False] * 10]
    assert again.steps[3].why == "a check is of the day"
    table = again.table().splitlines()
    assert table[1].split()[:3] == ["first", "up", "to"]
    assert "8 held-out rows" in table[6]
    (tmp_path / "answers.csv").unlink()
    shutil.copy(tmp_path / "splits/val/ants/001.jpg", tmp_path / "splits/val/bees/copy.jpg")
    changed = run(config)
    assert dict(zip((step.name for step in changed.steps), ran(changed), strict=True)) == {
        "first": True,
        "second": True,
        "merge": True,
        "verify": True,
        "label": True,
        "a": True,
        "b": True,
        "predict": True,
        "evaluate": True,
        "compare": True,
        "export": True,
        "seen": False,  # of the first part, which has the rows that it had
        "answered": True,
        "given": True,
    }
    (tmp_path / "seen.png").unlink()
    drawn = run(config, set=["given.seed=3"])
    assert [step.name for step in drawn.steps if step.result is not None] == ["verify", "seen", "given"]
    (tmp_path / "pictures/confusion.png").unlink()
    with pytest.raises(PipelineError, match=r"\[13/14 plot answered\].*--force"):
        run(config)


def test_a_damaged_model_is_not_called_current(config: Path, tmp_path: Path) -> None:
    run(config)
    (tmp_path / "linear/head.safetensors").write_bytes(b"")
    with pytest.raises(PipelineError, match=r"\[2/3 fit-head\] linear.*--force"):
        run(config)


def test_what_was_done_is_told_where_a_later_step_fails(config: Path, tmp_path: Path) -> None:
    config.write_text(EXTRACT + HEAD.format(head="linear") + HEAD.format(head="regressor"))
    done = pipeline_run("e.toml", folder=tmp_path)
    assert done.returncode == 1
    assert "f.h5: 24 of 24 images have features" in done.stdout
    assert "saved to linear" in done.stdout
    assert [line for line in done.stderr.splitlines() if line.startswith("[")] == [
        "[1/3 extract] splits -> f.h5",
        "[2/3 fit-head] f.h5 -> linear",
        "[3/3 fit-head] f.h5 -> regressor",
    ]
    assert "error: [3/3 fit-head] head 'regressor' learns numbers" in done.stderr
    again = pipeline_run("e.toml", "--json", folder=tmp_path)
    assert [step["ran"] for step in json.loads(again.stdout)["steps"]] == [False, False]
    assert again.returncode == 1


def pipeline_run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    here = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": here}
    command = [sys.executable, "-m", "pipeline", "run", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[extrakt]\nsource='a'\noutput='b'", r"has no stage 'extrakt' \(did you mean 'extract'\?\)"),
        ("[extract]\nsource='a'", r"\[extract\] needs output"),
        ("[extract]\nsource='a'\noutput='b'\nbse='c'", r"unknown option 'bse' \(did you mean 'base'\?\)"),
        ("extract = 3", r"\[extract\] needs source"),
        ("[extract]\nsource=3\noutput='b'", r"\[extract\] source = 3 is no path; give text"),
        ('[extract]\nsource="a\\u0000"\noutput="b"', r"source = 'a\\x00' is no path"),
        ("[extract]\nsource='a'\noutput='b'\nbatch_size='many'", "batch_size='many': give auto, or a whole number"),
        ("", "names no stage"),
        ("[extract", "is not TOML"),
    ],
)
def test_a_file_that_cannot_run_is_refused_before_anything_runs(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "e.toml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        run(tmp_path / "e.toml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        run(tmp_path / "none.toml")
