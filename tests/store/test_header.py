"""Names in a file: any that a user can give comes back as it was."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from cheap import (
    extract,
    manifest_of,
    recipe,
)

from pipeline.errors import SettingsError
from pipeline.sources import FileImage, Manifest, Record, Target
from pipeline.store import FeatureStore, LayerSpec, Source, StoreWriter
from pipeline.store.header import dataset_name, decode_texts, encode_texts, escape, unescape


def test_a_hundred_thousand_class_names_fit(images: Path, tmp_path: Path) -> None:
    manifest = manifest_of(images)
    names = tuple(f"class number {number}" for number in range(100_000))
    manifest.targets["class"] = Target("class", np.arange(30), names)
    extract(manifest, tmp_path / "F.h5")
    with FeatureStore.open(tmp_path / "F.h5") as store:
        assert store.targets["class"].names == names
    with h5py.File(tmp_path / "F.h5") as file:
        assert file["target/class"].attrs["names"].tolist() == list(names)


@pytest.mark.parametrize(
    "name",
    [
        *("plain", "-n", "a\nb\t", "ünï/çödé.jpg", os.fsdecode(b"caf\xe9.jpg"), "\\", "\\u0041", "\0", "a\0"),
        *("\ud800x", "n" * 255, " ", "..", "\\\\\\u", "𝕏"),
    ],
)
def test_any_name_survives(name: str, tmp_path: Path) -> None:
    assert unescape(escape(name)) == name
    assert decode_texts(encode_texts([name, "other"])) == [name, "other"]
    assert escape(name).encode("utf-8")
    file = tmp_path / "image"
    file.write_bytes(b"x")
    target = Target(name, np.array([0]), (name,))
    manifest = Manifest(name, [Record(0, name, FileImage(str(file)), "")], {name: target})
    out = tmp_path / "F.h5"
    with StoreWriter.open(
        out, manifest=manifest, layers=[LayerSpec(name, (2,))], recipe=recipe(), environment={}
    ) as writer:
        writer.write([0], {name: np.ones((1, 2))}, [Source(1, 1, bytes(31) + b"1")])
        writer.publish()
    with FeatureStore.open(out) as store:
        assert (store.ids, store.layers, store.source) == ([name], {name: (2,)}, name)
        assert store.targets[name].names == (name,)
        assert store.features(name).tolist() == [[1, 1]]
    with h5py.File(out) as written:
        assert unescape(written["id"].asstr()[0]) == name
        assert list(written["features"]) == [dataset_name(name)]


def test_a_name_that_is_a_dot_or_empty() -> None:
    assert dataset_name(".") == "\\u002e"
    assert unescape(dataset_name("a/b")) == "a/b"
    with pytest.raises(SettingsError, match="needs a name"):
        dataset_name("")
