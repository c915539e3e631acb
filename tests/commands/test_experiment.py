"""A TOML file as steps: values, paths and references."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from listing import make_torchvision
from pictures import write_photos
from steps import EXTRACT, HEAD, TUNED
from torchvision import datasets

from pipeline.commands.experiment import read_experiment
from pipeline.commands.run import run
from pipeline.errors import SettingsError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


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
        (
            "[[extract]]\nsource='s'\noutput='a'\n[[extract]]\nsource='s'\noutput='b'\n" + '[verify]\nstore="@extract"',
            "2 steps",
        ),
        ("[[extract]]\nname='a'\nsource='splits'\noutput='a'\n" * 2, "two steps called 'a'"),
        ("[verify]\nname='extract'\nstore='a'", "which is another command"),
        ("[verify]\nname='a.b'\nstore='a'", "is no name"),
        (HEAD.format(head="linear") * 2, r"fit-head and fit-head both write .*linear"),
        ("[compare]\nmodels=[]", r"models = \[\] is no path"),
        ("[compare]\nmodels=['a', 3]", "is no path"),
    ],
)
def test_references_and_names_that_mislead_are_refused(config: Path, text: str, message: str) -> None:
    config.write_text(text if text.startswith("[verify]") or "[[extract" in text else EXTRACT + text)
    with pytest.raises(SettingsError, match=message):
        read_experiment(config)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small data of the form that each published experiment asks for."""
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 6), ("val", 4)):
        for seed, (kind, colour) in enumerate(COLOURS.items()):
            write_photos(
                tmp_path / "hymenoptera" / split / kind, count, first_seed=100 * seed + 10 * count, colour=colour
            )
    for seed, (kind, colour) in enumerate(zip(("cat", "dog"), COLOURS.values(), strict=True)):
        write_photos(tmp_path / "cats_dogs" / kind, 10, first_seed=100 * seed, colour=colour)
        write_photos(tmp_path / "length" / kind, 10, first_seed=100 * seed, colour=colour)
    (tmp_path / "cats_dogs/cat/000.jpg").write_bytes(b"\xff\xd8 broken")
    write_photos(tmp_path / "emergency/images", 24)
    lines = [f"{number:03}.jpg,{number % 2}" for number in range(24)]
    (tmp_path / "emergency/train.csv").write_text("\n".join(["image_names,emergency_or_not", *lines]))
    for name, kind in (("tiger", "dog"), ("cat", "cat")):
        (tmp_path / f"length/{name}.jpg").write_bytes((tmp_path / f"length/{kind}/001.jpg").read_bytes())
    (tmp_path / "data").mkdir()
    make_torchvision(tmp_path / "data")
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)  # it knows the full set alone
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    return tmp_path


COLOURS = {"ants": (200, 60, 40), "bees": (40, 60, 200)}
OFFLINE = ("*.base=squeezenet1_1", "*.weights=embedded", "*.epochs=1")
#: What else has to be said where a base has no layer of the name in the file; and sizes that are quick.
MORE = {
    "alexnet_fc7_svm": ("*.layer=avgpool",),
    "cat_tiger_length": ("extract.size=64", "*.allow_private=true"),
    "partial_freezing": (
        *("vgg16.layer=avgpool,classifier", "replaced.layer=avgpool", "layer4.train=features.12"),
        "*.size=64",
    ),
    "emergency_vehicles": ("*.size=64",),
}


@pytest.fixture
def urls(desk: Path) -> Iterator[None]:
    """The lists of URLs of the length experiment, of a server on this machine."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(desk / "length"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        for name, kind in (("tiger", "dog"), ("kittycat", "cat")):
            names = [f"{kind}/{number:03}.jpg" for number in range(10)]
            lines = [f"http://127.0.0.1:{server.server_port}/{one}" for one in [*names, f"{kind}/gone.jpg"]]
            (desk / f"length/{name}.txt").write_text("\n".join(lines))
        yield
        server.shutdown()
        thread.join()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("desk", "urls")
def test_every_published_experiment_runs_offline_and_then_is_up_to_date(config: Path) -> None:
    overrides = (*OFFLINE, *MORE.get(config.stem, ()))
    if config.stem == "cat_tiger_length":
        pytest.importorskip("aiohttp")
    steps = run(config, root=".", set=overrides).steps
    assert [step.result is not None for step in steps] == [True] * len(steps)
    again = run(config, root=".", set=overrides)
    assert [step.result is not None for step in again.steps] == [False] * len(steps), again.summary()
