"""Folders of images: layouts, splits and classes, links, and all names that files can have."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from listing import ids, labels, listed, make_shard, refusal, table, touch
from pictures import encoded, photo

from pipeline.errors import ImageError
from pipeline.images.decoding import decode
from pipeline.sources import from_paths
from pipeline.sources.folder import MOST_LINKS

ROOT = Path(__file__).parents[2]


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    manifest = listed(touch(tmp_path, "b.png", "a.JPG", "c.Tiff"))
    assert ids(manifest) == ["a.JPG", "b.png", "c.Tiff"]
    assert manifest.targets == {}
    assert {record.split for record in manifest.records} == {""}


def test_one_folder_a_class(photo_folder: Path) -> None:
    manifest = listed(photo_folder)
    assert ids(manifest)[:2] == ["ants/000.jpg", "ants/001.jpg"]
    assert labels(manifest) == ["ants"] * 6 + ["bees"] * 6
    assert manifest.targets["class"].values.dtype == np.int64


def test_images_deeper_in_a_class_folder_belong_to_the_class(tmp_path: Path) -> None:
    manifest = listed(touch(tmp_path, "ants/1.jpg", "ants/red/large/2.jpg", "bees/3.jpg"))
    assert labels(manifest) == ["ants", "ants", "bees"]


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "val", "test"), ["test", "train", "val"]),
        (("Train", "valid"), ["train", "val"]),
        (("training", "validation"), ["train", "val"]),
    ],
)
def test_splits_with_class_folders(tmp_path: Path, folders: tuple[str, ...], splits: list[str]) -> None:
    touch(tmp_path, *(f"{folder}/{name}/1.jpg" for folder in folders for name in ("ants", "bees")))
    manifest = listed(tmp_path)
    assert sorted({record.split for record in manifest.records}) == splits
    assert labels(manifest) == ["ants", "bees"] * len(folders)


def test_a_test_split_without_classes_is_unknown(tmp_path: Path) -> None:
    manifest = listed(touch(tmp_path, "train/ants/1.jpg", "train/bees/1.jpg", "test/1.jpg"))
    assert labels(manifest) == [None, "ants", "bees"]
    assert [record.split for record in manifest.records] == ["test", "train", "train"]


def test_a_class_may_lack_in_one_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/ants/1.jpg", "train/bees/1.jpg", "val/ants/2.jpg")
    (tmp_path / "val/bees").mkdir()
    assert labels(listed(tmp_path)) == ["ants", "bees", "ants"]
    assert listed(tmp_path).notices == ()
    (tmp_path / "val/wasps").mkdir()
    (tmp_path / "train/hornets").mkdir()
    assert labels(listed(tmp_path)) == ["ants", "bees", "ants"]
    assert listed(tmp_path).notices == ("left out 2 class folders without images: 'hornets', 'wasps'",)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "holds no images: it is empty"),
        (
            ("a.txt", "b.txt", "c.jxl"),
            "holds no images, only other files (.txt 2, .jxl 1); images are named",
        ),
        (("1.jpg", "ants/2.jpg"), "holds 1 image beside folders of images ('ants')"),
        (("train/ants/1.jpg", "extra/ants/1.jpg"), "holds splits (train) and also folder 'extra'"),
        (("train/ants/1.jpg", "1.jpg"), "holds splits (train) and also images of no split"),
        (("train/ants/1.jpg", "train/1.jpg"), "/train holds 1 image beside folders of images ('ants')"),
        (("data/ants/1.jpg", "data/bees/1.jpg"), "holds one folder of folders; did you mean"),
    ],
)
def test_folders_that_can_be_read_in_two_ways(tmp_path: Path, paths: tuple[str, ...], message: str) -> None:
    assert message in refusal(touch(tmp_path, *paths))


def test_hidden_files_and_other_files_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", ".2.jpg", ".cache/3.jpg", "__MACOSX/4.jpg", "Thumbs.db", "notes.txt", "README")
    touch(tmp_path, "1.jxl", "2.JXL", "3.svg", "4.HEIC", "5.avif")
    manifest = listed(tmp_path)
    assert ids(manifest) == ["1.jpg", "4.HEIC", "5.avif"]
    assert manifest.notices == (
        "left out 3 files: 2 .jxl, 1 .svg (formats that are not read; save them as JPEG or PNG)",
        "left out 3 files: 1 .db, 1 .txt, 1 without suffix (not named like images)",
    )
    assert from_paths([tmp_path]).notices == tuple(f"{tmp_path}: {note}" for note in manifest.notices)


def test_bad_files_are_rows_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    reasons = {}
    for record in listed(tmp_path).records:
        with pytest.raises(ImageError) as caught:
            decode(record.image.read(10**6))
        reasons[record.id] = caught.value.reason
    assert reasons == {
        "text.jpg": "not-an-image",
        "empty.jpg": "empty",
        "gone.jpg": "missing",
        "self.jpg": "unreadable",
        "pipe.jpg": "unreadable",
    }
    with pytest.raises(ImageError, match="missing"):
        listed(tmp_path).records[1].image.stat()


def test_a_file_that_goes_after_listing_is_missing(photo_folder: Path) -> None:
    image = listed(photo_folder).records[0].image
    (photo_folder / "ants/000.jpg").unlink()
    with pytest.raises(ImageError, match="missing"):
        image.read(10**6)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    touch(root, "ants/1.jpg")
    touch(elsewhere, "1.jpg")
    (root / "bees").symlink_to(elsewhere)
    (root / "ants/again").symlink_to(root / "ants")
    (root / "ants/up").symlink_to("../..")
    manifest = listed(root)
    assert ids(manifest)[0] == "ants/1.jpg"
    assert "bees/1.jpg" in ids(manifest)
    assert "links to folders that lead in circles" in manifest.notices[-1]
    assert len(manifest) < 20


def test_many_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    names = [f"f{number}" for number in range(6)]
    touch(tmp_path, *(f"{name}/1.jpg" for name in names))
    for name in names:
        for other in names:
            if other != name:
                (tmp_path / name / other).symlink_to(f"../{other}")
    manifest = listed(tmp_path)
    assert max(path.count("/") for path in ids(manifest)) == MOST_LINKS + 1
    assert len(set(ids(manifest))) == len(manifest)


NAMES = [
    "-rf.jpg",
    "--help.jpg",
    "two\nlines.jpg",
    "tab\t.jpg",
    " lead.jpg",
    "日本語.jpg",
    "é.jpg",
    '"q",;.jpg',
]
LONGEST = "a" * 251 + ".jpg"


def test_strange_names_are_rows(tmp_path: Path) -> None:
    data = encoded(photo())
    for name in (*NAMES, LONGEST):
        (tmp_path / name).write_bytes(data)
    manifest = listed(tmp_path)
    assert ids(manifest) == sorted((*NAMES, LONGEST))
    assert all(record.image.read(10**6) == data for record in manifest.records)
    assert all(record.image.where.isprintable() for record in manifest.records)


def test_names_that_are_not_utf8_have_a_readable_id(tmp_path: Path) -> None:
    data = encoded(photo())
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        (tmp_path / name).write_bytes(data)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    (tmp_path / "café.jpg").write_bytes(data)
    manifest = listed(tmp_path)
    assert ids(manifest) == ["caf\\xe9.jpg", "café.jpg"]
    assert [record.image.read(10**6) for record in manifest.records] == [data, data]
    for record in manifest.records:
        record.id.encode()
    (tmp_path / "caf\\xe9.jpg").write_bytes(data)
    assert "the id 'caf\\\\xe9.jpg' is there twice" in refusal(tmp_path)


SETPRIV = Path("/usr/bin/setpriv")


@pytest.mark.skipif(os.geteuid() == 0 and not SETPRIV.exists(), reason="root reads everything")
def test_an_unreadable_folder_is_named() -> None:
    # Not under tmp_path, which is closed to the other user that root becomes.
    with tempfile.TemporaryDirectory() as folder:
        root = touch(Path(folder), "ants/1.jpg", "bees/1.jpg")
        root.chmod(0o755)
        (root / "bees").chmod(0)
        command = [sys.executable, "-c", f"from pipeline.sources import read_manifest; read_manifest({folder!r})"]
        if os.geteuid() == 0:
            command = [str(SETPRIV), "--reuid=65534", "--clear-groups", *command]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        (root / "bees").chmod(0o755)
    assert f"SourceError: cannot list {folder}/bees: Permission denied" in done.stderr


name = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(name.map(lambda text: text.lstrip(".") + ".jpg"), min_size=1, max_size=6))
def test_any_names_are_listed_once_and_sorted(tmp_path: Path, names: set[str]) -> None:
    names -= {".jpg"}
    root = Path(os.path.realpath(tmp_path)) / str(abs(hash(frozenset(names))))
    root.mkdir(exist_ok=True)
    for one in names:
        (root / one).touch()
    if names:
        assert ids(listed(root)) == sorted(names)


def test_a_stray_tar_does_not_hide_a_folder_of_images(photo_folder: Path) -> None:
    make_shard(photo_folder / "backup.tar", {"0.jpg": b"x"})
    assert len(listed(photo_folder)) == 12


def test_ants_and_bees(real_data: Path) -> None:
    manifest = listed(real_data / "data/hymenoptera")
    assert len(manifest) == 398
    splits = [record.split for record in manifest.records]
    assert (splits.count("train"), splits.count("val")) == (245, 153)
    assert manifest.targets["class"].names == ("ants", "bees")


def test_listing_opens_no_image(tmp_path: Path) -> None:
    touch(tmp_path, *(f"c{n % 7}/{n:04}.jpg" for n in range(2000)))
    code = textwrap.dedent(
        f"""
        import sys
        from pipeline.sources import read_manifest
        opened = []
        def note(event, args):
            if event == "open" and str(args[0]).startswith({str(tmp_path)!r}):
                opened.append(args[0])
        sys.addaudithook(note)
        assert len(read_manifest({str(tmp_path)!r})) == 2000
        print(len(opened), "torch" in sys.modules, "pyarrow" in sys.modules)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["0", "False", "False"]


# ---- the class at any depth ----


def test_at_any_depth_the_class_is_the_folder_that_an_image_is_in(tmp_path: Path) -> None:
    touch(tmp_path, "2021/trip/cat/1.jpg", "2021/home/dog/2.jpg", "2022/cat/3.jpg", "fox/4.jpg", ".old/cat/5.jpg")
    manifest = listed(tmp_path, depth="any")
    assert dict(zip(ids(manifest), labels(manifest), strict=True)) == {
        "2021/home/dog/2.jpg": "dog",
        "2021/trip/cat/1.jpg": "cat",
        "2022/cat/3.jpg": "cat",
        "fox/4.jpg": "fox",
    }
    assert manifest.notices == ()
    assert labels(listed(tmp_path)) == ["2021", "2021", "2022", "fox"]


def test_at_any_depth_splits_are_still_at_the_top(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/cat/1.jpg", "train/b/dog/2.jpg", "val/cat/3.jpg", "test/4.jpg")
    (tmp_path / "val/b/wasp").mkdir(parents=True)
    manifest = listed(tmp_path, depth="any")
    assert [record.split for record in manifest.records] == ["test", "train", "train", "val"]
    assert labels(manifest) == [None, "cat", "dog", "cat"]
    assert manifest.notices == ("left out 1 class folder without images: 'wasp'",)


def test_at_any_depth_a_flat_folder_has_no_classes_and_one_top_is_fine(tmp_path: Path) -> None:
    assert listed(touch(tmp_path / "flat", "1.jpg", "2.jpg"), depth="any").targets == {}
    assert labels(listed(touch(tmp_path / "one", "photos/cat/1.jpg", "photos/dog/2.jpg"), depth="any")) == [
        "cat",
        "dog",
    ]
    assert "or --depth any?" in refusal(tmp_path / "one")


def test_at_any_depth_what_is_doubtful_is_told(tmp_path: Path) -> None:
    manifest = listed(touch(tmp_path / "a", "2021/1.jpg", "2021/cat/2.jpg"), depth="any")
    assert labels(manifest) == ["2021", "cat"]
    assert manifest.notices == ("1 folder of classes with images beside them, whose class it is: '2021'",)
    assert "holds 1 image beside folders" in refusal(touch(tmp_path / "b", "1.jpg", "cat/2.jpg"), depth="any")
    assert "folders called 'train', 'val' there" in refusal(
        touch(tmp_path / "c", "cat/train/1.jpg", "cat/val/2.jpg"), depth="any"
    )


def test_depth_is_for_folders_in_archives_too(tmp_path: Path) -> None:
    members = {"2021/trip/cat/1.jpg": encoded(photo(1)), "2022/dog/2.jpg": encoded(photo(2))}
    assert labels(listed(make_shard(tmp_path / "a.tar", members), depth="any")) == ["cat", "dog"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    assert labels(listed(tmp_path / "a.zip", depth="any")) == ["cat", "dog"]
    assert "--depth does not apply to a source of kind csv" in refusal(
        table(tmp_path, "image,class\na.jpg,x\n"), depth="any"
    )
