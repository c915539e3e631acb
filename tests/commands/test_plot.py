"""`pipeline plot`: pictures of models, feature files and sources."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Trained
from PIL import Image

import pipeline
from pipeline.cli import cli
from pipeline.commands.fit_head import fit_head
from pipeline.commands.plot import plot, read_answers, usual_recipe
from pipeline.config import PlotSettings
from pipeline.errors import ModelError, OutputExistsError, SettingsError, SourceError
from pipeline.models.folder import read_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_all_pictures_of_a_model_of_classes(trained: Trained, tmp_path: Path) -> None:
    found = plot(trained.linear, tmp_path / "all")
    assert names(tmp_path / "all") == ["batch.png", "confusion.png", "predictions.png"]
    for picture in found.pictures:
        with Image.open(picture) as image:
            assert image.format == "PNG"
            assert min(image.size) > 200


def test_a_picture_that_is_drawn_again_is_the_one_in_the_folder(trained: Trained, tmp_path: Path) -> None:
    for model in (trained.linear, trained.ridge):
        for kind in ("confusion", "predicted", "predictions"):
            before = model / "plots" / f"{kind}.png"
            if before.exists():
                again = plot(model, tmp_path / "again.png", kind=kind, force=True).pictures[0]
                assert again.read_bytes() == before.read_bytes()


def test_all_pictures_of_a_model_of_numbers_and_of_its_file(trained: Trained, tmp_path: Path) -> None:
    plot(trained.ridge, tmp_path / "model")
    assert names(tmp_path / "model") == ["batch.png", "histogram.png", "predicted.png", "predictions.png"]
    plot(trained.numbers, tmp_path / "store")
    assert names(tmp_path / "store") == ["batch.png", "histogram.png"]


def test_a_source_is_drawn_with_and_without_views(photo_folder: Path, tmp_path: Path) -> None:
    plain = plot(photo_folder, tmp_path / "plain.png", kind="batch").pictures[0]
    views = plot(photo_folder, tmp_path / "views.png", kind="batch", augment="crop,flip").pictures[0]
    with Image.open(plain) as first, Image.open(views) as second:
        assert first.size[0] < second.size[0]
    assert usual_recipe(PlotSettings(augment=("none",))).views == 0
    with pytest.raises(SettingsError, match="did you mean 'flip'"):
        plot(photo_folder, tmp_path / "x.png", kind="batch", augment="flop")
    with pytest.raises(SettingsError, match="is one itself"):
        plot(photo_folder, tmp_path / "x.png", source=photo_folder)


def test_an_unknown_kind_has_a_near_name_and_another_thing_lists_what_it_has(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="did you mean 'confusion'"):
        plot(trained.linear, tmp_path / "x.png", kind="confuson")
    with pytest.raises(SettingsError, match=r"has no picture of kind 'ranking'; it has predictions, confusion, batch$"):
        plot(trained.linear, tmp_path / "x.png", kind="ranking")
    with pytest.raises(SettingsError, match=r"give one --kind, or a folder"):
        plot(trained.linear, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced_unless_asked(photo_folder: Path, tmp_path: Path) -> None:
    plot(photo_folder, tmp_path / "x.png", kind="batch")
    with pytest.raises(OutputExistsError, match="--force"):
        plot(photo_folder, tmp_path / "x.png", kind="batch")
    plot(photo_folder, tmp_path / "x.png", kind="batch", force=True)


def test_images_that_moved_are_found_where_the_user_says(photo_folder: Path, tmp_path: Path) -> None:
    store = pipeline.extract(photo_folder, tmp_path / "f.h5", base="squeezenet1_1", weights="embedded").store
    model = pipeline.fit_head(store, tmp_path / "m", head="ridge", val=0.5).model
    moved = shutil.move(photo_folder, tmp_path / "moved")
    with pytest.raises(SourceError, match="--source"):
        plot(model, tmp_path / "x.png", kind="predictions")
    some = plot(model, tmp_path / "some")
    assert [path.name for path in some.pictures] == ["confusion.png"]
    assert "predictions is left out: none of its images could be read; say where they are with --source" in some.notices
    plot(model, tmp_path / "x.png", kind="predictions", source=moved)


def test_the_table_of_answers_is_read_as_it_was_and_a_damaged_one_is_refused(trained: Trained, tmp_path: Path) -> None:
    model = shutil.copytree(trained.linear, tmp_path / "m")
    record, _ = read_folder(model)
    rows = list(read_answers(model / "predictions.csv", record))
    assert {row["true"] for row in rows} == {"ants", "bees"}
    assert all(isinstance(row["score"], float) for row in rows)
    text = (model / "predictions.csv").read_text()
    (model / "predictions.csv").write_text(text.replace("ants", "wasps"))
    with pytest.raises(ModelError, match="cannot be read"):
        plot(model, tmp_path / "x.png", kind="confusion")
    (model / "predictions.csv").unlink()
    assert list(read_answers(model / "predictions.csv", record)) == []


def test_models_of_version_0_1_0_are_drawn(tmp_path: Path) -> None:
    for model in sorted((Path(__file__).parents[1] / "data/0.1.0").iterdir()):
        if (model / "model.json").exists() and (model / "predictions.csv").exists():
            assert plot(model, tmp_path / model.name).pictures


def test_the_command_prints_the_pictures(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plot", str(trained.linear), "--kind", "confusion,batch", "-o", str(tmp_path / "two"), "--json"]
    cli.main(arguments, standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["pictures"] == [str(tmp_path / "two" / f"{kind}.png") for kind in ("confusion", "batch")]


def test_the_learning_curve_is_drawn_again(trained: Trained, tmp_path: Path) -> None:
    fit_head(trained.store, tmp_path / "model", head="ridge", learning_curve=True)
    again = plot(tmp_path / "model", tmp_path / "again.png", kind="learning_curve").pictures[0]
    assert again.read_bytes() == (tmp_path / "model/plots/learning_curve.png").read_bytes()


def test_a_model_of_two_bases_is_drawn_as_it_was_in_its_folder(trained: Trained, tmp_path: Path) -> None:
    other = pipeline.extract(trained.photos, tmp_path / "o.h5", base="squeezenet1_1", weights="embedded", size=96).store
    fit_head([trained.store, other], tmp_path / "model", head="ridge")
    plot(tmp_path / "model", tmp_path / "all")
    kept = tmp_path / "model" / "plots"
    assert set(names(kept)) <= set(names(tmp_path / "all"))
    for picture in ("confusion.png", "predictions.png"):
        assert (tmp_path / "all" / picture).read_bytes() == (kept / picture).read_bytes()
