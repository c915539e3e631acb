"""Parquet files with paths or with images, whole and damaged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from listing import ids, labels, listed, make_parquet, refusal
from pictures import encoded, photo

from pipeline.errors import ImageError
from pipeline.images.decoding import decode


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


FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        ({"info": {"features": FEATURES}}, ["ant", "bee", None]),
        ({"info": {"features": {"label": {"names": [1, 2]}}}}, ["0", "1", "-1"]),
        ({"info": [1]}, ["0", "1", "-1"]),
        (None, ["0", "1", "-1"]),
    ],
)
def test_classes_have_the_names_of_hugging_faces_metadata(tmp_path: Path, metadata: object, found: list[str]) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    cells = [{"bytes": encoded(photo(seed)), "path": f"{seed}.jpg"} for seed in range(3)]
    table = pa.table({"image": cells, "label": [0, 1, -1]})
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, tmp_path / "a.parquet")
    target = listed(tmp_path / "a.parquet").targets["label"]
    names = (*(target.names or ()), None)
    assert [names[code] for code in target.values] == found


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
