"""`pipeline label`: numbers drawn for classes, in a table that is a source."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded, photo, write_photos
from PIL import Image

import pipeline
from pipeline.cli import cli
from pipeline.commands.label import Normal, label
from pipeline.config import SourceSettings
from pipeline.errors import OutputExistsError, PipelineError, SettingsError, SourceError
from pipeline.sources import read_manifest

NORMAL = ("ants=100,30,20", "bees=40,8,10")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def values_of(path: Path) -> dict[str, str]:
    return {row["image"]: row["value"] for row in rows_of(path)}


def test_the_table_is_a_source_whose_images_are_found(photo_folder: Path) -> None:
    result = label(photo_folder, photo_folder.parent / "lengths.csv", normal=NORMAL)
    manifest = read_manifest(result.csv, SourceSettings.of({"target": ("class", "value")}))
    assert [Path(record.image.where).is_file() for record in manifest.records] == [True] * 12
    assert manifest.targets["class"].names == ("ants", "bees")
    assert manifest.targets["value"].task == "numbers"
    values, codes = manifest.targets["value"].values, manifest.targets["class"].values
    assert result.classes["ants"].mean == pytest.approx(values[codes == 0].mean())
    assert result.classes["bees"].spread == pytest.approx(values[codes == 1].std())
    assert (result.rows, result.unknown) == (12, 0)
    store = pipeline.extract(
        result.csv, photo_folder.parent / "f.h5", target="value", base="squeezenet1_1", weights="embedded"
    )
    assert store.good == 12


def test_the_histogram_stands_beside_it(photo_folder: Path) -> None:
    result = label(photo_folder, photo_folder / "lengths.csv", normal=NORMAL)
    assert result.picture == photo_folder / "lengths.png"
    with Image.open(result.picture) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_a_value_depends_on_seed_class_and_image_alone(photo_folder: Path, tmp_path: Path) -> None:
    first = values_of(label(photo_folder, tmp_path / "a.csv", normal=NORMAL).csv)
    assert values_of(label(photo_folder, tmp_path / "b.csv", normal=NORMAL[::-1]).csv) == first
    assert (
        values_of(label(photo_folder, tmp_path / "c.csv", normal=NORMAL, seed=14).csv).items().isdisjoint(first.items())
    )
    (photo_folder / "ants/new.jpg").write_bytes(encoded(photo(77)))
    more = values_of(label(photo_folder, tmp_path / "d.csv", normal=NORMAL).csv)
    assert more.pop("photos/ants/new.jpg")
    assert more == first


def test_values_have_the_distribution_above_the_floor() -> None:
    """A truncated normal distribution: mean and spread in closed form (Johnson, Kotz and Balakrishnan, 1994, 10.1)."""
    generator = np.random.default_rng(0)
    drawn = [Normal(100, 30, 80).draw(generator) for _ in range(20_000)]
    values = np.array([value for value, _ in drawn])
    assert values.min() >= 80
    below, density = 0.252493, 0.319448  # of the standard normal distribution, at (80 - 100) / 30
    assert values.mean() == pytest.approx(100 + 30 * density / (1 - below), abs=0.5)
    assert np.count_nonzero(values == 80) < 5, "redrawn, not clipped: nothing piles up at the floor"
    again = sum(redrawn for _, redrawn in drawn) / len(drawn)
    assert again == pytest.approx(below / (1 - below), abs=0.02)


def test_splits_and_images_of_no_class_keep_their_rows(split_folder: Path, tmp_path: Path) -> None:
    rows = rows_of(label(split_folder, tmp_path / "a.csv", normal=NORMAL).csv)
    assert {row["split"] for row in rows} == {"train", "val"}
    lines = [f"{row['image']},{'' if number == 3 else row['class']}" for number, row in enumerate(rows)]
    (tmp_path / "classes.csv").write_text("\n".join(["image,kind", *lines]))
    result = label(tmp_path / "classes.csv", tmp_path / "b.csv", normal=NORMAL, column="length")
    assert (result.rows, result.unknown) == (23, 1)
    assert [row["length"] == "" for row in rows_of(result.csv)].index(True) == 3
    assert list(rows_of(result.csv)[0]) == ["image", "kind", "length"]


@pytest.mark.parametrize("name", ["=1.jpg", "-x.jpg", "@y.jpg", "a,b.jpg", 'say "x".jpg', "'tis.jpg", "猫 1.jpg"])
def test_files_of_any_name_are_found(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(encoded(photo(2)))
    (tmp_path / "kinds.csv").write_text(f'image,kind\n"{name.replace(chr(34), chr(34) * 2)}",ants\n')
    result = label(tmp_path / "kinds.csv", tmp_path / "n.csv", normal=NORMAL[:1])
    [record] = read_manifest(result.csv, SourceSettings.of({"target": ("value",)})).records
    assert Path(record.image.where).samefile(tmp_path / name)


@pytest.mark.parametrize(
    ("normal", "message"),
    [
        (("ant=100,30", NORMAL[1]), r"has no class 'ant' \(did you mean 'ants'\?\)"),
        (NORMAL[:1], "no numbers for the class 'bees'; give --normal bees="),
        ((), "no numbers for the classes 'ants', 'bees'"),
        (("ants=20,30,100", NORMAL[1]), "the floor 100 is above the mean 20"),
        (("ants=20,-3", NORMAL[1]), "the spread -3 is negative"),
        (("ants=20", NORMAL[1]), "is no distribution; give MEAN,SPREAD"),
        (("ants=nan,1", NORMAL[1]), "is no distribution"),
        (("ants=1,2,3,4", NORMAL[1]), "is no distribution"),
        (("ants", NORMAL[1]), "give CLASS=MEAN,SPREAD,FLOOR"),
        ((*NORMAL, "ants=1,1"), "names the class 'ants' twice"),
    ],
)
def test_numbers_that_fit_no_class_are_refused(photo_folder: Path, normal: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        label(photo_folder, photo_folder / "x.csv", normal=normal)
    assert not list(photo_folder.glob("x.*"))


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("photos/ants/x.csv", {}, "is not below .*ants, where `extract` looks for the images"),
        ("x.txt", {}, "a table of labels is called NAME.csv"),
        ("old.csv", {}, "old.csv exists already; give --force"),
        ("drawn.csv", {}, r"drawn\.png exists already"),
        ("x.csv", {"column": "class"}, "column='class' is taken"),
        ("x.csv", {"seed": -1}, "seed=-1: give a whole number"),
    ],
)
def test_an_output_that_would_mislead_is_refused(
    photo_folder: Path, output: str, options: dict[str, object], message: str
) -> None:
    root = photo_folder.parent
    (root / "old.csv").write_text("image\n")
    (root / "drawn.png").write_bytes(encoded(photo(3), "PNG"))
    with pytest.raises(PipelineError, match=message):
        label(photo_folder, root / output, normal=NORMAL, **options)  # type: ignore[arg-type]


def test_the_source_itself_is_never_replaced(photo_folder: Path) -> None:
    table = photo_folder.parent / "t.csv"
    table.write_text("image,class\nphotos/ants/000.jpg,ants\n")
    with pytest.raises(OutputExistsError, match="is the source itself"):
        label(table, table, normal=NORMAL[:1], force=True)
    assert table.read_text().startswith("image,class")


def test_a_source_without_classes_is_refused(tmp_path: Path) -> None:
    write_photos(tmp_path / "flat", 2)
    with pytest.raises(SourceError, match="has no classes to draw numbers for"):
        label(tmp_path / "flat", tmp_path / "x.csv", normal=NORMAL)


def test_the_command_prints_what_was_drawn(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["label", str(photo_folder), "-o", str(photo_folder.parent / "n.csv")]
    words += ["--normal", NORMAL[0], "--normal", NORMAL[1]]
    cli.main(words, standalone_mode=False)
    assert "ants: 6 of mean " in capsys.readouterr().out
    cli.main([*words, "--force", "--json"], standalone_mode=False)
    said = json.loads(capsys.readouterr().out)
    assert (said["rows"], said["unknown"], said["column"]) == (12, 0, "value")
    assert set(said["classes"]["bees"]) == {"rows", "redrawn", "mean", "spread"}
