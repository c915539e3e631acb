"""What a saved model says of images, from its folder alone."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from conftest import Trained
from pictures import encoded, photo, write_photos

from pipeline.commands.fit_head import fit_head
from pipeline.commands.predict import PredictResult, predict
from pipeline.errors import ModelError, SourceError


def test_one_image_alone_and_in_a_batch_agree(trained: Trained) -> None:
    together = predict(trained.linear, [trained.photos]).predictions
    assert len(together) == 36
    for entry in together[::7]:
        (alone,) = predict(trained.linear, [entry["id"]]).predictions
        assert alone["label"] == entry["label"]
        for (name, score), (same, other) in zip(alone["top"], entry["top"], strict=True):
            assert name == same
            assert score == pytest.approx(other, abs=1e-4)


def test_every_photo_gets_its_class(trained: Trained) -> None:
    for entry in predict(trained.linear, [trained.photos / "val"]).predictions:
        assert entry["label"] == Path(entry["id"]).parent.name
        assert entry["score"] == entry["top"][0][1] >= 0.5
        assert sum(score for _, score in entry["top"]) == pytest.approx(1)


def test_a_line_names_the_labels_of_a_set_that_has_several() -> None:
    answer = {"id": "a.jpg", "label": "bees", "score": 0.5, "top": [["bees", 0.5], ["ants", 0.4], ["\x1b", 0.1]]}
    lines = PredictResult([answer, {**answer, "set": ["bees"]}, {**answer, "set": ["bees", "\x1b"]}]).summary()
    plain = "a.jpg\tbees 0.500  ants 0.400  \\x1b 0.100"
    assert lines.splitlines() == [plain, plain, plain + "  (bees or \\x1b)"]


def test_what_is_unlike_the_training_pictures_is_marked(trained: Trained, tmp_path: Path) -> None:
    write_photos(tmp_path / "green", 3, first_seed=5000, colour=(40, 220, 60))
    seen = trained.photos / "train/ants/000.jpg"
    table = tmp_path / "out.csv"
    result = predict(trained.linear, [tmp_path / "green", seen], csv=table)
    *strange, own = result.predictions
    assert all(entry["unknown"] and entry["unlikeness"] > 1 for entry in strange)
    assert (own["unknown"], own["nearest"]) == (False, "train/ants/000.jpg")
    *lines, note = result.summary().splitlines()
    assert ["unknown? (nearest: train/" in line for line in lines] == [True, True, True, False]
    assert note.startswith("note: 3 images called unknown: unlike the training pictures, and what is said of them may")
    with table.open(newline="") as file:
        assert [row["unknown"] for row in csv.DictReader(file)] == ["True", "True", "True", "False"]


def test_nothing_is_called_unknown_where_that_is_not_asked_for_or_not_known(trained: Trained, tmp_path: Path) -> None:
    write_photos(tmp_path / "green", 1, first_seed=5000, colour=(40, 220, 60))
    asked = predict(trained.linear, tmp_path / "green", no_unknown=True, csv=tmp_path / "out.csv")
    without = fit_head(trained.store, tmp_path / "model", no_unknown=True)
    assert without.unknown is None
    assert not (without.model / "unlikeness.safetensors").exists()
    for result in (asked, predict(without.model, tmp_path / "green")):
        assert [sorted(entry) for entry in result.predictions] == [["id", "label", "score", "set", "top"]]
        assert "unknown?" not in result.summary()
    assert (tmp_path / "out.csv").read_text().splitlines()[0].endswith(",error")


def test_a_bad_image_has_an_error_and_a_place_among_the_others(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("text")
    good = trained.photos / "val/ants/000.jpg"
    table = tmp_path / "out.csv"
    result = predict(trained.linear, [tmp_path / "text.jpg", good, tmp_path / "gone.jpg"], csv=table)
    assert [sorted(entry) for entry in result.predictions] == [
        ["error", "id"],
        ["id", "label", "nearest", "score", "set", "top", "unknown", "unlikeness"],
        ["error", "id"],
    ]
    assert result.predictions[0]["error"].startswith("not-an-image")
    assert not result.all_bad
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["", "ants", ""]
    assert rows[2]["error"].startswith("missing")


def test_files_that_are_left_out_of_a_folder_are_counted(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jxl", "b.jxl", "c.dng"):
        (tmp_path / name).touch()
    (tmp_path / "d.jpg").write_bytes(encoded(photo()))
    assert len(predict(trained.linear, [tmp_path]).predictions) == 1
    assert f"{tmp_path}: left out 3 files: 2 .jxl, 1 .dng (formats that are not read" in caplog.text


def test_only_bad_images_are_all_bad(trained: Trained, tmp_path: Path) -> None:
    assert predict(trained.linear, [tmp_path / "gone.jpg"]).all_bad


def test_numbers_have_a_value(trained: Trained, tmp_path: Path) -> None:
    result = predict(trained.ridge, [trained.photos / "val/ants/000.jpg"], csv=tmp_path / "out.csv")
    (entry,) = result.predictions
    assert entry["value"] == pytest.approx(107.5, abs=3)
    assert set(entry) == {"id", "value", "interval", "unknown", "unlikeness", "nearest"}
    assert (tmp_path / "out.csv").read_text().startswith("id,value,low,high,error,unknown,unlikeness,nearest\n")


def test_names_with_odd_bytes_come_back(trained: Trained, tmp_path: Path) -> None:
    odd = tmp_path / "a\nb\udcff.jpg"
    odd.write_bytes(encoded(photo(1)))
    result = predict(trained.linear, [odd], csv=tmp_path / "out.csv", no_unknown=True)
    assert "label" in result.predictions[0]
    assert result.summary().count("\n") == 0


def test_no_image_and_no_model_are_one_line(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        predict(trained.linear, [])
    with pytest.raises(ModelError, match=r"no model\.json"):
        predict(tmp_path, ["x.jpg"])
