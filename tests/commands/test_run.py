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

from pipeline.commands.fit_head import fit_head
from pipeline.commands.run import ExperimentResult, read_experiment, run
from pipeline.errors import OutputExistsError, PipelineError, SettingsError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


EXTRACT = """
[extract]
source = "splits"
output = "f.h5"
base = "squeezenet1_1"
weights = "embedded"
"""
HEAD = """
[[fit-head]]
store = "f.h5"
output = "{head}"
head = "{head}"
"""
TUNED = """
[finetune]
source = "splits"
output = "tuned"
head = "linear"
train = "head"
epochs = 1
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


def test_stages_run_in_their_order_and_again_only_where_something_changed(config: Path, tmp_path: Path) -> None:
    result = run(config)
    assert [step.name for step in result.steps] == ["extract", "fit-head", "fit-head"]
    assert [next(iter(step)) for step in result.to_json()["steps"]] == ["extract", "fit-head", "fit-head"]
    assert result.to_json()["steps"][1]["fit-head"]["model"] == "linear"
    assert "[fit-head]" in result.summary()
    before = state(tmp_path)
    again = run(config)
    assert ran(again) == [True, False, False]
    assert (again.steps[0].result.computed, again.steps[0].result.reused) == (0, 24)
    assert "linear: up to date" in again.summary()
    assert state(tmp_path) == before
    config.write_text(config.read_text() + HEAD.format(head="knn"))
    assert ran(run(config)) == [True, False, False, True]
    forced = run(config, force=True)
    assert ran(forced) == [True, True, True, True]
    assert forced.steps[0].result.computed == 0, "features are never discarded"
    assert not set(state(tmp_path).values()) & set(before.values())


def test_a_model_of_other_settings_is_refused_before_anything_runs(config: Path, tmp_path: Path) -> None:
    run(config)
    (tmp_path / "f.h5").unlink()
    config.write_text(config.read_text().replace('head = "ridge"', 'head = "ridge"\nseed = 14'))
    with pytest.raises(
        OutputExistsError, match=r"\[3/3 fit-head\] ridge exists already and was made by other settings"
    ):
        run(config)
    assert not (tmp_path / "f.h5").exists()


def test_a_model_of_other_data_is_not_current(config: Path, tmp_path: Path) -> None:
    run(config)
    write_photos(tmp_path / "splits/train/ants", 9, colour=(90, 90, 40))
    with pytest.raises(OutputExistsError, match=r"\[2/3 fit-head\] linear was trained on other data than f.h5 holds"):
        run(config)
    run(config, force=True)
    assert ran(run(config)) == [True, False, False]


def test_a_head_of_the_command_line_is_current_too(config: Path, tmp_path: Path) -> None:
    run(config)
    shutil.rmtree(tmp_path / "linear")
    fit_head("f.h5", "linear")  # linear is what is fitted without a word
    shutil.rmtree(tmp_path / "ridge")
    fit_head("f.h5", "ridge", head="ridge", seed=13)
    assert ran(run(config))[2] is False


def test_a_training_is_current_until_an_image_or_its_start_changes(config: Path, tmp_path: Path) -> None:
    config.write_text(EXTRACT + HEAD.format(head="linear") + TUNED)
    run(config)
    assert ran(run(config)) == [True, False, False]
    image = tmp_path / "splits/val/ants/000.jpg"
    image.write_bytes(image.read_bytes() + b"\0")
    config.write_text(TUNED)
    with pytest.raises(OutputExistsError, match="other data"):
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
    assert [step["ran"] for step in json.loads(again.stdout)["steps"]] == [True, False]
    assert again.returncode == 1


def pipeline_run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    here = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": here}
    command = [sys.executable, "-m", "pipeline", "run", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[extrakt]\nsource='a'\noutput='b'", r"unknown stage 'extrakt' \(did you mean 'extract'\?\)"),
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


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_published_experiment_is_valid(config: Path) -> None:
    assert read_experiment(config)
