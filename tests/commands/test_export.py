"""A model as one file answers as its folder does, without torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Trained
from pictures import encoded, photo
from PIL import Image

import pipeline
from pipeline.errors import ModelError, OutputExistsError, SettingsError


def odd_images(folder: Path) -> Path:
    """Images of every odd kind, one file each."""
    folder.mkdir()
    whole = photo(3, (90, 70))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "plain.jpg": encoded(whole),
        "turned.jpg": encoded(whole, exif=exif),
        "grey.png": encoded(whole.convert("L"), "PNG"),
        "alpha.png": encoded(whole.convert("RGBA"), "PNG"),
        "palette.gif": encoded(whole.convert("P"), "GIF"),
        "ink.jpg": encoded(whole.convert("CMYK")),
        "deep.png": encoded(Image.fromarray((np.arange(4800, dtype=np.uint16) * 13).reshape(60, 80)), "PNG"),
        "thin.png": encoded(photo(4, (3, 800)), "PNG"),
        "lying.png": encoded(photo(5, (800, 3)), "PNG"),
        "large.jpg": encoded(photo(6, (1500, 1100))),
        "dot.png": encoded(photo(7, (1, 1)), "PNG"),
        "broken.jpg": encoded(whole)[:300],
    }
    for name, data in kinds.items():
        (folder / name).write_bytes(data)
    return folder


def test_answers_are_those_of_the_folder(trained: Trained, tmp_path: Path) -> None:
    images = odd_images(tmp_path / "odd")
    for model in (trained.linear, trained.ridge):
        result = pipeline.export(model, tmp_path / "new" / f"{model.name}.onnx")
        assert result.largest_difference < 1e-5
        wanted, found = (pipeline.predict(one, images).predictions for one in (model, result.file))
        assert [one["id"] for one in found] == [one["id"] for one in wanted]
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.get("label") == theirs.get("label")
            assert ours.get("error") == theirs.get("error")
            for key in ("score", "value"):
                assert ours.get(key) == pytest.approx(theirs.get(key), abs=1e-4)
            if "interval" in theirs:
                assert ours["interval"] == pytest.approx(theirs["interval"], abs=1e-3)


#: Runs the command line where no package can be imported but those named first, and what they need.
WITH_FEW = """
import re, sys
from importlib import metadata
from pipeline.__main__ import main

def needed(names):
    found = set()
    while names:
        name = re.sub("[-_.]+", "-", re.match("[A-Za-z0-9_.-]+", names.pop())[0]).lower()
        if name not in found:
            found.add(name)
            names += [one for one in metadata.requires(name) or () if ";" not in one]
    return found

class Few:
    kept = needed(sys.argv[1].split())
    owners = metadata.packages_distributions()
    def find_spec(self, name, path=None, target=None):
        owners = {re.sub("[-_.]+", "-", owner).lower() for owner in self.owners.get(name.partition(".")[0], ())}
        if owners - {"cached-feature-pipeline"} and not owners & self.kept:
            raise ImportError(f"{name} is not among the few")

sys.meta_path.insert(0, Few())
sys.argv[1:] = sys.argv[2:]
main()
"""


def test_a_file_is_run_with_the_few_packages_that_the_readme_names(trained: Trained, tmp_path: Path) -> None:
    pipeline.export(trained.linear, tmp_path / "m.onnx")
    image = next((trained.photos / "val" / "ants").iterdir())
    root = Path(__file__).parents[2]
    packages = re.search(r"`pip install (click [^`]+)` are enough", (root / "README.md").read_text())
    assert packages is not None
    command = [sys.executable, "-c", WITH_FEW, packages[1], "predict", str(tmp_path / "m.onnx"), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\t")[1].startswith("ants ")
    assert "torch" not in packages[1]
    command[3] = "click numpy Pillow platformdirs pydantic rich"
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert "onnxruntime" in done.stderr


def test_outputs_that_are_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"ends in \.onnx"):
        pipeline.export(trained.linear, tmp_path / "model.bin")
    (tmp_path / "m.onnx").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="exists already; give --force"):
        pipeline.export(trained.linear, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"mine"
    with pytest.raises(ModelError, match="is not a model folder"):
        pipeline.export(tmp_path, tmp_path / "n.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]


def test_options_that_a_file_has_no_use_for(trained: Trained, tmp_path: Path) -> None:
    pipeline.export(trained.linear, tmp_path / "m.onnx")
    with pytest.raises(SettingsError, match=r"device does not apply to .*m.onnx"):
        pipeline.predict(tmp_path / "m.onnx", trained.photos, device="cpu")
