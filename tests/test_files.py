"""Files and folders are whole or absent, and digests depend on everything that they should."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cheap import full_disk

from pipeline.errors import OutputExistsError, StoreError, StoreLockedError
from pipeline.files import (
    atomic_write,
    create,
    digest_bytes,
    digest_tensors,
    heal,
    lock,
    publish_folder,
    read_regular,
    refuse_existing,
    rename,
    require_room,
    reserve,
    sync,
    sync_data,
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


@pytest.mark.parametrize("write", [atomic_write, publish_folder])
@pytest.mark.parametrize("others", [[], ["other"]])
def test_folders_that_were_made_for_nothing_go_again(
    write: Callable[[Path], AbstractContextManager[Any]], others: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()

    def fail() -> None:
        with write(tmp_path / "mine/deep/er/output"):
            for name in others:
                (tmp_path / "mine" / "deep" / name).write_bytes(b"of somebody else")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in (tmp_path / "mine").rglob("*")] == (["deep", "other"] if others else [])


def test_a_folder_that_goes_meanwhile_is_an_error_and_no_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def late(path: Path, *more: int) -> int:
        (tmp_path / "folder").rmdir()
        return real(path, *more)

    monkeypatch.setattr(os, "open", late)
    with pytest.raises(FileNotFoundError, match="folder/file"), atomic_write(tmp_path / "folder/file"):
        pass


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


def test_a_full_disk_leaves_the_old_file_and_the_error_names_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="File too large") as refused, full_disk(), atomic_write(path) as file:
        file.write(b"new")
    assert refused.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["file"]


def test_what_is_planted_under_a_hidden_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to("victim")
    (tmp_path / "made").symlink_to("victim")
    (tmp_path / "dangling").symlink_to("nowhere")
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    for name in "made", "dangling":
        os.close(create(tmp_path / name))
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert listing(tmp_path) == [f".file.{os.getpid()}.tmp", "dangling", "file", "made", "victim"]


def test_a_pipe_and_a_link_to_one_are_written_to_as_they_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        for name in "pipe", "link":
            with atomic_write(tmp_path / name) as file:
                file.write(name.encode())
            assert os.read(reader, 100) == name.encode()
    finally:
        os.close(reader)
    assert (tmp_path / "link").is_symlink()
    assert listing(tmp_path) == ["link", "pipe"]


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


#: Replaces a model; dies before step number argv[2] of those that touch the disk, or says how many there were.
REPLACE = """
import os, signal, sys
from pathlib import Path
from pipeline import files
folder, kill_at, steps = Path(sys.argv[1]), int(sys.argv[2]), 0
if sys.argv[3] == "renamed":
    files.exchange = lambda one, other: False
def heard(event, arguments):
    global steps
    changes = event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
    if changes and str(arguments[0]).startswith(str(folder.parent)):
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
sys.addaudithook(heard)
with files.publish_folder(folder, replace=True) as draft:
    (draft / "plots").mkdir()
    (draft / "plots" / "curve.png").write_text("new")
    (draft / "model.json").write_text("new")
print(steps)
"""


@pytest.mark.parametrize("way", ["exchanged", "renamed"])
def test_a_kill_at_any_step_leaves_the_old_folder_or_the_new(tmp_path: Path, way: str) -> None:
    def replaced(folder: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", REPLACE, str(folder), str(kill_at), way]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    write_model(tmp_path / "whole" / "one", "old")
    steps = int(replaced(tmp_path / "whole" / "one", -1).stdout)
    assert listing(tmp_path / "whole") == ["one"]
    found = []
    for step in range(steps):
        path = tmp_path / str(step) / "one"
        write_model(path, "old")
        assert replaced(path, step).returncode == -signal.SIGKILL
        heal(path)
        found.append((path / "model.json").read_text())
        assert (path / "plots" / "curve.png").read_text() == found[-1]
        assert replaced(path, -1).returncode == 0
        assert (path / "model.json").read_text() == "new"
        assert listing(path.parent) == ["one"]
    assert set(found) == {"old", "new"}


def test_the_folder_of_a_living_process_is_left_to_it(tmp_path: Path) -> None:
    path, left = tmp_path / "one", tmp_path / ".one.1.tmp"
    with publish_folder(path) as draft:
        command = [sys.executable, "-c", REPLACE, str(path), "-1", "exchanged"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        assert draft.is_dir()
        (draft / "model.json").write_text("slow")
        with pytest.raises(OutputExistsError):
            refuse_existing(path, last="model.json", replace=False)
        path.rename(tmp_path / "quick")
    assert (path / "model.json").read_text() == "slow"
    left.mkdir()
    (tmp_path / ".one.tmp").mkdir()
    (tmp_path / ".one.2.tmp").symlink_to(tmp_path / "quick")
    write_model(path, "third", replace=True)
    assert listing(tmp_path) == [".one.2.tmp", ".one.tmp", "one", "quick"]
    assert (tmp_path / "quick" / "model.json").read_text() == "new"


#: Makes a model once for each step that touches the disk; at that step, another process removes what the dead left.
SWEPT = """
import os, sys
from pathlib import Path
from pipeline import files
root, sweep_at, steps = Path(sys.argv[1]), -1, 0
def heard(event, arguments):
    global steps
    if event in ("open", "os.rename", "os.mkdir", "fcntl.flock") and sweep_at >= 0:
        steps += 1
        if steps == sweep_at + 1:
            child = os.fork()
            if not child:
                steps = 10**6
                try:
                    files._sweep(root / str(sweep_at) / "one")
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
sys.addaudithook(heard)
while steps > sweep_at:
    sweep_at, steps = sweep_at + 1, 0
    with files.publish_folder(root / str(sweep_at) / "one") as draft:
        (draft / "model.json").write_text("whole")
print(sweep_at)
"""


def test_a_folder_that_is_being_written_is_swept_away_at_no_step(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SWEPT, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8
    assert len(listing(tmp_path)) == int(done.stdout) + 1
    for folder in tmp_path.iterdir():
        assert listing(folder) == ["one"]
        assert (folder / "one" / "model.json").read_text() == "whole"


def test_only_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert read_regular(tmp_path / "file", most=5) == read_regular(tmp_path / "link", most=5) == b"12345"
    for name in ("pipe", "zero", "."):
        with pytest.raises(OSError, match="it is not a regular file"):
            read_regular(tmp_path / name, most=5)
    with pytest.raises(OSError, match="it has 5 bytes, more than the 4 that are read"):
        read_regular(tmp_path / "file", most=4)


def test_a_disk_without_room_is_known_before(tmp_path: Path) -> None:
    require_room(tmp_path / "not" / "there", 1)
    with pytest.raises(OSError, match="MB are needed and") as refused:
        require_room(tmp_path / "not" / "there", 1 << 60)
    assert refused.value.filename == str(tmp_path / "not" / "there")


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


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_a_lock_that_somebody_planted_is_refused(tmp_path: Path, kind: str) -> None:
    beside, victim = tmp_path / "F.h5.lock", tmp_path / "victim"
    victim.write_bytes(b"precious")
    {
        "link": lambda: beside.symlink_to(victim),
        "dangling": lambda: beside.symlink_to(tmp_path / "nowhere"),
        "folder": beside.mkdir,
        "pipe": lambda: os.mkfifo(beside),
    }[kind]()
    with pytest.raises(StoreError, match=r"F\.h5\.lock is not a lock file, .*; remove it"), lock(tmp_path / "F.h5"):
        pass
    assert victim.read_bytes() == b"precious"
    assert listing(tmp_path) == ["F.h5.lock", "victim"]


def test_a_full_disk_leaves_no_lock(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/dev/fd"))  # noqa: PTH208
    with pytest.raises(OSError, match="File too large"), full_disk(), lock(tmp_path / "F.h5"):
        pass
    assert listing(tmp_path) == []
    assert len(os.listdir("/dev/fd")) == descriptors  # noqa: PTH208
    with lock(tmp_path / "F.h5"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = rf"F\.h5 cannot be locked .* refuses \({os.strerror(number)}\); give an -o on another disk"
    with pytest.raises(StoreError, match=message), lock(tmp_path / "F.h5"):
        pass


def test_everything_is_written_where_the_system_writes_little_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: real(descriptor, data[:3], offset))
    with (tmp_path / "file").open("wb") as file:
        write_at(file.fileno(), memoryview(b"0123456789"), 2)
    assert (tmp_path / "file").read_bytes() == b"\0\x000123456789"


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="a system that sets no space aside")
def test_reserved_space_is_set_aside(tmp_path: Path) -> None:
    descriptor = create(tmp_path / "file")
    try:
        reserve(descriptor, 1 << 20)
        assert os.fstat(descriptor).st_size == 1 << 20
        assert os.fstat(descriptor).st_blocks * 512 >= 1 << 20
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_space_that_cannot_be_set_aside_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with os.fdopen(create(tmp_path / "file"), "wb") as file:
        reserve(file.fileno(), 1000)
    monkeypatch.delattr(os, "posix_fallocate")
    with os.fdopen(create(tmp_path / "other"), "wb") as file:
        reserve(file.fileno(), 1000)
    assert (tmp_path / "file").stat().st_size == (tmp_path / "other").stat().st_size == 1000


def test_a_mac_is_told_to_empty_the_memory_of_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, what: calls.append(("fcntl", what)))
    with (tmp_path / "file").open("wb") as file:
        sync(file.fileno())
        sync_data(file.fileno())
        assert calls == [("fcntl", 51)] * 2

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOTSUP, "Operation not supported")

        monkeypatch.setattr(fcntl, "fcntl", refuse)
        monkeypatch.setattr(os, "fsync", lambda _: calls.append(("fsync", 0)))
        sync(file.fileno())
        assert calls[2:] == [("fsync", 0)]


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


def test_what_a_kill_left_of_a_file_goes_with_the_next_one(tmp_path: Path) -> None:
    """And what a living process is writing stays."""
    killed = os.fork()
    if not killed:
        with atomic_write(tmp_path / "table.csv"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(killed, 0)
    assert len(listing(tmp_path)) == 1
    with atomic_write(tmp_path / "table.csv") as file:
        file.write(b"living")
        with atomic_write(tmp_path / "table.csv") as other:
            other.write(b"first")
        assert (tmp_path / "table.csv").read_bytes() == b"first"
    assert (tmp_path / "table.csv").read_bytes() == b"living"
    assert listing(tmp_path) == ["table.csv"]
