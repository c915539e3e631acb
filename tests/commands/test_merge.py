"""Parts to one file: what is there is kept, and an extraction that is not finished too."""

from __future__ import annotations

from pathlib import Path

import pytest
from cheap import assert_rows_right, extract, manifest_of, open_writer, write_images

from pipeline.commands.merge import merge
from pipeline.errors import OutputExistsError
from pipeline.store import Part, Source


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 40)
    return tmp_path / "images"


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_merge_does_not_overwrite(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 4)
    manifest = manifest_of(tmp_path / "images")
    ids = [record.id for record in manifest.records]
    for start in 0, 2:
        part = Part.of(ids, start, start + 2)
        extract(manifest.rows(start, start + 2), tmp_path / "parts" / f"{start}.h5", part=part)
    (tmp_path / "M.h5").write_text("precious")
    with pytest.raises(OutputExistsError, match="exists already; give --force to replace it"):
        merge([tmp_path / "parts"], tmp_path / "M.h5")
    assert (tmp_path / "M.h5").read_text() == "precious"
    assert merge([tmp_path / "parts"], tmp_path / "M.h5", force=True).rows == 4
    assert listing(tmp_path) == ["M.h5", "images", "parts"]
    assert extract(manifest, tmp_path / "M.h5") == []


def test_merge_takes_the_place_of_no_extraction(images: Path, tmp_path: Path) -> None:
    manifest = manifest_of(images)
    ids, path = [record.id for record in manifest.records], tmp_path / "W.h5"
    extract(manifest.rows(0, 20), tmp_path / "parts" / "1.h5", part=Part.of(ids, 0, 20))
    extract(manifest.rows(20, 40), tmp_path / "parts" / "2.h5", part=Part.of(ids, 20, 40))
    (images / "more.jpg").write_bytes(b"more")
    with open_writer(manifest_of(images), path) as writer:
        writer.fail(3, "empty", Source(*manifest.records[3].image.stat(), None))
    before = path.with_name("W.h5.partial").read_bytes()
    with pytest.raises(OutputExistsError, match=r"W\.h5\.partial is an extraction that is not finished; .*--force"):
        merge([tmp_path / "parts"], path)
    assert path.with_name("W.h5.partial").read_bytes() == before
    path.with_name("W.h5.partial").write_text("scribble")
    with pytest.raises(OutputExistsError, match=r"W\.h5\.partial is an extraction that is not finished"):
        merge([tmp_path / "parts"], path)
    merge(tmp_path / "parts", path, force=True)
    assert assert_rows_right(path, manifest) == 40
    path.rename(path.with_name("W.h5.partial"))  # as a merge that was killed leaves it
    merge([tmp_path / "parts"], path)
    assert sorted(left.name for left in tmp_path.iterdir()) == ["W.h5", "images", "parts"]
    with pytest.raises(OutputExistsError, match=r"W\.h5 exists already"):
        merge([tmp_path / "parts"], path)
