"""Tables of images: dialects, columns that are guessed or named, and what is refused by its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from listing import ids, labels, listed, refusal, table
from pictures import encoded, photo

from pipeline.errors import ImageError
from pipeline.images.decoding import decode


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
            "line 2: the split 'dev' is not train, val or test",
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
