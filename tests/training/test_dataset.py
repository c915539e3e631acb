from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import photo, write_photos

from pipeline.config import FinetuneSettings
from pipeline.errors import HeadError, SourceError
from pipeline.images.transform import InputTransform
from pipeline.sources import FileImage, Manifest, Record, Target
from pipeline.splits import Split
from pipeline.training.batches import Images
from pipeline.training.dataset import Examples, read_images, split_examples

TRANSFORM = InputTransform(resize=(40, 40), crop=(32, 32))
CODES = Target("class", np.array([0, 1, 1, -1]), ("ant", "bee"))
LENGTHS = Target("length", np.array([1.0, 3.0, 5.0, np.nan]))


def manifest_of(*targets: Target, folder: Path = Path("nowhere"), splits: tuple[str, ...] = ("",) * 4) -> Manifest:
    records = [
        Record(index, f"{index:03}.jpg", FileImage(str(folder / f"{index:03}.jpg")), split)
        for index, split in enumerate(splits)
    ]
    return Manifest("photos", records, {target.name: target for target in targets})


def look(manifest: Manifest, target: Target, **options: Any) -> Images:
    options = {"workers": 1, "max_bad": 0.1, "max_pixels": 2**26, "progress": False, **options}
    return read_images(manifest, target, TRANSFORM, **options)


def test_only_images_with_a_known_target_are_read(tmp_path: Path) -> None:
    write_photos(tmp_path, 4)
    for target in (CODES, LENGTHS):
        assert sorted(look(manifest_of(target, folder=tmp_path), target).sha256) == [0, 1, 2]
    unknown = Target("class", np.full(4, -1), ("ant", "bee"))
    with pytest.raises(SourceError, match="no image has a known 'class'; there is nothing to learn"):
        look(manifest_of(unknown, folder=tmp_path), unknown)


def test_a_handful_of_bad_images_is_no_error_and_a_tenth_of_all_is(tmp_path: Path) -> None:
    write_photos(tmp_path, 40)
    target = Target("class", np.arange(40) % 2, ("ant", "bee"))
    for number in range(10):
        (tmp_path / f"{number:03}.jpg").write_bytes(b"")
    manifest = manifest_of(target, folder=tmp_path, splits=("",) * 40)
    assert len(look(manifest, target).bad) == 10
    (tmp_path / "010.jpg").write_bytes(b"")
    assert len(look(manifest, target, max_bad=0.5).bad) == 11
    with pytest.raises(SourceError, match=r"11 of 40 images are bad \(11 empty; the first is 000.jpg\).*--max-bad"):
        look(manifest, target)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(
        SourceError, match=r"40 of 40 images are bad .*; fix or remove them and run the same command again$"
    ):
        look(manifest, target, max_bad=1.0)


def parted(folder: Path, splits: tuple[str, ...], values: list[int] | None = None) -> Examples:
    target = Target("class", np.array(values or [row % 2 for row in range(len(splits))]), ("ant", "bee"))
    manifest = manifest_of(target, folder=folder, splits=splits)
    return split_examples(manifest, target, look(manifest, target), FinetuneSettings.of({}))


def test_the_sources_own_split_counts(tmp_path: Path) -> None:
    write_photos(tmp_path, 9)
    examples = parted(
        tmp_path, ("train", "val", "train", "test", "train", "", "train", "val", "train"), [0, 1] + [1, 0] * 3 + [1]
    )
    assert {name: rows.tolist() for name, rows in examples.parts.items()} == {
        "val": [1, 7],
        "test": [3],
        "train": [0, 2, 4, 6, 8],
    }
    assert examples.notices == ["1 row of no split left out"]


def test_a_test_split_alone_never_chooses_an_epoch(tmp_path: Path) -> None:
    write_photos(tmp_path, 6)
    examples = parted(tmp_path, ("", "test", "", "", "test", ""))
    assert examples.held_out["test"].tolist() == [1, 4]
    assert len(examples.held_out["val"]) == 1
    assert sorted([*examples.train.tolist(), *examples.held_out["val"].tolist()]) == [0, 2, 3, 5]
    assert examples.notices == []


def test_without_a_split_each_class_gives_a_share(tmp_path: Path) -> None:
    write_photos(tmp_path, 40)
    examples = parted(tmp_path, ("",) * 40)
    assert sorted(examples.target.values[examples.held_out["val"]].tolist()) == [0, 0, 1, 1]
    assert len(examples.train) == 36
    again = parted(tmp_path, ("train",) * 40)
    assert again.held_out["val"].tolist() == examples.held_out["val"].tolist()


def test_training_rows_with_the_content_of_a_held_out_one_are_left_out(tmp_path: Path) -> None:
    write_photos(tmp_path, 6)
    (tmp_path / "000.jpg").write_bytes((tmp_path / "005.jpg").read_bytes())
    examples = parted(tmp_path, ("train", "train", "train", "train", "val", "val"))
    assert examples.train.tolist() == [1, 2, 3]
    assert examples.notices == ["1 training row left out: a held-out row has the same content"]


def test_bad_rows_are_in_no_part(tmp_path: Path) -> None:
    write_photos(tmp_path, 6)
    (tmp_path / "002.jpg").write_bytes(b"")
    examples = parted(tmp_path, ("train", "train", "train", "train", "val", "val"))
    assert examples.train.tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("splits", "values", "message"),
    [
        (("train", "train", "val", "val"), [0, 0, 0, 1], "1 different 'class' in 2 training rows"),
        (("val", "val", "val", "val"), [0, 1, 0, 1], "0 different 'class' in 0 training rows"),
    ],
)
def test_nothing_to_tell_apart_is_an_error(
    tmp_path: Path, splits: tuple[str, ...], values: list[int], message: str
) -> None:
    write_photos(tmp_path, 4)
    with pytest.raises(HeadError, match=message) as caught:
        parted(tmp_path, splits, values)
    assert "\n" not in str(caught.value)


def examples_of(target: Target, train: list[int]) -> Examples:
    return Examples(
        target, Split(np.array(train), {"val": np.array([len(target.values) - 1])}, []), np.arange(len(target.values))
    )


def test_numbers_are_standardised_by_the_training_rows_and_back() -> None:
    examples = examples_of(Target("length", np.array([1.0, 3.0, 100.0])), [0, 1])
    assert (examples.centre, examples.scale) == (2.0, 1.0)
    assert examples.inputs().dtype == np.float32
    assert examples.inputs().tolist() == [-1.0, 1.0, 98.0]
    assert examples.values(examples.inputs()).tolist() == [1.0, 3.0, 100.0]
    codes = examples_of(Target("class", np.array([0, 1, 1, 1]), ("ant", "bee")), [0, 1, 2])
    assert codes.inputs().tolist() == [0, 1, 1, 1]


def test_balanced_weights_give_every_class_the_same_say() -> None:
    examples = examples_of(Target("class", np.array([0, 1, 1, 1, 0]), ("ant", "bee", "wasp")), [0, 1, 2, 3])
    ant, bee, wasp = examples.balance().tolist()
    assert (ant, bee) == (2.0, pytest.approx(2 / 3))
    assert 1 * ant + 3 * bee == pytest.approx(4), "the mean over rows is 1"
    assert wasp == 2.0, "a class without a row never counts, and is no division by zero"


def test_the_fingerprint_is_of_contents_targets_and_parts(tmp_path: Path) -> None:
    write_photos(tmp_path, 4)
    target = Target("class", np.array([0, 1, 0, 1]), ("ant", "bee"))
    images = look(manifest_of(target, folder=tmp_path), target)
    first = examples_of(target, [0, 1, 2]).fingerprint(images)
    assert examples_of(target, [0, 1, 2]).fingerprint(images) == first
    assert examples_of(target, [0, 1]).fingerprint(images) != first
    other = Target("class", np.array([0, 1, 1, 1]), ("ant", "bee"))
    assert examples_of(other, [0, 1, 2]).fingerprint(images) != first
    photo(77).save(tmp_path / "002.jpg")
    changed = look(manifest_of(target, folder=tmp_path), target)
    assert examples_of(target, [0, 1, 2]).fingerprint(changed) != first
