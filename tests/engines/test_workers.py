"""Tests of computing on several devices: every row once, and a process that dies is an error."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cheap import recipe_for
from pictures import write_photos

from pipeline.bases import Base, load_base
from pipeline.config import ExtractSettings
from pipeline.engines.embedder import Embedded, Embedder
from pipeline.engines.workers import Crew, device_names
from pipeline.errors import BaseError, EngineError, ImageError, SettingsError
from pipeline.images.trial import nothing_imported_from_here
from pipeline.sources import Manifest, read_manifest


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("squeezenet1_1", "embedded")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Thirty photos; 5 is text, 21 is a copy of 20."""
    folder = tmp_path_factory.mktemp("crew") / "photos"
    write_photos(folder, 30)
    files = sorted(folder.iterdir())
    files[5].write_text("not an image")
    files[21].write_bytes(files[20].read_bytes())
    return read_manifest(folder)


def settings_for(**changes: object) -> ExtractSettings:
    return ExtractSettings.of({"base": "squeezenet1_1", "weights": "embedded", "batch_size": 4, **changes})


def by_index(results: Iterator[Embedded]) -> tuple[dict[int, np.ndarray], dict[int, str], list[int]]:
    features, errors, duplicates = {}, {}, []
    for done in results:
        if done.good:
            features.update(zip(done.indices, done.layers[0], strict=True))
        errors.update({loaded.index: loaded.error.reason for loaded in done.images if loaded.error})
        duplicates += [loaded.index for loaded in done.images if loaded.duplicate]
        assert all(loaded.pixels is None for loaded in done.images)
    return features, errors, duplicates


@pytest.mark.slow
def test_two_processes_compute_what_one_does(base: Base, photos: Manifest) -> None:
    with Embedder(base, recipe_for(base), settings_for(workers=2)) as embedder:
        expected, _, _ = by_index(embedder.run(photos.records))
    assert sorted(expected) == [row for row in range(30) if row != 5]
    with Crew(["cpu", "cpu"], recipe_for(base), settings_for()) as crew:
        assert (crew.name, crew.device, crew.shapes) == ("onnxruntime", "cpu,cpu", [(512,)])
        features, errors, duplicates = by_index(crew.run(photos.records))
        assert crew.seconds > 0
        assert crew.timings.decode > 0
        processes = [worker.process for worker in crew._workers]
    assert not any(process.is_alive() for process in processes)
    assert errors == {5: "not-an-image"}
    assert sorted([*features, *duplicates]) == sorted(expected)
    assert set(duplicates) <= {20, 21}
    for row, values in features.items():
        np.testing.assert_allclose(values, expected[row], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 4])
def test_fewer_images_than_processes_could_take(base: Base, photos: Manifest, count: int) -> None:
    with Crew(["cpu", "cpu"], recipe_for(base), settings_for()) as crew:
        features, _, _ = by_index(crew.run(photos.records[:count]))
    assert sorted(features) == list(range(count))


def test_a_process_that_dies_is_an_error_and_no_hang(base: Base, photos: Manifest) -> None:
    with Crew(["cpu"], recipe_for(base), settings_for()) as crew:
        results = crew.run(photos.records * 50)
        next(results)
        os.kill(crew._workers[0].process.pid or 0, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"the process of device cpu was killed by SIGKILL; rows .* are kept"):
            list(results)


def test_extraction_on_two_devices_gives_the_store_of_one(photos: Manifest, tmp_path: Path) -> None:
    from pipeline.commands.extract import extract
    from pipeline.store import FeatureStore

    options = {"base": "squeezenet1_1", "weights": "embedded", "batch_size": 4}
    one = extract(photos.source, tmp_path / "one.h5", device="cpu", **options)
    two = extract(photos.source, tmp_path / "two.h5", device="cpu,cpu", **options)
    assert two.device == "cpu,cpu"
    assert two.bad == one.bad
    assert two.computed + two.reused == one.computed + one.reused == 29  # one is bad
    with FeatureStore.open(one.store) as first, FeatureStore.open(two.store) as second:
        assert first.recipe == second.recipe
        assert first.ids == second.ids
        np.testing.assert_allclose(first.features("avgpool"), second.features("avgpool"), rtol=1e-4, atol=1e-5)


def test_no_process_imports_what_lies_in_the_current_folder(
    tmp_path: Path, console_script: Path, planted: Callable[..., Path]
) -> None:
    ran = planted("multiprocessing", "pickle", "pipeline/__init__", "torch", "runpy")
    write_photos(tmp_path / "p", 4)
    command = [sys.executable, console_script, "extract", "p", "-o", "f.h5", "--base", "squeezenet1_1"]
    command += ["--weights", "embedded", "--batch-size", "2", "--device", "cpu,cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert not ran.exists(), ran.read_text()
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 of 4 images have features" in done.stdout


def test_the_path_of_other_processes_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with nothing_imported_from_here():
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert "PYTHONSAFEPATH" not in os.environ
    monkeypatch.setenv("PYTHONSAFEPATH", "yes")
    with nothing_imported_from_here():
        pass
    assert os.environ["PYTHONSAFEPATH"] == "yes"


@pytest.mark.slow
def test_what_a_process_cannot_start_with_is_told_as_it_is(base: Base) -> None:
    with pytest.raises(BaseError, match=r"weights file gone.pt does not exist"):
        Crew(["cpu"], recipe_for(base), settings_for(weights="gone.pt"))


def test_errors_of_images_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ImageError("corrupt", "for the test")))  # noqa: S301 - made one line above
    assert (error.reason, error.detail, str(error)) == ("corrupt", "for the test", "corrupt: for the test")


def test_names_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_names("cpu") == ["cpu"]
    assert device_names("cpu, cpu") == ["cpu", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert device_names("all") == ["cuda:0", "cuda:1", "cuda:2"]
    assert device_names("cuda:0,cuda:2") == ["cuda:0", "cuda:2"]
    with pytest.raises(SettingsError, match="device 'cuda:1' is listed twice"):
        device_names("cuda:1,cuda:1")
    with pytest.raises(EngineError, match="no device 'cuda:3' here"):
        device_names("cuda:0,cuda:3")
