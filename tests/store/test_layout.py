"""The file as any program with HDF5 reads it."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
from cheap import (
    assert_rows_right,
    manifest_of,
    recipe,
)


def test_plain_h5py_reads_the_whole_layout(path: Path, images: Path) -> None:
    manifest = manifest_of(images)
    with h5py.File(path, "r") as file:
        assert file.attrs["format"] == "pipeline-features"
        assert file.attrs["format_version"] == 1
        assert json.loads(file.attrs["recipe"])["base"] == "cheap"
        assert file.attrs["recipe_sha256"] == recipe().fingerprint()
        assert json.loads(file.attrs["environment"]) == {"by": "cheap"}
        assert file["id"].asstr()[:].tolist() == [record.id for record in manifest.records]
        assert file["split"].asstr()[:].tolist() == [record.split for record in manifest.records]
        assert file["target/class"].attrs["names"].tolist() == ["even", "odd"]
        np.testing.assert_array_equal(file["target/class"][:], manifest.targets["class"].values)
        np.testing.assert_array_equal(file["target/length"][:], manifest.targets["length"].values)
        assert file["status"].attrs["names"].tolist()[:4] == ["pending", "good", "missing", "unreadable"]
        assert file["features/avgpool"].shape == (30, 24)
        assert file["features/avgpool"].dtype == np.float32
        assert file["features/conv"].shape == (30, 2, 3)
        assert file["features/conv"].dtype == np.float16
        assert file["source/sha256"].shape == (30, 32)
        assert file["source/size"][0] == 1
        assert file["checksum/features/avgpool"].attrs["rows"] == 2730
        assert file["features/avgpool"].chunks is None
    assert assert_rows_right(path, manifest) == 30
