"""`pipeline compare`: models on the same rows, and those that were scored on others."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import Trained
from pictures import write_photos
from PIL import Image

import pipeline
from pipeline.cli import cli
from pipeline.commands.compare import compare
from pipeline.errors import ModelError, OutputExistsError, PipelineError, SettingsError

EMBEDDED = {"base": "squeezenet1_1", "weights": "embedded"}


def answered(
    folder: Path, truth: Sequence[object], answers: Sequence[object], *, ids: Sequence[str] = (), split: str = "val"
) -> Path:
    """A model folder as far as a comparison reads it."""
    folder.mkdir(parents=True)
    column = "label" if isinstance(truth[0], str) else "value"
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", "true", column])
        names = ids or [f"{row}.jpg" for row in range(len(truth))]
        writer.writerows([name, split, *both] for name, *both in zip(names, truth, answers, strict=True))
    return folder


def test_heads_of_one_store_are_compared_on_its_held_out_rows(trained: Trained, tmp_path: Path) -> None:
    knn = pipeline.fit_head(trained.store, tmp_path / "knn", head="knn").model
    result = compare([trained.linear, knn])
    recorded = json.loads((trained.linear / "metrics.json").read_text())
    entry = result.models[0]
    assert entry.metrics["accuracy"] == recorded["val"]["accuracy"]
    assert entry.metrics["accuracy_interval"] == pytest.approx(recorded["val"]["accuracy_interval"])
    assert entry.metrics["log_loss"] == recorded["val"]["log_loss"]
    assert entry.training["log_loss"] == recorded["train"]["log_loss"]
    assert entry.seconds == recorded["seconds"] > 0
    assert entry.size > 2000
    assert (result.rows, result.groups, entry.part) == (12, 12, "val")
    [gap] = result.differences
    assert (gap.a, gap.b) == (trained.linear, knn)


def test_a_fine_tuned_model_stands_beside_heads(trained: Trained, tmp_path: Path) -> None:
    tuned = pipeline.finetune(trained.photos, tmp_path / "t", epochs=1, train="head", size=64, **EMBEDDED).model
    result = compare([trained.linear, tuned])
    assert result.rows == 12
    assert result.models[1].seconds is not None


def test_differences_have_paired_intervals_and_the_exact_test(tmp_path: Path) -> None:
    truth = ["ant"] * 50
    a = answered(tmp_path / "a", truth, ["ant"] * 40 + ["bee"] * 10)
    b = answered(tmp_path / "b", truth, ["bee"] * 8 + ["ant"] * 42)
    c = answered(tmp_path / "c", truth, ["ant"] * 40 + ["bee"] * 10)
    first, same, _ = compare([a, b, c]).differences
    assert first.difference == pytest.approx(-0.04)
    assert (first.only_a, first.only_b) == (8, 10)
    assert first.p == pytest.approx(0.8145, abs=1e-4)  # binomial test of 8 in 18
    assert first.low == pytest.approx(-0.04 - 1.96 * 0.0848, abs=0.025)
    assert first.high == pytest.approx(-0.04 + 1.96 * 0.0848, abs=0.025)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert set(same.to_json()) == {"a", "b", "difference", "low", "high", "p", "only_a", "only_b"}


def test_the_order_of_the_rows_and_their_spelling_do_not_matter(tmp_path: Path) -> None:
    truth, ids = ["ant", "bee", "=c"], ["x.jpg", "=y.jpg", "z.jpg"]
    a = answered(tmp_path / "a", truth, truth, ids=ids)
    b = answered(tmp_path / "b", truth[::-1], ["=c", "bee", "bee"], ids=["z.jpg", "'=y.jpg", "x.jpg"])
    result = compare([a, b])
    assert [one.metrics["accuracy"] for one in result.models] == [1, pytest.approx(2 / 3)]


def test_numbers_are_compared_by_their_mean_absolute_error(tmp_path: Path) -> None:
    truth = np.arange(30.0)
    a, b = answered(tmp_path / "a", truth, truth + 1), answered(tmp_path / "b", truth, truth - 3)
    result = compare([a, b], output=tmp_path / "c.png")
    assert [one.metrics["mae"] for one in result.models] == [1, 3]
    [gap] = result.differences
    assert (gap.difference, gap.low, gap.high, gap.p) == (-2, -2, -2, None)
    assert "MAE" in result.summary()


def test_stores_of_the_same_images_under_other_names_match_by_content(trained: Trained, tmp_path: Path) -> None:
    table = tmp_path / "photos.csv"
    shutil.copytree(trained.photos, tmp_path / "deeper/photos")
    files = sorted((tmp_path / "deeper/photos").rglob("*.jpg"), reverse=True)
    lines = [f"{file.relative_to(tmp_path)},{file.parts[-2]},{file.parts[-3]}" for file in files]
    table.write_text("\n".join(["image,class,split", *lines]))
    store = pipeline.extract(table, tmp_path / "f.h5", layer="features.5", pool="avg", **EMBEDDED).store
    other = pipeline.fit_head(store, tmp_path / "other").model
    assert compare([trained.linear, other]).rows == 12
    store.unlink()
    with pytest.raises(ModelError, match=r"other was scored on other rows than .*: 12 \(val\) and 12 \(val\), 0 of"):
        compare([trained.linear, other])


def test_copies_of_an_image_are_one_observation(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 3)):
        for seed, kind in enumerate(("ants", "bees")):
            write_photos(tmp_path / "p" / split / kind, count, first_seed=100 * seed + 50 * (split == "val"))
    for number in range(5):
        shutil.copy(tmp_path / "p/val/ants/000.jpg", tmp_path / f"p/val/ants/copy{number}.jpg")
    store = pipeline.extract(tmp_path / "p", tmp_path / "f.h5", **EMBEDDED).store
    models = [pipeline.fit_head(store, tmp_path / head, head=head).model for head in ("ridge", "knn")]
    result = compare(models)
    assert (result.rows, result.groups) == (11, 6)


def test_models_of_other_rows_are_refused_by_name(tmp_path: Path) -> None:
    a = answered(tmp_path / "a", ["x"] * 4, ["x"] * 4)
    b = answered(tmp_path / "b", ["x"] * 3, ["x"] * 3, ids=["0.jpg", "1.jpg", "new.jpg"])
    with pytest.raises(
        ModelError, match=r"b was scored on other rows than .*a: 3 \(val\) and 4 \(val\), 2 of them the same.*new\.jpg"
    ):
        compare([a, answered(tmp_path / "fits", ["x"] * 4, ["x"] * 4), b])


def test_models_of_other_labels_or_another_kind_are_refused(tmp_path: Path) -> None:
    a = answered(tmp_path / "a", ["x", "y"], ["x", "y"])
    b = answered(tmp_path / "b", ["x", "x"], ["x", "y"])
    with pytest.raises(ModelError, match=r"other labels than .* in 1 row: 1\.jpg is x there and y here"):
        compare([a, b])
    with pytest.raises(ModelError, match=r"n predicts numbers and .*a classes"):
        compare([a, answered(tmp_path / "n", [1.0, 2.0], [1.0, 2.0])])


def test_evaluations_are_compared_like_models(trained: Trained, tmp_path: Path) -> None:
    knn = pipeline.fit_head(trained.store, tmp_path / "knn", head="knn").model
    for name, model in (("a", trained.linear), ("b", knn)):
        pipeline.evaluate(model, trained.store, split="all", output=tmp_path / name)
    result = compare([tmp_path / "a", tmp_path / "b"])
    assert (result.rows, result.models[0].part) == (36, "all")
    assert "36 rows (all rows), the same for all models" in result.summary()


def test_the_test_split_is_compared_where_all_have_one(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        answered(folder, ["x"] * 2, ["x"] * 2)
        lines = (folder / "predictions.csv").read_text() + "t.jpg,test,x,y\n"
        (folder / "predictions.csv").write_text(lines)
    assert compare(folders).rows == 1
    assert compare(folders, split="val").rows == 2
    answered(tmp_path / "c", ["x"] * 2, ["x"] * 2)
    assert compare([*folders, tmp_path / "c"]).rows == 2


def test_a_test_split_that_a_head_knows_as_val_is_the_same_rows(tmp_path: Path) -> None:
    """A source of train and test alone: a head is scored on test as val, a network on test and on a val of its own."""
    head = answered(tmp_path / "head", ["x"] * 2, ["x", "y"], ids=("t0.jpg", "t1.jpg"))
    tuned = answered(tmp_path / "tuned", ["x"] * 2, ["x"] * 2, ids=("t0.jpg", "t1.jpg"), split="test")
    with (tuned / "predictions.csv").open("a") as file:
        file.write("v.jpg,val,x,y\n")
    result = compare([head, tuned])
    assert (result.rows, result.models[1].metrics["accuracy"]) == (2, 1.0)


@pytest.mark.parametrize(
    ("names", "options", "error", "message"),
    [
        (["a", "gone"], {}, ModelError, r"gone/predictions\.csv cannot be read: No such file"),
        (["a", "a"], {}, SettingsError, "named twice"),
        ([], {}, SettingsError, "no model is named"),
        (["a"], {"split": "test"}, ModelError, "a has no rows of test"),
        (["a"], {"split": "train"}, SettingsError, "split='train': give auto or val or test"),
        (["a"], {"output": "c.pdf"}, SettingsError, r"called NAME\.png"),
        (["a"], {"output": "old.png"}, OutputExistsError, r"old\.png exists already"),
        (["bad"], {}, ModelError, "is damaged: could not convert"),
        (["short"], {}, ModelError, "is damaged: 'true'"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    options: dict[str, str],
    error: type[PipelineError],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    answered(Path("a"), ["x"], ["x"])
    answered(Path("bad"), [1.0], ["much"])
    answered(Path("short"), ["x"], ["x"])
    Path("short/predictions.csv").write_text("id,split,label\n0.jpg,val,x\n")
    Path("old.png").write_bytes(b"")
    with pytest.raises(error, match=message) as caught:
        compare(names, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_the_command_prints_a_table_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = answered(tmp_path / "a", ["x"] * 9 + ["y"], ["x"] * 10)
    b = answered(tmp_path / ("long" * 20), ["x"] * 9 + ["y"], ["x"] * 9 + ["y"])
    cli.main(["compare", str(a), str(b), "-o", str(tmp_path / "c.png")], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "10 rows (held-out rows), the same for all models"
    assert lines[2].split()[1] == "0.9"
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size[0] > 300
    cli.main(["compare", str(a), str(b), "--json"], standalone_mode=False)
    said = json.loads(capsys.readouterr().out)
    assert [one["metrics"]["accuracy"] for one in said["models"]] == [0.9, 1.0]
    assert said["differences"][0]["p"] == 1.0
