"""A TOML file that is a whole experiment."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import OutputExistsError, SettingsError
from pipeline.experiment import read_experiment, run

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))


def test_stages_run_in_their_order(split_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "e.toml"
    config.write_text(
        f"""
[extract]
source = "{split_folder}"
output = "{tmp_path}/f.h5"
base = "squeezenet1_1"
weights = "embedded"

[[fit-head]]
store = "{tmp_path}/f.h5"
output = "{tmp_path}/ridge"
head = "ridge"

[[fit-head]]
store = "{tmp_path}/f.h5"
output = "{tmp_path}/knn"
head = "knn"
"""
    )
    result = run(config)
    assert [name for name, _ in result.steps] == ["extract", "fit-head", "fit-head"]
    assert [next(iter(step)) for step in result.to_json()["steps"]] == ["extract", "fit-head", "fit-head"]
    assert "[fit-head]" in result.summary()
    assert (tmp_path / "knn" / "model.json").is_file()
    with pytest.raises(OutputExistsError):
        run(config)
    run(config, force=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[extrakt]\nsource='a'\noutput='b'", r"unknown stage 'extrakt' \(did you mean 'extract'\?\)"),
        ("[extract]\nsource='a'", r"\[extract\] needs output"),
        ("[extract]\nsource='a'\noutput='b'\nbse='c'", r"unknown option 'bse' \(did you mean 'base'\?\)"),
        ("extract = 3", r"\[extract\] needs source"),
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
