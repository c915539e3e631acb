"""What is kept between runs: graphs and batch sizes, whole, bounded, and never needed."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from cheap import recipe_for
from networks import engine_of, largest_difference, noise

from pipeline import engines
from pipeline.bases import Base
from pipeline.config import ExtractSettings
from pipeline.engines import CpuEngine, cache
from pipeline.engines.batch_size import Size
from pipeline.engines.cache import KnownBase, keep_base, keep_size, read_base, read_size

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO):
        assert engine_of(base).name == "onnxruntime"
    assert "the graph is not kept" in caplog.text


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_folder() == Path(os.environ["PIPELINE_CACHE"])
    monkeypatch.delenv("PIPELINE_CACHE")
    if sys.platform == "linux":
        assert cache.cache_folder() == Path("/somewhere/cached-feature-pipeline")
    monkeypatch.delenv("XDG_CACHE_HOME")
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    assert cache.cache_folder() == Path.home() / caches / "cached-feature-pipeline"


def test_every_part_of_the_recipe_that_a_graph_holds_has_its_own_name(base: Base) -> None:
    plain = recipe_for(base)
    others: list[dict[str, Any]] = [
        {"base": "resnet18"},
        {"weights": "1" * 64},
        {"layers": ("pool5",)},
        {"layers": ("pool5", "avgpool")},
        {"pool": "avg"},
        {"transform": {**plain.transform, "mean": [0.5, 0.5, 0.5]}},
        {"transform": {**plain.transform, "crop": [128, 128]}},
    ]
    keys = {cache.graph_key(one) for one in (plain, *(plain.model_copy(update=change) for change in others))}
    assert len(keys) == 1 + len(others)
    views = plain.model_copy(update={"views": 2, "augment": ("flip",), "seed": 1, "dtype": "float16"})
    assert cache.graph_key(views) == cache.graph_key(plain)


def test_a_graph_of_another_version_has_another_name(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.graph_key(recipe_for(base))
    for package in ("torch", "torchvision", "onnxruntime"):
        found = {name: "0.0" if name == package else version for name, version in cache.versions().items()}
        with monkeypatch.context() as patched:
            patched.setattr(cache, "versions", lambda _, found=found: found)
            assert cache.graph_key(recipe_for(base)) != before
    monkeypatch.setattr(cache, "EXPORT_VERSION", 0)
    assert cache.graph_key(recipe_for(base)) != before


def test_a_user_without_a_home_keeps_nothing_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(user: int) -> None:
        raise KeyError(user)

    for name in ("PIPELINE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)  # a container's number that no table of users has
    cache.keep_cached("key", b"graph")
    assert cache.read_cached("key") is None
    keep_size("key", Size(8, 100))
    assert read_size("key") is None


def test_the_cache_forgets_what_was_used_longest_ago(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "KEPT_BYTES", 250)
    for age, key in ((300, "old"), (200, "middle")):
        cache.keep_cached(key, bytes(68))
        entry = own_cache / f"{key}.onnx"
        entry.touch()
        __import__("os").utime(entry, (entry.stat().st_mtime - age,) * 2)
    assert cache.read_cached("old") == bytes(68)  # used just now
    cache.keep_cached("new", bytes(68))
    assert {entry.stem for entry in own_cache.iterdir()} == {"old", "new"}
    monkeypatch.setattr(cache, "KEPT_BYTES", 1)
    cache.keep_cached("last", bytes(68))
    assert {entry.stem for entry in own_cache.iterdir()} == {"last"}


def test_the_batch_size_is_measured_once_for_a_base_and_a_machine(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = engine_of(base)
    (entry,) = (tmp_path / "cache" / "sizes").iterdir()
    measured = json.loads(entry.read_text())
    assert measured["images"] in (1, 2, 4, 8, 16)
    monkeypatch.setattr(engines, "fastest_size", lambda *_, **__: pytest.fail("measured again"))
    assert engine_of(base).batch_size == first.batch_size
    entry.write_text('{"images": 16, "bytes": 16000000}')
    tight = engine_of(base, memory=0.005)
    assert isinstance(tight, CpuEngine)
    assert tight._step == 4  # a quarter of the bytes
    assert tight.batch_size == 5_000_000 // (5 * (224 * 224 * 3 + 512 * 4))
    assert largest_difference(tight(noise(base, 9))[0], first(noise(base, 9))[0]) < 1e-5


@pytest.mark.parametrize("kept", ["", "{", "[1]", '{"images": 4, "batch": 2}'])
def test_a_kept_size_that_cannot_be_read_is_measured_again(base: Base, tmp_path: Path, kept: str) -> None:
    engine_of(base)
    (entry,) = (tmp_path / "cache" / "sizes").iterdir()
    entry.write_text(kept)
    engine_of(base)
    assert json.loads(entry.read_text())["images"] >= 1


@pytest.mark.parametrize(
    "kept",
    [
        *({"images": "8", "bytes": 1}, {"images": 8, "bytes": None}, {"images": 8, "bytes": -1}, {"images": 0}),
        *({"images": True}, {"images": 2.5}, {"images": [8]}, {"images": -4}, {"other": 8}, [8], 8, None, "8"),
    ],
)
def test_a_kept_size_that_is_none_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Any) -> None:
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path))
    keep_size("key", Size(8, 100))
    assert read_size("key") == Size(8, 100)
    (tmp_path / "sizes" / "key").write_text(json.dumps(kept))
    assert read_size("key") is None


def test_a_base_is_known_as_long_as_its_weights_are_the_same_file(own_cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"some weights")
    settings = ExtractSettings.of({"base": "resnet18", "weights": str(file)})
    known = KnownBase("d1", {"size": [224, 224]})
    assert read_base(settings) is None
    keep_base(settings, known)
    assert read_base(settings) == known
    for other in ({"size": 64}, {"fit": "stretch"}, {"base": "resnet34"}, {"weights": "embedded"}):
        assert read_base(settings.model_copy(update=other)) is None
    os.utime(file, ns=(1, 1))
    assert read_base(settings) is None
    keep_base(settings, known)
    file.write_bytes(b"same weights"[::-1])  # of the same size, and of the same time
    os.utime(file, ns=(1, 1))
    assert read_base(settings) is None


def test_random_weights_and_damaged_records_are_not_known(own_cache: Path, tmp_path: Path) -> None:
    random = ExtractSettings.of({"base": "resnet18", "weights": "none"})
    keep_base(random, KnownBase("d1", {}))
    assert read_base(random) is None
    embedded = ExtractSettings.of({"base": "squeezenet1_1", "weights": "embedded"})
    keep_base(embedded, KnownBase("d1", {}))
    (record,) = (own_cache.parent / "bases").iterdir()
    for content in ("", "{}", '{"weights": 1, "transform": {}}', '["d1"]'):
        record.write_text(content)
        assert read_base(embedded) is None


def test_published_weights_are_known_until_others_come(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = ExtractSettings.of({"base": "resnet18"})
    keep_base(published, KnownBase("d1", {}))
    assert read_base(published) is None
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    keep_base(published, KnownBase("d1", {}))
    assert read_base(published) == KnownBase("d1", {})
    os.utime(folder, ns=(1, 1))
    assert read_base(published) is None
