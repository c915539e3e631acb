"""Files that hold many images and are replaced, or written to, while features are extracted from them."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from listing import listed, make_shard, table
from pictures import encoded, photo

from pipeline.commands.extract import extract
from pipeline.errors import SourceError
from pipeline.store import FeatureStore

IMAGES = 120
BASE = {"base": "squeezenet1_1", "weights": "embedded", "batch_size": 4}


def pictures() -> list[bytes]:
    return [encoded(photo(seed, (40, 30))) for seed in range(IMAGES)]


def write_tar(path: Path, data: list[bytes]) -> None:
    """The same names with the same contents, each time in another order in the file."""
    order = np.random.default_rng(len(list(path.parent.iterdir()))).permutation(IMAGES)
    make_shard(path, {f"{number:03}.jpg": data[number] for number in order})


def write_parquet(path: Path, data: list[bytes]) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    names = [f"{number:03}" for number in range(IMAGES)]
    pq.write_table(pa.table({"image": data, "id": names}), path, row_group_size=16)


def move_over(new: Path, path: Path) -> None:
    new.replace(path)


def write_over(new: Path, path: Path) -> None:
    shutil.copyfile(new, path)


def replaced_in_the_middle(
    path: Path, new: Path, store: Path, replace: Callable[[Path, Path], None], **options: object
) -> None:
    """Extract from `path`, which `new` takes the place of once the first rows are on their way."""
    partial = store.with_name(store.name + ".partial")

    def wait_and_replace() -> None:
        while not partial.exists():
            time.sleep(0.001)
        replace(new, path)

    thread = threading.Thread(target=wait_and_replace)
    thread.start()
    try:
        extract(path, store, **BASE, **options)
    finally:
        thread.join()


def features_by_id(store: Path) -> dict[str, np.ndarray]:
    with FeatureStore.open(store) as opened:
        return dict(zip(opened.ids, opened.features("avgpool"), strict=True))


@pytest.mark.parametrize("replace", [move_over, pytest.param(write_over, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_file_that_is_replaced_during_a_run_never_gives_rows_of_other_images(
    kind: str, replace: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    data = pictures()
    path, new = tmp_path / f"a.{kind}", tmp_path / f"new.{kind}"
    write = write_tar if kind == "tar" else write_parquet
    write(path, data)
    if kind == "parquet":
        data.reverse()
    write(new, data)
    options = {"id_column": "id", "image_column": "image"} if kind == "parquet" else {}
    with pytest.raises(SourceError, match=r"changed or replaced while it was being read; run the same command again"):
        replaced_in_the_middle(path, new, tmp_path / "f.h5", replace, **options)
    assert not (tmp_path / "f.h5").exists()
    extract(path, tmp_path / "f.h5", **BASE, **options)
    fresh = tmp_path / "fresh.h5"
    extract(path, fresh, **BASE, **options)
    again, right = features_by_id(tmp_path / "f.h5"), features_by_id(fresh)
    assert again.keys() == right.keys()
    assert [name for name in right if not np.allclose(again[name], right[name], atol=1e-3)] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_processes_read_the_file_that_was_listed_or_nothing(kind: str, tmp_path: Path) -> None:
    data = pictures()
    path, new = tmp_path / f"a.{kind}", tmp_path / f"new.{kind}"
    write = write_tar if kind == "tar" else write_parquet
    write(path, data)
    write(new, data)
    options = {"id_column": "id", "image_column": "image"} if kind == "parquet" else {}
    with pytest.raises(SourceError, match="changed or replaced while it was being read"):
        replaced_in_the_middle(path, new, tmp_path / "f.h5", move_over, device="cpu,cpu", **options)
    done = extract(path, tmp_path / "f.h5", device="cpu,cpu", **BASE, **options)
    assert (done.good, done.rows) == (IMAGES, IMAGES)


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_file_that_is_replaced_after_the_last_image_was_read_is_not_published(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    (write_tar if name.endswith("tar") else write_parquet)(path, pictures())
    manifest = listed(path, **({} if name.endswith("tar") else {"id_column": "id", "image_column": "image"}))
    manifest.require_unchanged()
    manifest.rows(1, 2).require_unchanged()
    path.rename(tmp_path / "old")
    shutil.copyfile(tmp_path / "old", path)
    os.utime(path, ns=(path.stat().st_atime_ns, (tmp_path / "old").stat().st_mtime_ns))
    with pytest.raises(SourceError, match="changed or replaced"):
        manifest.rows(1, 2).require_unchanged()
    path.unlink()
    with pytest.raises(SourceError, match="cannot be read any more"):
        manifest.require_unchanged()


def test_a_member_of_a_tar_that_was_cut_is_an_error_of_the_run(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "a.tar", {"0.jpg": encoded(photo())})
    image = listed(path).records[0].image
    assert image.stat()[1] == path.stat().st_mtime_ns
    os.truncate(path, 600)
    with pytest.raises(SourceError, match="was changed or replaced"):
        image.read(10**6)
    path.unlink()
    with pytest.raises(SourceError, match="cannot be read any more"):
        image.read(10**6)


def test_many_shards_need_few_descriptors(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    for number in range(40):
        make_shard(tmp_path / f"{number}.tar", {"0.jpg": encoded(photo(number))})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(int(name) for name in os.listdir("/dev/fd"))  # noqa: PTH208 (a Path would hold a descriptor as well)
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 4, before[1]))
    try:
        assert len([record.image.read(10**6) for record in listed(tmp_path).records]) == 40
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_table_of_paths_may_be_written_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photo()))
    manifest = listed(table(tmp_path, "image,y\na.jpg,1\n"))
    table(tmp_path, "image,y\na.jpg,2\n")
    manifest.require_unchanged()
    assert manifest.targets["y"].names == ("1",)
