from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import write_photos

from pipeline.commands.finetune import FinetuneResult, finetune
from pipeline.errors import SettingsError
from pipeline.files import lock
from pipeline.store import FeatureStore
from pipeline.training import cached
from pipeline.training.cached import make_room

BASE = {"base": "squeezenet1_1", "weights": "embedded", "size": 64, "device": "cpu", "workers": 1}
TRAIN = {"recipe": "tutorial", "train": ("features.11", "features.12"), "epochs": 3, "lr": 0.001, "batch_size": 3}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cuts"


@pytest.fixture(scope="module")
def shared_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 7), ("val", 4)):
        for number, colour in enumerate(((200, 60, 40), (40, 60, 200))):
            seed = 100 * number + 50 * (split == "val")
            write_photos(folder / split / "ab"[number], count, first_seed=seed, colour=colour)
    return folder


@pytest.fixture
def photos(shared_photos: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    folder = tmp_path / "photos"
    for path in shared_photos.rglob("*.jpg"):
        place = folder / path.relative_to(shared_photos)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, place)
    return folder


def tune(photos: Path, output: Path, **options: Any) -> FinetuneResult:
    return finetune(photos, output, force=True, **{**BASE, **TRAIN, **options})


def losses(result: FinetuneResult) -> list[float]:
    return [of["loss"] for epoch in result.epochs for of in (epoch.train, epoch.val) if of]


def computed(cache: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each file there."""
    found = {}
    for path in sorted(cache.glob("*.h5")):
        with FeatureStore.open(path) as store:
            found[path.name] = (len(store), *next(iter(store.layers.values())))
    return found


VIEWS = [
    ({"augment": ("none",)}, [(22, 384, 3, 3)]),
    ({"augment": ("crop", "flip"), "views": 3}, [(14, 4, 384, 3, 3), (22, 384, 3, 3)]),
    ({"augment": ("flip",), "views": 3}, [(14, 4, 384, 3, 3), (22, 384, 3, 3)]),
]


@pytest.mark.parametrize(("options", "shapes"), VIEWS)
def test_the_losses_are_those_of_an_uncached_run(
    photos: Path, cache: Path, tmp_path: Path, options: dict[str, Any], shapes: list[tuple[int, ...]]
) -> None:
    plain = tune(photos, tmp_path / "plain", cache="never", **options)
    kept = tune(photos, tmp_path / "kept", cache="always", **options)
    assert (plain.cached, kept.cached) == (False, True)
    assert losses(kept) == pytest.approx(losses(plain), abs=1e-4)
    assert sorted(computed(cache).values()) == shapes
    assert "what is frozen, up to features.10, is computed once" in kept.summary()


def test_fewer_views_than_epochs_come_again_in_another_order(photos: Path, cache: Path, tmp_path: Path) -> None:
    options = {"epochs": 4, "views": 2, "augment": ("crop", "flip")}
    plain = tune(photos, tmp_path / "plain", cache="never", **options)
    kept = tune(photos, tmp_path / "kept", cache="always", **options)
    assert losses(kept)[:5] == pytest.approx(losses(plain)[:5], abs=1e-4)
    assert losses(kept)[5:] != pytest.approx(losses(plain)[5:], abs=1e-4)


def test_rows_that_have_no_room_in_memory_are_read_from_the_file(
    photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = tune(photos, tmp_path / "M", cache="always", views=3)
    monkeypatch.setattr(cached, "memory_bytes", lambda settings: 1000)
    from_file = tune(photos, tmp_path / "M", cache="always", views=3)
    assert losses(from_file) == losses(in_memory)


def test_another_rate_computes_nothing_again_and_a_new_image_alone(photos: Path, cache: Path, tmp_path: Path) -> None:
    options = {"cache": "always", "augment": ("none",)}
    tune(photos, tmp_path / "M", **options)
    (file,) = cache.glob("*.h5")
    before = file.stat().st_ino, file.read_bytes()
    again = tune(photos, tmp_path / "M", lr=0.01, epochs=1, **options)
    assert (file.stat().st_ino, file.read_bytes()) == before
    assert "is at hand" in again.cache
    write_photos(photos / "train" / "c", 2, first_seed=900, colour=(90, 200, 40))
    tune(photos, tmp_path / "M", **options)
    assert list(computed(cache).values()) == [(24, 384, 3, 3)]


def test_a_bad_image_is_told_as_without(photos: Path, cache: Path, tmp_path: Path) -> None:
    (photos / "train" / "a" / "broken.jpg").write_bytes(b"no image")
    plain, kept = (tune(photos, tmp_path / "M", cache=how, epochs=1) for how in ("never", "always"))
    assert list(plain.bad) == list(kept.bad) == ["train/a/broken.jpg"]
    assert plain.rows == kept.rows
    assert kept.bad["train/a/broken.jpg"].startswith(plain.bad["train/a/broken.jpg"].partition(":")[0])


def test_a_rotten_file_is_made_anew(photos: Path, cache: Path, tmp_path: Path) -> None:
    options = {"cache": "always", "augment": ("none",)}
    whole = tune(photos, tmp_path / "M", **options)
    (file,) = cache.glob("*.h5")
    content = bytearray(file.read_bytes())
    content[20:60] = bytes(40)
    file.write_bytes(content)
    assert losses(tune(photos, tmp_path / "M", **options)) == losses(whole)


def test_float16_takes_half_and_tells_what_it_changes(photos: Path, cache: Path, tmp_path: Path) -> None:
    result = tune(photos, tmp_path / "M", cache="always", cache_dtype="float16", augment=("none",), epochs=1)
    (notice,) = [one for one in result.notices if "float16" in one]
    assert notice.startswith("float16 activations change the network's outputs by at most ")
    assert 0 < float(notice.split("at most ")[1].split()[0]) < 0.01


def test_a_head_alone_needs_only_its_features(photos: Path, cache: Path, tmp_path: Path) -> None:
    tune(photos, tmp_path / "M", train=("head",), cache="always", augment=("none",))
    assert list(computed(cache).values()) == [(22, 512)]


def test_auto_caches_what_pays_and_says_why_not(photos: Path, cache: Path, tmp_path: Path) -> None:
    long = tune(photos, tmp_path / "M", train=("head",), epochs=12, augment=("none",))
    assert long.cached
    nothing = tune(photos, tmp_path / "M", train=("all",), epochs=1)
    assert nothing.cache == "nothing is cached, since nothing is frozen before the first module that is trained"
    with pytest.raises(SettingsError, match="cache=always: nothing is frozen before"):
        tune(photos, tmp_path / "M", train=("all",), cache="always")


def test_auto_keeps_to_its_share_of_the_disk(
    photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "KEPT_BYTES", 1000)
    result = tune(photos, tmp_path / "M", epochs=12, augment=("none",))
    assert not result.cached
    assert "it would take 0.0 GB, and 0.0 GB are for that" in result.cache


def test_auto_needs_no_folder_for_it(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "file" / "cache"))
    result = tune(photos, tmp_path / "M", epochs=1, augment=("none",))
    assert not result.cached
    assert result.cache.startswith("nothing is cached, since there is no place for it: ")


def test_a_file_that_another_training_writes_is_waited_for(photos: Path, cache: Path, tmp_path: Path) -> None:
    options = {"cache": "always", "augment": ("none",), "epochs": 1}
    tune(photos, tmp_path / "M", **options)
    (file,) = cache.glob("*.h5")
    held = ExitStack()
    held.enter_context(lock(file))
    release = threading.Timer(4.0, held.close)
    release.start()
    started = time.monotonic()
    assert tune(photos, tmp_path / "M", **options).cached
    release.join()
    assert time.monotonic() - started > 3.9


def test_the_file_used_longest_ago_goes_first_but_none_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "KEPT_BYTES", 2500)
    for number, name in enumerate("abc"):
        (tmp_path / f"{name}.h5").write_bytes(bytes(1000))
        os.utime(tmp_path / f"{name}.h5", (number, number))
    with lock(tmp_path / "a.h5"):
        make_room(tmp_path / "d.h5", 1000)
        assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["a.h5", "c.h5"]
    make_room(tmp_path / "d.h5", 1000)
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["c.h5"]


def test_views_of_a_round_are_all_of_them() -> None:
    drawn = [cached.views_of(np.arange(5), epoch, views=3, rows=5, seed=7) for epoch in range(1, 7)]
    assert [one.tolist() for one in drawn[:3]] == [[1] * 5, [2] * 5, [3] * 5]
    assert {tuple(sorted(column)) for column in np.stack(drawn[3:], axis=1).tolist()} == {(1, 2, 3)}
