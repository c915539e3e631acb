"""Names in a file: any that a user can give comes back as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from cheap import (
    LAYERS,
    extract,
    manifest_of,
    recipe,
)

from pipeline.config import MAX_PIXELS
from pipeline.errors import SettingsError, StoreDamagedError
from pipeline.sources import FileImage, Manifest, Record, Target
from pipeline.store import Environment, FeatureStore, LayerSpec, Source, StoreWriter
from pipeline.store.header import dataset_name, decode_texts, encode_texts, escape, unescape
from pipeline.store.layout import hdf5_attributes


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
        out, manifest=manifest, layers=[LayerSpec(name, (2,))], recipe=recipe(), environment=Environment()
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


# --- the environment


def test_an_environment_keeps_what_it_was_given_and_no_more() -> None:
    given = {"seed": 13, "engine": "onnxruntime", "colour": ["red", None], "versions": {"torch": "2.10"}}
    read = Environment.model_validate(given)
    assert read.model_dump(mode="json") == given
    assert (read.weights, read.forced, read.max_pixels) == (None, False, MAX_PIXELS)
    forced = read.model_copy(update={"forced": True})
    assert forced.model_dump(mode="json") == {**given, "forced": True}


def test_a_file_of_0_1_0_has_the_same_environment_in_its_hdf5_attribute() -> None:
    path = Path(__file__).parents[1] / "data" / "0.1.0" / "classes.h5"
    with FeatureStore.open(path) as store, h5py.File(path) as file:
        assert store.environment.model_dump(mode="json") == json.loads(file.attrs["environment"])
        assert store.environment.versions["cached-feature-pipeline"] == "0.1.0"
        assert store.base_origin == ("embedded", 13)
        assert hdf5_attributes(store.header)["environment"] == file.attrs["environment"]


@pytest.mark.parametrize("environment", [Environment(), Environment(weights="none"), Environment(weights="", seed=-1)])
def test_a_file_that_does_not_say_where_its_base_comes_from_is_refused(
    environment: Environment, images: Path, tmp_path: Path
) -> None:
    path, manifest = tmp_path / "F.h5", manifest_of(images)
    with StoreWriter.open(path, manifest=manifest, layers=LAYERS, recipe=recipe(), environment=environment) as writer:
        for row in writer.pending.tolist():
            writer.fail(row, "missing")
        writer.publish()
    with FeatureStore.open(path) as store, pytest.raises(StoreDamagedError, match=r"F\.h5 does not say which weights"):
        store.base_origin  # noqa: B018 - it raises
