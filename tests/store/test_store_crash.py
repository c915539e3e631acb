"""Kills, lost power, failing disks and second writers: what is on the disk afterwards is right, and goes on."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cheap import (
    Nursery,
    assert_rows_right,
    datasets,
    everything,
    extract,
    manifest_of,
    open_writer,
    write_images,
)

from pipeline import files
from pipeline.errors import StoreError
from pipeline.sources import Manifest
from pipeline.store import FeatureStore

PAUSE = 0.0003  # seconds before each system call of a child
KILLS = int(os.environ.get("PIPELINE_KILLS", "30"))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where children come from."""
    made = Nursery()
    yield made
    made.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 45)
    return folder


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The datasets of a run that nothing happened to."""
    path = tmp_path_factory.mktemp("undisturbed") / "F.h5"
    extract(manifest_of(images), path)
    return datasets(path)


def test_a_kill_at_any_moment_leaves_right_rows_and_a_run_that_goes_on(
    nursery: Nursery, images: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    clock = random.Random(13)
    manifest = manifest_of(images)
    duration = min(_seconds(nursery, images, tmp_path / f"timed{number}.h5") for number in range(4))
    killed = survived = taken_over = 0
    for number in range(KILLS):
        path = tmp_path / f"{number}" / "F.h5"
        child = nursery.start(images, path, pause=PAUSE)
        time.sleep(clock.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        status, _ = nursery.wait()
        killed += status == -signal.SIGKILL
        partial = path.with_name("F.h5.partial")
        done = assert_rows_right(partial, manifest) if partial.exists() else 0
        if path.exists():
            survived += 1
            assert assert_rows_right(path, manifest) == len(manifest)
        computed = extract(manifest, path)
        assert len(computed) <= len(manifest) - done
        taken_over += done
        assert datasets(path) == undisturbed
        assert {left.name for left in path.parent.iterdir()} <= {"F.h5", "F.h5.lock"}
    print(f"{KILLS} runs: {killed} killed, {survived} were finished, {taken_over} rows taken over")
    assert killed > KILLS / 2
    assert taken_over > 0


def _seconds(nursery: Nursery, images: Path, path: Path) -> float:
    started = time.monotonic()
    assert nursery.run(images, path, pause=PAUSE)[0] == 0
    return time.monotonic() - started


# --- lost power: the writer's own system calls, recorded and replayed in part


Call = tuple[Any, ...]
SECTOR = 512


class Recorder:
    """Records what `pipeline.files` does, and can raise at one of the calls instead."""

    NAMES = ("create", "reserve", "write_at", "sync_data", "sync", "rename", "remove")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fail_at: int | None = None) -> None:
        self.calls: list[Call] = []
        self.fail_at = fail_at
        self._paths: dict[int, Path] = {}
        for name in self.NAMES:
            monkeypatch.setattr(files, name, self._recorded(name, getattr(files, name)))

    def _recorded(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if len(self.calls) == self.fail_at:
                self.fail_at = None
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if name == "create":
                descriptor = real(*arguments)
                self._paths[descriptor] = arguments[0]
                self.calls.append((name, arguments[0]))
                return descriptor
            if name in ("rename", "remove"):
                self.calls.append((name, *arguments))
                if name == "rename":
                    self._paths = {
                        number: arguments[1] if path == arguments[0] else path for number, path in self._paths.items()
                    }
            else:
                path = self._paths[arguments[0]]
                details = [bytes(thing) if isinstance(thing, memoryview) else thing for thing in arguments[1:]]
                self.calls.append((name, path, *details))
            return real(*arguments)

        return call


class Disk:
    """What a disk may hold after some calls and a loss of power: all that was synced, and any of the rest."""

    def __init__(self) -> None:
        self.files: dict[Path, bytearray] = {}
        self.unsynced: dict[Path, list[tuple[int, bytes]]] = {}
        self.size: dict[Path, int] = {}

    def do(self, call: Call) -> None:
        name, path, *rest = call
        if name == "create":
            self.files[path], self.unsynced[path], self.size[path] = bytearray(), [], 0
        elif name == "reserve":
            self.size[path] = rest[0]
        elif name == "write_at":
            self.unsynced[path].append((rest[1], rest[0]))
        elif name in ("sync", "sync_data"):
            self.files[path] = self._with(path, self.unsynced[path], self.size[path])
            self.unsynced[path] = []
        elif name == "rename":
            for kept in self.files, self.unsynced, self.size:
                kept[rest[0]] = kept.pop(path)  # type: ignore[index]
        else:
            for kept in self.files, self.unsynced, self.size:
                kept.pop(path, None)  # type: ignore[attr-defined]

    def _with(self, path: Path, writes: list[tuple[int, bytes]], size: int) -> bytearray:
        content = self.files[path].ljust(size, b"\0")
        for offset, data in writes:
            content[offset : offset + len(data)] = data
        return content

    def lose_power(self, folder: Path, dice: random.Random | None) -> None:
        """Write the files to `folder`: with all that was not synced, or with those sectors that `dice` say."""
        for path, writes in self.unsynced.items():
            sectors = writes
            if dice is not None:
                chance = dice.random()
                sectors = [piece for write in writes for piece in _sectors(write) if dice.random() < chance]
                dice.shuffle(sectors) if not _overlap(sectors) else None
            (folder / path.name).write_bytes(self._with(path, sectors, self.size[path]))


def _sectors(write: tuple[int, bytes]) -> list[tuple[int, bytes]]:
    offset, data = write
    cuts = [0, *range(SECTOR - offset % SECTOR, len(data), SECTOR), len(data)]
    return [(offset + start, data[start:stop]) for start, stop in itertools.pairwise(cuts)]


def _overlap(pieces: list[tuple[int, bytes]]) -> bool:
    ordered = sorted((offset, offset + len(data)) for offset, data in pieces)
    return any(stop > start for (_, stop), (start, _) in itertools.pairwise(ordered))


def _assert_recoverable(
    folder: Path, manifest: Manifest, undisturbed: dict[str, bytes], *, go_on: bool, earlier: Manifest | None = None
) -> int:
    """What is in `folder` holds right rows only; going on completes it. Returns how many rows were there."""
    path, done = folder / "F.h5", 0
    partial = folder / "F.h5.partial"
    if partial.exists():
        done = assert_rows_right(partial, manifest)
    if path.exists():
        with FeatureStore.open(path) as store:
            owner = manifest if store.ids == [record.id for record in manifest.records] else earlier
        assert owner is not None
        everything(path)
        assert assert_rows_right(path, owner) == len(owner)
    if go_on:
        assert len(extract(manifest, path)) <= len(manifest) - done
        assert datasets(path) == undisturbed
    return done


def test_every_prefix_and_any_part_of_what_was_not_synced_is_right(
    images: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, dice = manifest_of(images), random.Random(13)
    with monkeypatch.context() as patch:
        recorder = Recorder(patch)
        extract(manifest, tmp_path / "recorded" / "F.h5")
    disk, rows = Disk(), []
    for number, call in enumerate(recorder.calls):
        disk.do(call)
        for dice_or_all in (None, dice, dice):
            folder = tmp_path / "replayed"
            folder.mkdir()
            disk.lose_power(folder, dice_or_all)
            rows.append(_assert_recoverable(folder, manifest, undisturbed, go_on=number % 10 == 0))
            shutil.rmtree(folder)
    assert max(rows) == len(manifest)
    assert len(recorder.calls) > 100


def test_every_call_of_an_update_may_be_the_last(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update beside a finished file: after a loss of power there is the old file or the new one, whole."""
    work, dice = tmp_path / "images", random.Random(13)
    shutil.copytree(images, work)
    write_images(tmp_path / "spare", 12, first=100)
    before = manifest_of(images)
    path = tmp_path / "out" / "F.h5"
    extract(before, path)
    old = path.read_bytes()
    for number, spare in enumerate(sorted((tmp_path / "spare").iterdir())):
        shutil.copy2(spare, work / spare.name)
        (work / f"{number * 2:05}.jpg").unlink()
    after = manifest_of(work)
    with monkeypatch.context() as patch:
        recorder = Recorder(patch)
        extract(after, path)
    new, disk = datasets(path), Disk()
    for number, call in enumerate(recorder.calls):
        if call[0] != "remove" or call[1] in disk.files:
            disk.do(call)
        folder = tmp_path / "replayed"
        folder.mkdir()
        (folder / "F.h5").write_bytes(old)
        disk.lose_power(folder, dice)
        _assert_recoverable(folder, after, new, go_on=number % 10 == 0, earlier=before)
        shutil.rmtree(folder)


def test_any_failing_call_is_fatal_marks_nothing_good_and_the_next_run_goes_on(
    images: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(images)
    with monkeypatch.context() as patch:
        calls = len(_record(patch, manifest, tmp_path / "counted" / "F.h5").calls)
    for number in range(0, calls, 1 if KILLS > 30 else 3):
        folder = tmp_path / f"{number}"
        with monkeypatch.context() as patch:
            recorder = Recorder(patch, fail_at=number)
            with pytest.raises(StoreError, match=r"cannot be written: Input/output error; .*same command again"):
                extract(manifest, folder / "F.h5")
            failed, after = number, recorder.calls[number:]
        assert not [call for call in after if call[0] not in ("remove",)], f"wrote on after call {failed} failed"
        _assert_recoverable(folder, manifest, undisturbed, go_on=True)
        shutil.rmtree(folder)


def _record(patch: pytest.MonkeyPatch, manifest: Manifest, path: Path) -> Recorder:
    recorder = Recorder(patch)
    extract(manifest, path)
    return recorder


def test_a_writer_whose_disk_failed_takes_no_more(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(images)
    with open_writer(manifest, tmp_path / "F.h5") as writer:
        writer.fail(0, "empty")
        with monkeypatch.context() as patch:
            Recorder(patch, fail_at=0)
            with pytest.raises(StoreError, match="Input/output error"):
                writer.flush()
        with pytest.raises(StoreError, match="an earlier write failed"):
            writer.flush()
        with pytest.raises(StoreError, match="an earlier write failed"):
            writer.fail(1, "empty")
        writer._staged = []  # nothing to commit at the end
    assert assert_rows_right(tmp_path / "F.h5.partial", manifest) == 0
