"""A TOML file as steps: values, paths and references."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.commands.experiment import read_experiment
from pipeline.errors import SettingsError

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
def config(tmp_path: Path) -> Path:
    """An extraction and two heads."""
    config = tmp_path / "e.toml"
    config.write_text(EXTRACT + HEAD.format(head="linear") + HEAD.format(head="ridge"))
    return config


def test_values_are_set_over_those_of_the_file(config: Path) -> None:
    def steps(*overrides: str) -> list[dict[str, object]]:
        return [step.options for step in read_experiment(config, overrides=overrides)]

    assert steps("extract.size=96")[0]["size"] == 96
    assert [one.get("seed") for one in steps("*.seed=7")] == [7, 7, 7]
    assert [one.get("val") for one in steps("fit-head.val=0.2")] == [None, 0.2, 0.2]
    assert steps("*.base=resnet50", "extract.base=resnet18")[0]["base"] == "resnet18"
    assert steps('extract.layer=["a", "b"]')[0]["layer"] == ["a", "b"]
    config.write_text(EXTRACT + HEAD.format(head="linear") + TUNED)
    assert "base" not in steps("*.base=resnet50")[2], "it comes with the model that the head names"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("extract.bse=a", r"unknown option 'bse' \(did you mean 'base'\?\)"),
        ("extrakt.base=a", r"unknown table 'extrakt' \(did you mean 'extract'\?\)"),
        ("*.epocs=1", r"no table has the option 'epocs' \(did you mean 'epochs'\?\)"),
        ("base=a", r"give TABLE\.KEY=VALUE"),
        ("extract.base", r"give TABLE\.KEY=VALUE"),
        ("extract.size=large", "size='large': give"),
    ],
)
def test_values_that_fit_no_table_are_refused(config: Path, override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_experiment(config, overrides=[override])


def test_paths_inside_of_other_texts_start_from_the_root_too(tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_text("http://a/b\n")
    (tmp_path / "w.pt").write_bytes(b"")
    (tmp_path / "e.toml").write_text(
        '[fetch]\nlists = ["cat=cats.txt"]\noutput = "d"\n'
        '[extract]\nsource = "torchvision:CIFAR10?root=data"\noutput = "f.h5"\nweights = "w.pt"\n'
        '[finetune]\nsource = "@fetch"\noutput = "m"\nweights = "DEFAULT"\nlabels = "/abs/l.csv"\n'
    )
    fetch, extract, finetune = read_experiment(tmp_path / "e.toml")
    assert fetch.options["lists"] == [f"cat={tmp_path}/cats.txt"]
    assert extract.options["source"] == f"torchvision:CIFAR10?root={tmp_path}/data"
    assert extract.options["weights"] == f"{tmp_path}/w.pt"
    assert finetune.options["source"] == f"{tmp_path}/d/images.csv"
    assert (finetune.options["weights"], finetune.options["labels"]) == ("DEFAULT", "/abs/l.csv")


def test_tables_run_in_the_order_of_the_file(tmp_path: Path) -> None:
    head = HEAD.format(head="linear")
    (tmp_path / "e.toml").write_text(EXTRACT + head + TUNED + head.replace("linear", "knn"))
    assert [step.command for step in read_experiment(tmp_path / "e.toml")] == [
        *("extract", "fit-head", "finetune", "fit-head")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD.format(head="linear").replace("f.h5", "@extrac"), r"@extrac is no earlier step \(did you mean 'extract'"),
        (HEAD.format(head="linear").replace("f.h5", "@fit-head"), "@fit-head is no earlier step"),
        ('[verify]\nstore = "f.h5"\n[[fit-head]]\nstore = "@verify"\noutput = "x"', "writes nothing"),
        ("[[extract]]\nsource='splits'\noutput='a'\n" * 2 + '[verify]\nstore="@extract"', "2 steps"),
        ("[[extract]]\nname='a'\nsource='splits'\noutput='a'\n" * 2, "two steps called 'a'"),
        ("[verify]\nname='extract'\nstore='a'", "which is another command"),
        ("[verify]\nname='a.b'\nstore='a'", "is no name"),
        ("[compare]\nmodels=[]", r"models = \[\] is no path"),
        ("[compare]\nmodels=['a', 3]", "is no path"),
    ],
)
def test_references_and_names_that_mislead_are_refused(config: Path, text: str, message: str) -> None:
    config.write_text(text if text.startswith("[verify]") or "[[extract" in text else EXTRACT + text)
    with pytest.raises(SettingsError, match=message):
        read_experiment(config)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_published_experiment_is_valid(config: Path) -> None:
    assert read_experiment(config)
