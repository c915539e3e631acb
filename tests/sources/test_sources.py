"""Every kind of source, and everything that users and attackers put into one."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from listing import ids, labels, listed, make_shard, refusal, table, touch
from pictures import encoded, photo, write_photos

from pipeline.errors import ImageError, SourceError
from pipeline.images.decoding import decode
from pipeline.sources import SOURCES, from_paths
from pipeline.sources.folder import MOST_LINKS

ROOT = Path(__file__).parents[1]


# ---- every kind keeps the same contract ----


def make_folder(root: Path) -> str:
    write_photos(root / "photos" / "ants", 2)
    write_photos(root / "photos" / "bees", 2, first_seed=9)
    return str(root / "photos")


def make_csv(root: Path) -> str:
    make_folder(root)
    rows = "".join(f"photos/{name}/00{n}.jpg,{name}\n" for name in ("bees", "ants") for n in (1, 0))
    return str(table(root, "image,class\n" + rows))


def make_list(root: Path) -> str:
    make_folder(root)
    return str(table(root, "photos/bees/000.jpg\nphotos/ants/001.jpg\n", "photos.txt"))


def make_tar(root: Path) -> str:
    make_folder(root)
    with tarfile.open(root / "photos.tar", "w") as tar:
        tar.add(root / "photos", "photos")
    return str(root / "photos.tar")


def make_parquet(root: Path) -> str:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [encoded(photo(seed)) for seed in range(4)]
    columns = {"image": images, "class": ["ants", "bees", "ants", "bees"], "name": ["d", "b", "a", "c"]}
    pq.write_table(pa.table(columns), root / "photos.parquet", row_group_size=3)
    return str(root / "photos.parquet")


def make_torchvision(root: Path) -> str:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name in names:
        pixels = random.integers(0, 256, (2, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1]}))
    classes = ["airplane", "automobile", *(f"class {number}" for number in range(8))]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    return f"torchvision:CIFAR10?root={root}"


MAKERS = {
    "folder": make_folder,
    "csv": make_csv,
    "list": make_list,
    "tar": make_tar,
    "parquet": make_parquet,
    "torchvision": make_torchvision,
}


def test_every_kind_has_a_maker() -> None:
    assert set(MAKERS) == set(SOURCES)


@pytest.fixture(params=MAKERS)
def any_source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torchvision":
        from torchvision import datasets

        monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
        monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    return MAKERS[request.param](tmp_path)


def test_the_contract_of_sources(any_source: str) -> None:
    options = {"id_column": "name"} if any_source.endswith("parquet") else {}
    manifest = listed(any_source, **options)
    assert len(manifest) >= 2
    assert ids(manifest) == sorted(set(ids(manifest)))
    assert ids(manifest) == ids(listed(any_source, **options))
    assert [record.index for record in manifest.records] == list(range(len(manifest)))
    for record in manifest.records:
        size, mtime_ns = record.image.stat()
        data = record.image.read(10**6)
        assert decode(data).mode == "RGB"
        assert size > 0
        assert mtime_ns > 0
        assert record.image.where.isprintable()
        assert record.split in ("", "train", "val", "test")
        with pytest.raises(ImageError, match="too-large"):
            record.image.read(len(data) - 1)
    for name, target in manifest.targets.items():
        assert target.name == name
        assert len(target.values) == len(manifest)


def test_a_part_of_any_source(any_source: str) -> None:
    manifest = listed(any_source)
    part = manifest.rows(1, len(manifest))
    assert ids(part) == ids(manifest)[1:]
    assert [record.index for record in part.records] == list(range(len(manifest) - 1))
    for name, target in part.targets.items():
        assert np.array_equal(target.values, manifest.targets[name].values[1:])
        assert target.names == manifest.targets[name].names
    for start, stop in ((-1, 1), (0, len(manifest) + 1), (1, 1)):
        with pytest.raises(SourceError, match=f"rows {start}:{stop} are not in"):
            manifest.rows(start, stop)


def test_what_is_not_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(tmp_path / "nowhere") == f"there is no {tmp_path}/nowhere"
    monkeypatch.chdir(tmp_path)
    assert refusal("nowhere") == f"there is no nowhere in {tmp_path}"
    for name in ("a.zip", "a.tar.gz", "a.ZIP"):
        (tmp_path / name).touch()
        assert refusal(name) == f"{name} is an archive: unpack it first, and give the folder"
    assert "File name too long" in refusal(tmp_path / ("a" * 300))
    assert "Not a directory" in refusal(Path(__file__) / "photos")
    assert "null byte" in refusal("photos\0")
    (tmp_path / "one.jpg").write_bytes(encoded(photo()))
    assert "is one image; a source is a folder" in refusal(tmp_path / "one.jpg")
    (tmp_path / "notes.docx").touch()
    assert "is not a source that can be read; one is: torchvision:NAME" in refusal(tmp_path / "notes.docx")


def test_options_of_tables_are_refused_elsewhere(photo_folder: Path) -> None:
    assert refusal(photo_folder, target=("length",)) == (
        "--target has no meaning for a source of kind folder (give a table with --labels)"
    )
    csv = table(photo_folder.parent, "image\nphotos/ants/000.jpg")
    assert refusal(csv, labels=str(csv)) == "--labels has no meaning for a source of kind csv"


def test_paths_one_by_one_keep_their_order_and_names(photo_folder: Path) -> None:
    names = [photo_folder / "bees/001.jpg", "nowhere.jpg", photo_folder / "ants/000.jpg", "nowhere.jpg"]
    manifest = from_paths(names)
    assert ids(manifest) == [str(name) for name in names]
    assert [record.index for record in manifest.records] == [0, 1, 2, 3]
    with pytest.raises(SourceError, match="no image is named"):
        from_paths([])


def test_a_folder_among_paths_is_its_images_whatever_its_layout(photo_folder: Path) -> None:
    odd = os.fsdecode(b"\xe9.jpg")
    (photo_folder / odd).write_bytes(encoded(photo()))
    manifest = from_paths(["z.jpg", photo_folder])
    expected = ["z.jpg", *(f"{photo_folder}/{kind}/00{n}.jpg" for kind in ("ants", "bees") for n in range(6))]
    assert ids(manifest) == [*expected, f"{photo_folder}/\\xe9.jpg"]
    assert decode(manifest.records[-1].image.read(10**6)).size == (64, 48)
    (photo_folder / "empty").mkdir()
    with pytest.raises(SourceError, match="empty holds no images"):
        from_paths([photo_folder / "empty"])


# ---- folders ----


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
    assert listed(tmp_path).notes == ()
    (tmp_path / "val/wasps").mkdir()
    (tmp_path / "train/hornets").mkdir()
    assert labels(listed(tmp_path)) == ["ants", "bees", "ants"]
    assert listed(tmp_path).notes == ("left out 2 class folders without images: 'hornets', 'wasps'",)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "holds no images: it is empty"),
        (
            ("a.txt", "b.txt", "c.heic"),
            "holds no images, only other files (.txt 2, .heic 1); images are named",
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
    touch(tmp_path, "1.heic", "2.HEIC", "3.svg")
    manifest = listed(tmp_path)
    assert ids(manifest) == ["1.jpg"]
    assert manifest.notes == (
        "left out 3 files: 2 .heic, 1 .svg (formats that are not read; save them as JPEG or PNG)",
        "left out 3 files: 1 .db, 1 .txt, 1 without suffix (not named like images)",
    )
    assert from_paths([tmp_path]).notes == tuple(f"{tmp_path}: {note}" for note in manifest.notes)


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
    assert "links to folders that lead in circles" in manifest.notes[-1]
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


# ---- CSV ----


def test_the_columns_are_guessed_where_there_is_one_candidate(tmp_path: Path) -> None:
    manifest = listed(table(tmp_path, "image_names,emergency_or_not\n1.jpg,1\n0.jpg,0\n"))
    assert ids(manifest) == ["0.jpg", "1.jpg"]
    assert labels(manifest, "emergency_or_not") == ["0", "1"]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage,length\r\na.jpg,1.5\r\nb.jpg,\r\n",
        "image;length\na.jpg;1.5\n\nb.jpg;\n",
        "image\tlength\na.jpg\t 1.5 \nb.jpg\t",
        '"image","length"\n"a.jpg","1.5"\n"b.jpg",""\n',
        "image|length\n./a.jpg|1.5\nx/../b.jpg|nan",
    ],
)
def test_dialects(tmp_path: Path, text: str) -> None:
    manifest = listed(table(tmp_path, text))
    assert ids(manifest) == ["a.jpg", "b.jpg"]
    target = manifest.targets["length"]
    assert target.names is None
    assert target.values.dtype == np.float64
    assert target.values[0] == 1.5
    assert np.isnan(target.values[1])


def test_quoted_cells_may_hold_anything(tmp_path: Path) -> None:
    manifest = listed(table(tmp_path, 'image,class\n"a,b.jpg","x ""y"""\n"two\nlines.jpg",z\n'))
    assert ids(manifest) == ["a,b.jpg", "two\nlines.jpg"]
    assert labels(manifest) == ['x "y"', "z"]


@pytest.mark.parametrize(
    ("cells", "option", "expected"),
    [
        ("1 0 1", "y", ("0", "1")),
        ("10 9 -1", "y", ("-1", "9", "10")),
        ("b a b", "y", ("a", "b")),
        ("1 b 2.5", "y", ("1", "2.5", "b")),
        ("1 2 3", "y:number", [1.0, 2.0, 3.0]),
        ("1.5 2 -3e2", "y", [1.5, 2.0, -300.0]),
        ("1.5 2.5 1.5", "y:class", ("1.5", "2.5")),
    ],
)
def test_kinds_of_targets(tmp_path: Path, cells: str, option: str, expected: object) -> None:
    rows = "".join(f"{row}.jpg,{cell}\n" for row, cell in enumerate(cells.split()))
    target = listed(table(tmp_path, "image,y\n" + rows), target=(option,)).targets["y"]
    if isinstance(expected, tuple):
        assert target.names == expected
        assert [expected[code] for code in target.values] == cells.split()
    else:
        assert target.names is None
        assert target.values.tolist() == expected


def test_several_targets_and_a_column_with_a_colon(tmp_path: Path) -> None:
    csv = table(tmp_path, "image,size:mm,kind,other\na.jpg,1.5,cat,x\nb.jpg,2.5,,y\n")
    manifest = listed(csv, target=("size:mm", "kind"))
    assert list(manifest.targets) == ["size:mm", "kind"]
    assert labels(manifest, "kind") == ["cat", None]


def test_many_different_whole_numbers_are_asked_about(tmp_path: Path) -> None:
    csv = table(tmp_path, "image,length\n" + "".join(f"{n}.jpg,{n}\n" for n in range(30)))
    assert "say --target length:number to predict the number, or length:class" in refusal(csv)
    assert listed(csv, target=("length:number",)).targets["length"].names is None


def test_ids_splits_and_the_image_root(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.jpg").write_bytes(encoded(photo()))
    text = "key,file,part,y\nk2,a.jpg,valid,u\nk1,a.jpg,train,v\nk3,b.jpg,,u\n"
    csv = table(tmp_path, text, "labels/t.csv")
    manifest = listed(csv, id_column="key", split_column="part", target=("y",), image_root=str(images))
    assert ids(manifest) == ["k1", "k2", "k3"]
    assert [record.split for record in manifest.records] == ["train", "val", ""]
    assert decode(manifest.records[1].image.read(10**6)).size == (64, 48)
    with pytest.raises(ImageError, match="missing"):
        manifest.records[2].image.read(10**6)


def test_a_column_called_split_is_found(tmp_path: Path) -> None:
    manifest = listed(table(tmp_path, "image,y,Split\na.jpg,u,train\nb.jpg,v,test\n"))
    assert [record.split for record in manifest.records] == ["train", "test"]
    assert list(manifest.targets) == ["y"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty: its first line must name the columns"),
        ("image,y\n", {}, "has column names but no rows"),
        ("a.jpg,1\nb.jpg,2\n", {}, "begins with 'a.jpg': its first line must name the columns"),
        ("image,y,y\na.jpg,1,2\n", {}, "has two columns 'y'"),
        ("image,y\na.jpg\n", {}, "line 2: 1 cells, the first line names 2"),
        ("image,y\na.jpg,1,2\n", {}, "line 2: 3 cells, the first line names 2"),
        ('image,y\na.jpg,"1\n', {}, "unexpected end of data"),
        (
            "image,length\na.jpg,1.5\n",
            {"target": ("lenght",)},
            "has no column 'lenght' (did you mean 'length'?)",
        ),
        ("image,y\na.jpg,1\n", {"image_column": "imge"}, "has no column 'imge' (did you mean 'image'?)"),
        ("image,y\na.jpg,1\n", {"target": ("y:text",)}, "target 'y:text': say y:class or y:number"),
        ("image,u,v\na.jpg,1,2\n", {}, "which column is the target? Say --target, one or more of: u, v"),
        ("left,right,y\na.jpg,b.jpg,1\n", {}, "Say --image-column, one of: left, right"),
        (
            "image,y\na.jpg,1.5\nb.jpg,x\n",
            {"target": ("y:number",)},
            "line 3, column 'y': 'x' is not a number",
        ),
        ("image,y\na.jpg,1.5\nb.jpg,inf\n", {}, "line 3, column 'y': 'inf' is not finite"),
        ("image,y\na.jpg,\nb.jpg,\n", {"target": ("y",)}, "column 'y' is empty"),
        ("image,y\na.jpg,1\n,2\n", {}, "line 3: no image is named"),
        ("image,y\na.jpg,1\na.jpg,2\n", {}, "the id 'a.jpg' is there twice"),
        ("image,y\na.jpg,1\nb/../a.jpg,2\n", {}, "the id 'a.jpg' is there twice"),
        ("image,k,y\na.jpg,,1\n", {"id_column": "k"}, "line 2: the id in column 'k' is empty"),
        (
            "image,s,y\na.jpg,dev,1\n",
            {"split_column": "s"},
            "line 2: the split 'dev' is none of train, val, test",
        ),
        ("image,y\n../../etc/passwd,1\n", {}, "line 2: '../../etc/passwd' is outside of"),
        ("image,y\n/etc/passwd.jpg,1\n", {}, "is outside of"),
        ("image,y\nx/../../a.jpg,1\n", {}, "name a folder that holds all images with --image-root"),
        ("image,y\n.,1\na.jpg,1\n", {}, "is outside of"),
        ("image,y\na.jpg,1\n", {"image_root": "/nowhere"}, "the image root /nowhere is not a folder"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, options: dict[str, object], message: str) -> None:
    assert message in refusal(table(tmp_path, text), **options)


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "photos.csv"
    path.write_bytes("image,y\né.jpg,1\n".encode("latin-1"))
    assert "is not UTF-8 at byte 8" in refusal(path)
    path.write_bytes("image,y\n中文.jpg,1\n".encode("gbk"))
    assert "is not UTF-8 at byte 8: save it with that encoding" in refusal(path)
    path.write_bytes("image,y\na.jpg,1\n".encode("utf-16"))
    assert "is not UTF-8 at byte 0 (it looks like UTF-16): save it" in refusal(path)


def test_absolute_paths_inside_the_image_root_are_fine(tmp_path: Path) -> None:
    csv = table(tmp_path, f"image,y\n{tmp_path}/in/a.jpg,1\n")
    assert ids(listed(csv)) == ["in/a.jpg"]
    assert ids(listed(csv, image_root="/")) == [f"{tmp_path}/in/a.jpg"[1:]]
    (tmp_path / "in").mkdir()
    assert ids(listed(csv, image_root=str(tmp_path / "in"))) == ["a.jpg"]


def test_a_path_with_a_nul_is_a_missing_image(tmp_path: Path) -> None:
    manifest = listed(table(tmp_path, "image,y\na\0.jpg,1\n"))
    with pytest.raises(ImageError, match="missing"):
        manifest.records[0].image.read(10)
    with pytest.raises(ImageError, match="missing"):
        manifest.records[0].image.stat()


# ---- labels joined onto a folder ----


def test_labels_by_path_by_name_and_by_stem(photo_folder: Path) -> None:
    csv = table(photo_folder.parent, "image,length\nants/000.jpg,1.5\nbees/001.jpg,2.5\n", "labels.csv")
    manifest = listed(photo_folder, labels=str(csv))
    assert set(manifest.targets) == {"class", "length"}
    values = dict(zip(ids(manifest), manifest.targets["length"].values, strict=True))
    assert {name: value for name, value in values.items() if value == value} == {
        "ants/000.jpg": 1.5,
        "bees/001.jpg": 2.5,
    }
    assert "labels 2 of 12 images" in manifest.notes[-1]

    flat = photo_folder / "ants"
    by_stem = table(photo_folder.parent, "id,breed\n003,pug\n001.jpg,beagle\nother,pug\n", "breeds.csv")
    manifest = listed(flat, labels=str(by_stem), image_column="id")
    assert labels(manifest, "breed") == [None, "beagle", None, "pug", None, None]
    assert manifest.notes[-1].endswith("1 of 3 labels match no image, first: other (" + str(by_stem) + ", line 4)")


def test_labels_may_bring_splits_and_replace_classes(photo_folder: Path) -> None:
    text = "image,class,split\nants/000.jpg,worker,train\nbees/000.jpg,queen,val\n"
    manifest = listed(photo_folder, labels=str(table(photo_folder.parent, text, "labels.csv")))
    assert manifest.targets["class"].names == ("queen", "worker")
    assert manifest.records[0].split == "train"
    assert manifest.records[6].split == "val"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,y\n000.jpg,1\n", "several images are called '000.jpg'; name them by their paths"),
        ("image,y\nants/000.jpg,1\nants/000.jpg,2\n", "'ants/000.jpg' is labelled already in line 2"),
        ("image,y\nelsewhere.jpg,1\n", "labels none of the images of"),
        ("image\nants/000.jpg\n", "has no column beside 'image'"),
    ],
)
def test_labels_that_are_refused(photo_folder: Path, text: str, message: str) -> None:
    csv = table(photo_folder.parent, text, "labels.csv")
    assert message in refusal(photo_folder, labels=str(csv))


# ---- lists ----


def test_a_list_of_paths(tmp_path: Path) -> None:
    path = table(tmp_path, "\ufeffb.jpg\r\n\n  a b.jpg \n./c/d.jpg", "photos.txt")
    assert ids(listed(path)) == ["a b.jpg", "b.jpg", "c/d.jpg"]
    assert "line 1: '../a.jpg' is outside of" in refusal(table(tmp_path, "../a.jpg", "photos.txt"))
    assert "lists no image" in refusal(table(tmp_path, "\n", "photos.txt"))
    assert "is there twice" in refusal(table(tmp_path, "a.jpg\na.jpg\n", "photos.txt"))


# ---- tar ----


def test_a_tar_of_class_folders_is_like_the_folder(photo_folder: Path) -> None:
    path = photo_folder.parent / "photos.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(photo_folder, "photos")
    manifest = listed(path)
    assert labels(manifest) == ["ants"] * 6 + ["bees"] * 6
    assert manifest.records[0].id == "photos/ants/000.jpg"
    assert manifest.records[0].image.read(10**6) == (photo_folder / "ants/000.jpg").read_bytes()
    assert sorted(photo_folder.parent.iterdir()) == [photo_folder, path]


def test_webdataset_labels(tmp_path: Path) -> None:
    data = encoded(photo())
    members = {"b.jpg": data, "b.cls": b"10", "a.jpg": data, "a.cls": b"9\n", "c.jpg": data, "._c.jpg": b""}
    manifest = listed(make_shard(tmp_path / "a.tar", members))
    assert ids(manifest) == ["a.jpg", "b.jpg", "c.jpg"]
    assert manifest.targets["class"].names == ("9", "10")
    assert labels(manifest) == ["9", "10", None]


def test_webdataset_json(tmp_path: Path) -> None:
    data = encoded(photo())
    first = json.dumps({"label": "cat", "length": 12.5, "boxes": [1, 2]}).encode()
    second = json.dumps({"label": "dog", "length": None}).encode()
    members = {"x/a.json": first, "x/b.json": second}
    members |= dict.fromkeys(("x/a.left.jpg", "x/a.right.jpg", "x/b.jpg"), data)
    shard = make_shard(tmp_path / "a.tar", members)
    assert labels(listed(shard), "label") == ["cat", "cat", "dog"]
    lengths = listed(shard, target=("length",)).targets["length"].values
    assert np.array_equal(lengths, [12.5, 12.5, np.nan], equal_nan=True)
    assert "has no column 'lenght' (did you mean 'length'?)" in refusal(shard, target=("lenght",))


def test_a_folder_of_shards(tmp_path: Path) -> None:
    data = encoded(photo())
    for shard in range(3):
        make_shard(tmp_path / f"shard-{shard}.tar", {"0.jpg": data, "0.cls": str(shard).encode()})
    manifest = listed(tmp_path)
    assert ids(manifest) == ["shard-0/0.jpg", "shard-1/0.jpg", "shard-2/0.jpg"]
    assert labels(manifest) == ["0", "1", "2"]


def test_a_stray_tar_does_not_hide_a_folder_of_images(photo_folder: Path) -> None:
    make_shard(photo_folder / "backup.tar", {"0.jpg": b"x"})
    assert len(listed(photo_folder)) == 12


def test_tars_that_are_refused(tmp_path: Path) -> None:
    data = encoded(photo())
    path = tmp_path / "a.tar"
    for name in ("../x.jpg", "/x.jpg", "a/../../x.jpg"):
        assert "which is no path inside of it" in refusal(make_shard(path, {name: data}))
    assert "holds no images" in refusal(make_shard(path, {"a.txt": b"x"}))
    assert "is there twice" in refusal(make_shard(path, {"a.jpg": data, "./a.jpg": data}))
    assert "is not a label" in refusal(make_shard(path, {"a.jpg": data, "a.json": b"[1]"}))
    assert "is not a label" in refusal(make_shard(path, {"a.jpg": data, "a.json": b"[" * 100_000}))
    assert "is not a label" in refusal(make_shard(path, {"a.jpg": data, "a.cls": b"\xff"}))
    with tarfile.open(path, "w:gz") as tar:
        tar.add(__file__, "a.jpg")
    assert "a compressed one must be unpacked" in refusal(path)
    path.write_bytes(b"")
    assert "is not a whole, plain tar file" in refusal(path)


def test_a_tar_that_was_cut_or_damaged_is_refused_rather_than_listed_in_part(tmp_path: Path) -> None:
    data = encoded(photo())
    path = make_shard(tmp_path / "a.tar", {f"{number}.jpg": data for number in range(4)})
    whole = path.read_bytes()
    step = 512 + -(-len(data) // 512) * 512
    for cut in (step * 4, step * 2, step * 2 + 100, step * 3 - 10):
        path.write_bytes(whole[:cut])
        assert "is not a whole, plain tar file" in refusal(path), cut
    damaged = bytearray(whole)
    damaged[step * 2 + 150] ^= 1  # the checksum of the third header
    path.write_bytes(damaged)
    assert f"damaged at byte {step * 2}" in refusal(path)
    path.write_bytes(whole + whole)
    assert "a second archive begins" in refusal(path)


def test_links_and_devices_in_a_tar_are_no_images(tmp_path: Path) -> None:
    data = encoded(photo())
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (
            ("s.jpg", tarfile.SYMTYPE),
            ("h.jpg", tarfile.LNKTYPE),
            ("f.jpg", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("real.jpg")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    assert ids(listed(tmp_path / "a.tar")) == ["real.jpg"]


# ---- Parquet ----


def test_parquet_with_paths(photo_folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    paths = [f"photos/ants/00{number}.jpg" for number in range(3)]
    path = photo_folder.parent / "photos.parquet"
    pq.write_table(pa.table({"path": paths, "length": [1.5, None, 2.5], "tags": [["x"], [], []]}), path)
    manifest = listed(path)
    assert ids(manifest) == paths
    assert np.array_equal(manifest.targets["length"].values, [1.5, np.nan, 2.5], equal_nan=True)
    assert decode(manifest.records[2].image.read(10**6)).size == (64, 48)


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pictures = [encoded(photo(seed)) for seed in range(3)]
    cells = [{"bytes": picture, "path": f"{2 - seed}.jpg"} for seed, picture in enumerate(pictures)]
    cells.append({"bytes": None, "path": "9.jpg"})
    pq.write_table(pa.table({"image": cells, "label": [7, 8, 7, 8]}), tmp_path / "a.parquet", row_group_size=2)
    manifest = listed(tmp_path / "a.parquet")
    assert ids(manifest) == ["0.jpg", "1.jpg", "2.jpg", "9.jpg"]
    assert [record.image.read(10**6) for record in manifest.records[:3]] == pictures[::-1]
    assert labels(manifest, "label") == ["7", "8", "7", "8"]
    with pytest.raises(ImageError, match="missing"):
        manifest.records[3].image.read(10**6)


def test_parquet_rows_without_names_are_numbered(tmp_path: Path) -> None:
    make_parquet(tmp_path)
    assert ids(listed(tmp_path / "photos.parquet", target=("class",))) == ["row-0", "row-1", "row-2", "row-3"]


def test_parquet_that_is_none_or_gets_damaged(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    assert "cannot read" in refusal(tmp_path / "bad.parquet")
    source = Path(make_parquet(tmp_path))
    data = bytearray(source.read_bytes())
    data[4:2000] = bytes(1996)
    source.write_bytes(data)
    manifest = listed(source, id_column="name", target=("class",))
    with pytest.raises(ImageError, match="unreadable"):
        manifest.records[0].image.read(10**6)


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "reading Parquet needs pyarrow: python -m pip install" in refusal(tmp_path / "a.parquet")


# ---- torchvision ----


def test_both_splits_of_a_torchvision_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    source = make_torchvision(tmp_path)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    manifest = listed(source)
    assert ids(manifest) == ["test/0", "test/1", *(f"train/{number:02}" for number in range(10))]
    assert [record.split for record in manifest.records] == ["test"] * 2 + ["train"] * 10
    assert labels(manifest)[:3] == ["airplane", "automobile", "airplane"]
    expected = np.asarray(datasets.CIFAR10(tmp_path, train=False)[1][0])
    assert np.array_equal(np.asarray(decode(manifest.records[1].image.read(10**6))), expected)
    assert len(listed(source + "&train=false")) == 2


def test_a_dataset_of_fake_images_has_no_root() -> None:
    manifest = listed("torchvision:FakeData?size=3&num_classes=2")
    assert ids(manifest) == ["0", "1", "2"]
    assert decode(manifest.records[2].image.read(10**6)).size == (224, 224)
    assert "class" in manifest.targets


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:CIFAR11?root=.", "torchvision has no dataset 'CIFAR11' (did you mean 'CIFAR10'?)"),
        ("torchvision:CIFAR10", "say where its files are, torchvision:CIFAR10?root=DIR"),
        ("torchvision:CIFAR10?rot=.", "CIFAR10 has no option 'rot' (did you mean 'root'?)"),
    ],
)
def test_datasets_that_are_refused(source: str, message: str) -> None:
    assert message in refusal(source)


def test_a_dataset_that_is_not_there(tmp_path: Path) -> None:
    assert "Dataset not found or corrupted" in refusal(f"torchvision:CIFAR10?root={tmp_path}")
    assert "torchvision:DTD" in refusal(f"torchvision:DTD?root={tmp_path}")


# ---- real and large ----


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
        sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
        assert len(read_manifest({str(tmp_path)!r})) == 2000
        print(len(opened), "torch" in sys.modules, "pyarrow" in sys.modules)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["0", "False", "False"]
