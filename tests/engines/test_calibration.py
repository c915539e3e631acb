"""Calibration: images by their content, in no order of theirs, and a drift that is refused where it is too much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cheap import recipe_for
from pictures import write_photos

from pipeline.bases import Base
from pipeline.config import ExtractSettings
from pipeline.engines import calibration, openvino_runner
from pipeline.errors import EngineError
from pipeline.sources import Manifest, read_manifest

SETTINGS = ExtractSettings.of({"device": "cpu", "precision": "int8", "workers": 1})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Eight photos; one is text and one a copy."""
    folder = tmp_path_factory.mktemp("calibration") / "photos"
    write_photos(folder, 8)
    files = sorted(folder.iterdir())
    files[2].write_text("not an image")
    files[5].write_bytes(files[4].read_bytes())
    return read_manifest(folder)


def test_images_are_chosen_by_content_and_not_by_order_or_name(base: Base, photos: Manifest) -> None:
    recipe = recipe_for(base, precision="int8")
    found, drift = calibration.calibrate(base, recipe, photos.records, SETTINGS)
    renamed = [replace(record, id=f"{99 - record.index}.jpg") for record in reversed(photos.records)]
    again, _ = calibration.calibrate(base, recipe, renamed, SETTINGS)
    assert found == again
    assert (found.images, drift.images) == (3, 3)  # of six contents that are images
    assert found.layers == ("avgpool",)
    assert 0.98 < drift.least <= drift.mean < 1


def test_a_large_source_is_not_read_as_a_whole(base: Base, photos: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "CANDIDATES", 4)
    recipe = recipe_for(base, precision="int8")
    found, _ = calibration.calibrate(base, recipe, photos.records, SETTINGS)
    again, _ = calibration.calibrate(base, recipe, photos.records[::-1], SETTINGS)
    assert found == again
    assert found.images <= 2


def test_a_base_that_loses_too_much_is_refused_with_the_figure(
    base: Base, photos: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "LEAST_MEAN", 0.99999)
    with pytest.raises(
        EngineError, match=r"squeezenet1_1 loses too much in int8: cosine to fp32 0\.99\d\d in the mean"
    ):
        calibration.calibrate(base, recipe_for(base, precision="int8"), photos.records, SETTINGS)


def test_what_calibration_needs(base: Base, photos: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = recipe_for(base, precision="int8")
    with pytest.raises(EngineError, match="needs two good images or more"):
        calibration.calibrate(base, recipe, photos.records[4:6], SETTINGS)
    monkeypatch.setattr(calibration, "is_installed", lambda: False)
    with pytest.raises(EngineError, match=r"int8 runs in OpenVINO: .* pip install '.*\[openvino\]'"):
        calibration.calibrate(base, recipe, photos.records, SETTINGS)
    assert openvino_runner.is_installed()
