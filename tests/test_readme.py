"""Every `pipeline` command that the README shows is run, in order, on small pictures under the names it uses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from pipeline.cli import cli

README = Path(__file__).parent.parent / "README.md"

#: Published weights that the README names with DEFAULT; random ones stand in for them where the hub would put them.
PUBLISHED = ("resnet18", "vgg16")


def commands(text: str) -> list[str]:
    """The lines that a reader would type: those after `$ ` in a console block, with their continuations."""
    blocks = re.findall(r"^```console\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ pipeline ")]


def picture(path: Path, shade: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 60, (72, 80, 3))
    Image.fromarray((noise + shade).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures under every name that the README uses."""
    desk = tmp_path_factory.mktemp("desk")
    for split, count in (("train", 6), ("val", 3)):
        for shade, name in ((30, "ants"), (160, "bees")):
            for number in range(count):
                picture(desk / f"hymenoptera/{split}/{name}/{number}.jpg", shade, number)
    picture(desk / "hymenoptera/val/ants/1124525276_816a07c17f.jpg", 30, 99)
    picture(desk / "hymenoptera/val/ants/10308379_1b6c72e180.jpg", 30, 98)
    for number in range(12):
        picture(desk / f"cats_dogs/{('cat', 'dog')[number % 2]}/{number}.jpg", 30 + 120 * (number % 2), number)
    vehicles = ["image_names,emergency_or_not"]
    lengths = ["image,length"]
    for number in range(24):
        picture(desk / f"emergency/images/{number}.jpg", 30 + 120 * (number % 2), number)
        picture(desk / f"lengths/cat.{number}.jpg", 5 * number, number)
        picture(desk / f"photos/{number}.jpg", 5 * number, number)
        vehicles.append(f"{number}.jpg,{number % 2}")
        lengths.append(f"lengths/cat.{number}.jpg,{40 + number / 7:.3f}")
    (desk / "emergency/train.csv").write_text("\n".join(vehicles))
    (desk / "lengths.csv").write_text("\n".join(lengths))
    return desk


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torchvision's downloads would leave behind."""
    hub = tmp_path_factory.mktemp("torch")
    (hub / "hub/checkpoints").mkdir(parents=True)
    for name in PUBLISHED:
        url = models.get_model_weights(name).DEFAULT.url  # type: ignore[attr-defined]
        with torch.device("meta"):  # the usual initialisation of VGG takes many seconds
            network = models.get_model(name)
        network = network.to_empty(device="cpu")
        for tensor in network.state_dict().values():
            tensor.fill_(1) if tensor.ndim < 1 else tensor.copy_(torch.rand(tensor.shape) * 0.02)
        torch.save(network.state_dict(), hub / "hub/checkpoints" / url.rsplit("/", 1)[-1])
    return hub


def test_every_command_that_is_shown_runs(
    desk: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setenv("TORCH_HOME", str(hub))
    monkeypatch.setenv("XDG_CACHE_HOME", str(hub))
    shown = commands(README.read_text())
    assert len(shown) > 15
    for command in shown:
        cli.main(shlex.split(command)[1:], standalone_mode=False)
        assert capsys.readouterr().out, command
    examples = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(examples) >= 2
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})


def test_every_command_and_stage_is_in_the_readme() -> None:
    text = README.read_text()
    assert [name for name in cli.commands if f"pipeline {name}" not in text] == []
