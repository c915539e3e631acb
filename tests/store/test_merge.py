"""Parts joined to one file by the function that merge and extract share."""

from __future__ import annotations

from pathlib import Path

import pytest
from cheap import everything, extract, manifest_of, write_images

from pipeline.errors import OutputExistsError, StoreError
from pipeline.store import Part
from pipeline.store.merge import join_parts


def test_parts_are_joined_and_a_missing_one_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 12)
    manifest = manifest_of(tmp_path / "images")
    ids = [record.id for record in manifest.records]
    for name, start, stop in (("a.h5", 0, 5), ("b.h5", 5, 12)):
        extract(manifest.rows(start, stop), tmp_path / "parts" / name, part=Part.of(ids, start, stop))
    assert join_parts([tmp_path / "parts"], tmp_path / "whole.h5") == (2, 12)
    extract(manifest, tmp_path / "one.h5")
    assert everything(tmp_path / "whole.h5")["rows"] == everything(tmp_path / "one.h5")["rows"]
    with pytest.raises(OutputExistsError, match="--force"):
        join_parts([tmp_path / "parts"], tmp_path / "whole.h5")
    (tmp_path / "parts/a.h5").unlink()
    with pytest.raises(StoreError, match="lacks rows 0:5 of 12"):
        join_parts([tmp_path / "parts"], tmp_path / "whole.h5", force=True)
