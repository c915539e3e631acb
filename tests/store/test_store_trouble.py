"""Full disks, read-only folders, few open files, two writers, Ctrl-C: the message, and what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cheap import Nursery, assert_rows_right, datasets, everything, extract, manifest_of, open_writer, write_images

from pipeline.commands.merge import merge
from pipeline.errors import OutputExistsError, SettingsError, StoreError, StoreLockedError
from pipeline.store import FeatureStore, Part, Source, part_range

NOBODY = 65534


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 40)
    return tmp_path / "images"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_full_disk_is_an_error_before_the_first_image(nursery: Nursery, images: Path, tmp_path: Path) -> None:
    status, said = nursery.run(images, tmp_path / "F.h5", file_bytes=6000)
    assert status == 1
    assert said.startswith("StoreError: ")
    assert "F.h5 cannot be written: File too large; rows committed before are kept: make room" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_file_system_is_an_error_before_the_first_image(nursery: Nursery, images: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount")
    try:
        (disk / "fill").write_bytes(bytes(1 << 15))
        assert nursery.run(images, disk / "F.h5")[1] == "35"
        status, said = nursery.run(images, disk / "G.h5")
        assert status == 1
        assert "G.h5 cannot be written: No space left on device" in said
        assert sorted(path.name for path in disk.iterdir()) == ["F.h5", "fill"]
        assert assert_rows_right(disk / "F.h5", manifest_of(images)) == 40
        (disk / "fill").unlink()
        assert nursery.run(images, disk / "G.h5") == (0, "35")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_read_only_folder_is_one_line(nursery: Nursery, open_folder: Path) -> None:
    write_images(open_folder / "images", 5)
    closed = open_folder / "closed"
    closed.mkdir(mode=0o555)
    user = {"user": NOBODY} if os.geteuid() == 0 else {}
    status, said = nursery.run(open_folder / "images", closed / "F.h5", **user)
    assert status == 1
    assert "F.h5 cannot be written: Permission denied" in said
    assert list(closed.iterdir()) == []
    status, said = nursery.run(open_folder / "images", closed / "deeper" / "F.h5", **user)
    assert status == 1
    assert "Permission denied" in said


def test_a_file_that_may_not_be_read_is_one_line(nursery: Nursery, open_folder: Path) -> None:
    write_images(open_folder / "images", 5)
    path = open_folder / "F.h5"
    extract(manifest_of(open_folder / "images"), path)
    path.chmod(0o000)
    status, said = nursery.run(open_folder, path, open=True, **({"user": NOBODY} if os.geteuid() == 0 else {}))
    assert (status, said) == (1, f"StoreError: {path} cannot be opened: Permission denied")


def test_fifty_parts_open_and_merge_with_forty_files(nursery: Nursery, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 100)
    manifest = manifest_of(tmp_path / "images")
    ids = [record.id for record in manifest.records]
    folder = tmp_path / "parts"
    for number in range(50):
        start, stop = part_range(100, part=f"{number + 1}/50")
        extract(manifest.rows(start, stop), folder / f"{number:02}.h5", part=Part.of(ids, start, stop))
    assert nursery.run(folder, folder, open=True, files=40) == (0, "100")
    merge([folder], tmp_path / "merged.h5")
    assert assert_rows_right(tmp_path / "merged.h5", manifest) == 100


def test_a_second_writer_is_told_who_the_first_is_and_changes_nothing(
    nursery: Nursery, images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "F.h5"
    child = nursery.start(images, path, pause=0.003)
    while not path.with_name("F.h5.partial").exists():
        time.sleep(0.01)
    manifest = manifest_of(images)
    for force in False, True:
        with pytest.raises(StoreLockedError, match=rf"F.h5 is being written by process {child} on .* since 20"):
            extract(manifest, path, force=force)
    assert nursery.wait() == (0, "35")
    assert assert_rows_right(path, manifest) == 40
    assert extract(manifest, path) == []


def test_the_lock_of_a_killed_writer_is_free(nursery: Nursery, images: Path, tmp_path: Path) -> None:
    path = tmp_path / "F.h5"
    child = nursery.start(images, path, pause=0.003)
    while not path.with_name("F.h5.partial").exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    nursery.wait()
    assert path.with_name("F.h5.lock").exists()
    extract(manifest_of(images), path)
    assert sorted(left.name for left in tmp_path.iterdir()) == ["F.h5", "images"]


def test_two_writers_in_one_process_exclude_each_other_too(images: Path, tmp_path: Path) -> None:
    manifest = manifest_of(images)
    with open_writer(manifest, tmp_path / "F.h5"):
        with pytest.raises(StoreLockedError, match=f"process {os.getpid()} "):
            extract(manifest, tmp_path / "F.h5")
        extract(manifest, tmp_path / "G.h5")


def test_ctrl_c_keeps_what_is_written(images: Path, tmp_path: Path) -> None:
    manifest, path = manifest_of(images), tmp_path / "F.h5"

    def interrupted() -> None:
        with open_writer(manifest, path) as writer:
            for index in range(7):
                writer.fail(index, "corrupt", Source(*manifest.records[index].image.stat(), None))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with open_writer(manifest, path) as writer:
        assert writer.pending.tolist() == list(range(7, 40))


def test_a_source_that_goes_away_halfway_is_rows_that_are_tried_again(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "F.h5"
    manifest = manifest_of(images)
    away = tmp_path / "away"
    images.rename(away)
    assert extract(manifest, path) == []
    with FeatureStore.open(path) as store:
        assert set(store.reasons) == {"missing"}
    stamp = path.stat().st_mtime_ns
    assert extract(manifest, path) == []
    assert path.stat().st_mtime_ns == stamp, "still away: nothing to write"
    away.rename(images)
    assert len(extract(manifest, path)) == 35
    assert_rows_right(path, manifest)


def test_a_clock_set_back_hides_no_change(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "F.h5"
    extract(manifest_of(images), path)
    changed = images / "00003.jpg"
    changed.write_bytes(b"X")
    os.utime(changed, ns=(10**18, 10**18))
    assert extract(manifest_of(images), path) == ["00003.jpg"]
    assert assert_rows_right(path, manifest_of(images)) == 40


def test_an_output_that_is_a_folder_or_not_ours_is_refused(images: Path, tmp_path: Path) -> None:
    manifest = manifest_of(images)
    with pytest.raises(OutputExistsError, match="images is a folder; give -o the name of a file"):
        extract(manifest, images)
    foreign = tmp_path / "precious.txt"
    foreign.write_text("precious")
    with pytest.raises(StoreError, match=r"precious.txt is not a feature file .*--force .*another -o"):
        extract(manifest, foreign)
    assert foreign.read_text() == "precious"
    extract(manifest, foreign, force=True)
    assert len(everything(foreign)["ids"]) == 40


def test_a_link_is_written_through(images: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "F.h5").symlink_to(tmp_path / "big" / "real.h5")
    extract(manifest_of(images), tmp_path / "F.h5")
    assert (tmp_path / "F.h5").is_symlink()
    assert datasets(tmp_path / "big" / "real.h5") == datasets(tmp_path / "F.h5")


def test_what_is_planted_beside_a_store_is_not_written_through(images: Path, tmp_path: Path) -> None:
    """A folder that was downloaded may hold links under the names that a writer uses."""
    manifest, path, victim = manifest_of(images), tmp_path / "in" / "F.h5", tmp_path / "victim.h5"
    extract(manifest.rows(0, 5), victim)
    before = victim.read_bytes()
    path.parent.mkdir()
    (path.parent / ".F.h5.tmp").symlink_to(victim)
    extract(manifest, path)
    assert assert_rows_right(path, manifest) == 40
    path.unlink()
    for name in "F.h5.lock", "F.h5.partial":
        (path.parent / name).symlink_to(victim)
        with pytest.raises(StoreError, match=rf"{name} is .*link.*; remove it"):
            extract(manifest, path)
        (path.parent / name).unlink()
    assert victim.read_bytes() == before
    assert list(path.parent.iterdir()) == []


def test_a_name_that_no_file_has_is_one_line(images: Path, tmp_path: Path) -> None:
    for output in "a\0b", tmp_path / "a\0b":
        with pytest.raises(SettingsError, match=r"a\\x00b' holds a NUL"):
            extract(manifest_of(images), output)  # type: ignore[arg-type]
        with pytest.raises(StoreError, match=r"cannot be opened: embedded null byte"):
            merge(output, tmp_path / "M.h5")
        with pytest.raises(StoreError, match="does not exist"):
            FeatureStore.open(output)
    for output in tmp_path / ("n" * 300), tmp_path / ("n" * 250):  # with its suffixes, the latter is too long too
        with pytest.raises(StoreError, match="cannot be written: File name too long"):
            extract(manifest_of(images), output)
    assert sorted(left.name for left in tmp_path.iterdir()) == ["images"]
