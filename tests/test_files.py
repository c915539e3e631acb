"""Files and folders are whole or absent, and digests depend on everything that they should."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import OutputExistsError, StoreLockedError
from pipeline.files import (
    atomic_write,
    create,
    digest_bytes,
    digest_tensors,
    lock,
    publish_folder,
    rename,
    reserve,
    write_at,
)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    with atomic_write(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b"whole")
    assert path.read_bytes() == b"halfwhole"
    with atomic_write(path) as file:
        file.write(b"next")
    assert path.read_bytes() == b"next"
    assert listing(path.parent) == ["file"]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["file"]


def write_model(path: Path, text: str, *, replace: bool = False, error: BaseException | None = None) -> None:
    with publish_folder(path, replace=replace) as folder:
        (folder / "plots").mkdir()
        (folder / "plots" / "curve.png").write_text(text)
        if error:
            raise error
        (folder / "model.json").write_text(text)


def test_a_folder_appears_whole_and_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "models" / "one"
    write_model(path, "first")
    with pytest.raises(OutputExistsError, match="one exists already; give --force to replace it, or another -o"):
        write_model(path, "second")
    assert (path / "model.json").read_text() == "first"
    (path / "more").write_text("x")
    write_model(path, "second", replace=True)
    assert (path / "model.json").read_text() == (path / "plots" / "curve.png").read_text() == "second"
    assert not (path / "more").exists()
    assert listing(path.parent) == ["one"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_a_failure_leaves_no_folder_and_keeps_the_old_one(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "one"
    with pytest.raises(type(error)):
        write_model(path, "first", error=error)
    assert listing(tmp_path) == []
    write_model(path, "first")
    with pytest.raises(type(error)):
        write_model(path, "second", replace=True, error=error)
    assert (path / "model.json").read_text() == "first"
    assert listing(tmp_path) == ["one"]


def test_a_folder_that_is_no_model_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("precious")
    (tmp_path / "notes").write_text("precious")
    for name in "photos", "notes":
        with pytest.raises(OutputExistsError, match=r"has no model\.json, so it is not replaced even with --force"):
            write_model(tmp_path / name, "new", replace=True)
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    write_model(tmp_path / "empty", "new")
    assert (tmp_path / "empty" / "model.json").read_text() == "new"


def test_a_folder_without_its_last_file_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing wrote model\.json"), publish_folder(tmp_path / "one"):
        pass
    assert listing(tmp_path) == []


def test_a_kill_leaves_no_half_folder(tmp_path: Path) -> None:
    program = f"""
import os, signal, pathlib
from pipeline.files import publish_folder
with publish_folder(pathlib.Path({str(tmp_path / "one")!r})) as folder:
    (folder / "model.json").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    left = listing(tmp_path)
    assert len(left) == 1
    assert left[0].startswith(".one.")
    assert left[0].endswith(".tmp")
    write_model(tmp_path / "one", "whole")
    assert (tmp_path / "one" / "model.json").read_text() == "whole"


def test_a_lock_is_for_one_and_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "F.h5"
    with lock(path):
        with pytest.raises(StoreLockedError) as refused, lock(path):
            pass
        assert f"F.h5 is being written by process {os.getpid()} on " in str(refused.value)
        with lock(tmp_path / "G.h5"):
            pass
        path.with_name("F.h5.lock").write_text("scribble")
        with pytest.raises(StoreLockedError, match="being written by another process"), lock(path):
            pass
    with lock(path):
        pass
    assert listing(tmp_path) == []


def test_everything_is_written_where_the_system_writes_little_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: real(descriptor, data[:3], offset))
    with (tmp_path / "file").open("wb") as file:
        write_at(file.fileno(), memoryview(b"0123456789"), 2)
    assert (tmp_path / "file").read_bytes() == b"\0\x000123456789"


def test_reserved_space_is_set_aside(tmp_path: Path) -> None:
    descriptor = create(tmp_path / "file")
    try:
        reserve(descriptor, 1 << 20)
        assert os.fstat(descriptor).st_size == 1 << 20
        assert os.fstat(descriptor).st_blocks * 512 >= 1 << 20
    finally:
        os.close(descriptor)


def test_a_name_is_given_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("pipeline.files.sync_folder", synced.append)
    (tmp_path / "old").write_text("x")
    rename(tmp_path / "old", tmp_path / "new")
    assert (tmp_path / "new").read_text() == "x"
    assert synced == [tmp_path]


def test_digests() -> None:
    assert digest_bytes(b"abc") == hashlib.sha256(b"abc").digest()
    one = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2)}
    digests = [
        digest_tensors(one),
        digest_tensors({**one, "a": one["a"].reshape(3, 2)}),
        digest_tensors({**one, "a": one["a"].astype(np.float64)}),
        digest_tensors({"c": one["a"], "b": one["b"]}),
        digest_tensors({**one, "a": one["a"] + np.float32(1e-7)}),
        digest_tensors({"a": one["a"]}),
    ]
    assert len(set(digests)) == 6
    assert digest_tensors({"b": one["b"], "a": np.asfortranarray(one["a"])}) == digests[0]
