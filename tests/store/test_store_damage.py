"""Flipped bits, cut files and hostile files: an error that names the place, or the same values as before."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cheap import LAYERS, datasets, everything, extract, manifest_of, write_images

from pipeline.commands.merge import merge
from pipeline.commands.verify import verify
from pipeline.errors import StoreDamagedError, StoreError
from pipeline.store import FeatureStore, Part
from pipeline.store.header import MAGIC, parse_header
from pipeline.store.rows import RowFile

FLIPS = int(os.environ.get("PIPELINE_FLIPS", "1000"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 40)
    return folder


@pytest.fixture(scope="module")
def good(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "F.h5"
    extract(manifest_of(images), path)
    return path


def flip(content: bytes, bit: int) -> bytes:
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def test_a_flipped_bit_anywhere_is_an_error_or_changes_nothing(good: Path, tmp_path: Path) -> None:
    content, expected = good.read_bytes(), everything(good)
    path, dice, outcomes = tmp_path / "F.h5", random.Random(13), Counter[str]()
    for _ in range(FLIPS):
        path.write_bytes(flip(content, dice.randrange(len(content) * 8)))
        try:
            assert everything(path) == expected
            outcomes["changes nothing"] += 1
        except StoreDamagedError:
            outcomes["detected"] += 1
    print(f"{FLIPS} flips: {dict(outcomes)}")
    assert outcomes["detected"] > 0.9 * FLIPS


def test_verify_finds_a_flipped_bit_anywhere(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    path, dice = tmp_path / "F.h5", random.Random(14)
    for _ in range(FLIPS // 4):
        bit = dice.randrange(len(content) * 8)
        path.write_bytes(flip(content, bit))
        assert not verify(path).ok, f"bit {bit}"


def test_a_flipped_bit_in_an_unfinished_file_is_refused_or_computed_again(
    images: Path, good: Path, tmp_path: Path
) -> None:
    """The file of a run that was killed just before it was published, with one bit flipped."""
    manifest, expected, dice = manifest_of(images), datasets(good), random.Random(15)
    outcomes = Counter[str]()
    shutil.copy(good, tmp_path / "F.h5.partial")
    content = good.read_bytes()
    for number in range(FLIPS // 4):
        path = tmp_path / f"{number}.h5"
        path.with_name(f"{number}.h5.partial").write_bytes(flip(content, dice.randrange(len(content) * 8)))
        try:
            computed = extract(manifest, path)
            outcomes["computed again" if computed else "changes nothing"] += 1
            assert datasets(path) == expected
        except StoreDamagedError:
            outcomes["refused"] += 1
    assert outcomes["computed again"] > 0
    assert outcomes["refused"] > 0


@pytest.mark.parametrize(
    "column",
    [
        *("features/avgpool", "features/conv", "id", "split", "target/class", "target/length"),
        *("source/size", "source/mtime_ns", "source/sha256", "status"),
    ],
)
def test_damage_names_column_and_block(good: Path, tmp_path: Path, column: str) -> None:
    path = tmp_path / "F.h5"
    shutil.copy(good, path)
    with h5py.File(path) as file:
        offset = file[column].id.get_offset()
    path.write_bytes(flip(path.read_bytes(), offset * 8 + 9))
    with pytest.raises(StoreDamagedError, match=rf"F.h5: {column}, block 0 \(rows 0 to 39\) fails its checksum"):
        everything(path)
    assert any(column in problem for problem in verify(path).problems)


def test_only_the_damaged_block_is_refused(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.layout.BLOCK_BYTES", 960)  # ten rows of avgpool
    path = tmp_path / "F.h5"
    extract(manifest_of(images), path)
    expected = everything(path)
    with h5py.File(path) as file:
        offset = file["features/avgpool"].id.get_offset()
        assert file["checksum/features/avgpool"].attrs["rows"] == 10
    path.write_bytes(flip(path.read_bytes(), (offset + 25 * 96) * 8))
    with FeatureStore.open(path) as store:
        for start in 0, 10, 30:
            rows = np.arange(start, start + 10)
            assert store.features("avgpool", rows).tobytes() == expected["features"][0][start * 96 : start * 96 + 960]
        with pytest.raises(StoreDamagedError, match=r"block 2 \(rows 20 to 29\)"):
            store.features("avgpool", np.array([3, 21]))
        with pytest.raises(StoreDamagedError, match="block 2"):
            list(store.iter_blocks("avgpool"))
    assert extract(manifest_of(images), path) == []  # not looked at: nothing was to be done
    (images / "zz.jpg").write_bytes(b"another")
    try:
        assert extract(manifest_of(images), path) == ["00025.jpg", "zz.jpg"]
    finally:
        (images / "zz.jpg").unlink()


def test_a_cut_file_is_an_error_wherever_it_is_cut(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    path = tmp_path / "F.h5"
    cuts = {0, 1, 20, len(content) - 1} | {size + by for size in range(512, len(content), 512) for by in (-1, 0, 1)}
    for cut in cuts:
        path.write_bytes(content[:cut])
        with pytest.raises(StoreDamagedError):
            FeatureStore.open(path)
        assert not verify(path).ok
    path.write_bytes(content + b"\0")
    with pytest.raises(StoreDamagedError, match=f"has {len(content) + 1} bytes and should have {len(content)}"):
        FeatureStore.open(path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "F.h5"
    shutil.copy(good, path)
    with FeatureStore.open(path) as store:
        os.truncate(path, 5000)
        with pytest.raises(StoreDamagedError, match="ends at byte"):
            store.features("avgpool")


def test_an_unfinished_file_under_a_finished_name_is_refused(images: Path, tmp_path: Path) -> None:
    from cheap import open_writer

    path = tmp_path / "F.h5"
    with open_writer(manifest_of(images), path) as writer:
        writer.fail(0, "empty")
    with pytest.raises(StoreError, match=r"F\.h5 is not finished: run the same extract command again"):
        FeatureStore.open(path)
    with pytest.raises(StoreError, match="40 rows"), open_writer(manifest_of(images), path) as writer:
        writer.publish()
    path.with_name("F.h5.partial").rename(path)
    with pytest.raises(StoreDamagedError, match="status, block 0"):
        FeatureStore.open(path)


# --- hostile files


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of a file, and make its checksum right."""
    content = path.read_bytes()
    line = MAGIC.match(content)
    assert line
    size = int(line[1])
    fields = json.loads(content[line.end() : size].rstrip(b"\0"))
    change(fields)
    body = json.dumps(fields).encode().ljust(size - line.end(), b"\0")
    head = b"pipeline-features 1 header=%d crc32=%08x\n" % (size, zlib.crc32(body))
    path.write_bytes(head + body + content[size:])


def columns(name: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields["columns"][name].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        columns("features/avgpool", shape=[40, 10**9]),
        columns("features/avgpool", shape=[10**12, 24]),
        columns("features/avgpool", shape=[10**400, 24]),
        columns("features/avgpool", shape=[-40, 24]),
        columns("features/avgpool", shape=[40, 0]),
        columns("features/avgpool", shape=[]),
        columns("features/avgpool", shape="40"),
        columns("features/avgpool", dtype="|O"),
        columns("features/avgpool", dtype="<i8"),
        columns("features/avgpool", offset=0),
        columns("features/avgpool", offset=-4096),
        columns("features/avgpool", offset=10**30),
        columns("features/avgpool", offset=True),
        columns("features/avgpool", block=0),
        columns("features/avgpool", block=1),
        columns("features/avgpool", checksum=10**18),
        columns("status", offset=0),
        columns("id", dtype="|S9999999"),
        columns("id", shape=[40, 2]),
        columns("source/sha256", shape=[40, 16]),
        columns("target/class", dtype="<f8"),
        lambda fields: fields["columns"].update({"features/more": fields["columns"]["features/avgpool"]}),
        lambda fields: fields["columns"].update({"secret": fields["columns"]["status"]}),
        lambda fields: fields["columns"].pop("status"),
        lambda fields: fields["columns"].pop("id"),
        lambda fields: fields.update(columns={}),
        lambda fields: fields.update(targets={}),
        lambda fields: fields["targets"].update({"target/other": None}),
        lambda fields: fields["targets"].update({"target/class": None}),
        lambda fields: fields["targets"].update({"status": None}),
        lambda fields: fields.update(file_size=10**15),
        lambda fields: fields.update(format="other"),
        lambda fields: fields.update(format_version=2),
        lambda fields: fields.update(more=1),
        lambda fields: fields.update(part=None),
        lambda fields: fields["part"].update(stop=41),
        lambda fields: fields["part"].update(total=39),
        lambda fields: fields["part"].update(ids_sha256="x"),
        lambda fields: fields.pop("recipe"),
        lambda fields: fields["recipe"].update(views="many"),
        lambda fields: fields.update(structure_crc32=7),
        lambda fields: fields.update(environment=[1]),
        lambda fields: fields.update(environment={"seed": "13"}),
        lambda fields: fields.update(environment={"versions": 1}),
        lambda fields: fields.clear(),
    ],
)
def test_a_hostile_header_is_refused(good: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = tmp_path / "F.h5"
    shutil.copy(good, path)
    rewrite(path, change)
    with pytest.raises(StoreDamagedError, match=r"F.h5"):
        everything(path)
    assert not verify(path).ok


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b"{", b"[" * 90_000, b'{"rows": 1e999}', b"\xff\xfe", b'"\\ud800"', b"1" * 9000]
)
def test_a_header_that_is_no_object_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "F.h5"
    size = 1 << 17
    line = b"pipeline-features 1 header=%d crc32=%08x\n"
    body = text.ljust(size - len(line % (size, 0)), b"\0")
    path.write_bytes(line % (size, zlib.crc32(body)) + body)
    with pytest.raises(StoreDamagedError, match="is not valid in format 1"):
        FeatureStore.open(path)


def test_a_header_larger_than_the_file_or_than_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "F.h5"
    path.write_bytes(b"pipeline-features 1 header=268435456 crc32=00000000\n")
    with pytest.raises(StoreDamagedError, match="is not valid in format 1"):
        FeatureStore.open(path)
    path.write_bytes(b"pipeline-features 1 header=999999999 crc32=00000000\n")
    with pytest.raises(StoreDamagedError, match="an invalid header size of 999999999 bytes"):
        FeatureStore.open(path)
    path.write_bytes(b"pipeline-features 1 header=3 crc32=00000000\n")
    with pytest.raises(StoreDamagedError, match="an invalid header size of 3 bytes"):
        FeatureStore.open(path)


def _external_storage(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["features/avgpool"]
        file["features"].create_dataset("avgpool", (40, 24), "<f4", external=[("/etc/passwd", 0, 40 * 96)])


def _external_link(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["features/avgpool"]
        file["features/avgpool"] = h5py.ExternalLink("/etc/other.h5", "/features/avgpool")


def _soft_link(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["features/other"] = h5py.SoftLink("/features/avgpool")


def _virtual(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["features/avgpool"]
        layout = h5py.VirtualLayout((40, 24), "<f4")
        layout[:] = h5py.VirtualSource("gone.h5", "features/avgpool", (40, 24))
        file["features"].create_virtual_dataset("avgpool", layout)


def _compressed(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        values = file["features/avgpool"][:]
        del file["features/avgpool"]
        file["features"].create_dataset("avgpool", data=values, compression="gzip")


def _relabelled(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["target/class"][3] ^= 1


def _renamed_class(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["target/class"].attrs["names"] = ["odd", "even"]


HDF5_CHANGES = [
    _external_storage,
    _external_link,
    _soft_link,
    _virtual,
    _compressed,
    _relabelled,
    _renamed_class,
]


@pytest.mark.parametrize("change", HDF5_CHANGES)
def test_what_another_program_changes_through_hdf5_is_refused(
    good: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "F.h5"
    shutil.copy(good, path)
    change(path)
    with pytest.raises(StoreDamagedError):
        everything(path)
    assert not verify(path).ok


@pytest.mark.parametrize("change", HDF5_CHANGES[:5])
def test_changed_hdf5_with_a_forged_checksum_never_decides_what_is_read(
    good: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """HDF5's structure is not consulted: links to other files are never followed, and `verify` tells of them."""
    path, expected = tmp_path / "F.h5", everything(good)
    shutil.copy(good, path)
    change(path)
    os.truncate(path, max(path.stat().st_size, good.stat().st_size))

    def forge(fields: dict[str, Any]) -> None:
        fields["file_size"] = path.stat().st_size
        head = MAGIC.match(path.read_bytes())
        assert head
        size, content = int(head[1]), path.read_bytes()
        extents = sorted(
            extent
            for column in fields["columns"].values()
            for extent in (
                (column["offset"], column["offset"] + _nbytes(column)),
                (column["checksum"], column["checksum"] + 4 * -(-column["shape"][0] // column["block"])),
            )
        )
        crc, position = 0, size
        for start, stop in [*extents, (len(content), 0)]:
            crc, position = zlib.crc32(content[position:start], crc), max(position, stop)
        fields["structure_crc32"] = crc

    rewrite(path, forge)
    with contextlib.suppress(StoreDamagedError):  # where HDF5 reused the place of the data
        assert everything(path) == expected
    problems = verify(path).problems
    assert any("HDF5" in problem for problem in problems), problems


def _nbytes(column: dict[str, Any]) -> int:
    return int(np.prod(column["shape"])) * np.dtype(column["dtype"]).itemsize


def test_verify_runs_nothing_that_lies_in_the_current_folder(
    good: Path, tmp_path: Path, console_script: Path, planted: Callable[..., Path]
) -> None:
    """A structure that is not ours is read by another process; a folder may hold what it would import."""
    ran = planted("pipeline/__init__", "h5py", "numpy", "runpy", "pathlib")
    path = tmp_path / "F.h5"
    content = bytearray(good.read_bytes())
    with RowFile.open(good) as file:
        header, size = file.header, file.header_bytes
    content[header.structure(size)[0][0]] ^= 1
    structure = b"".join(content[start:stop] for start, stop in header.structure(size))
    content[:size] = header.model_copy(update={"structure_crc32": zlib.crc32(structure)}).to_bytes(size)
    path.write_bytes(content)
    command = [sys.executable, console_script, "verify", path]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert not ran.exists(), ran.read_text()
    assert (said.returncode, said.stderr) == (1, "")
    assert "F.h5: HDF5 cannot read it: Unable to" in said.stdout


@pytest.mark.parametrize("name", ["F.h5", "deep"])
def test_files_of_others_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with h5py.File(path, "w") as file:
        file["features/avgpool"] = np.zeros((3, 4), np.float32)
    with pytest.raises(StoreDamagedError, match="is not a feature file of format 1"):
        FeatureStore.open(path)


def test_special_files_neither_hang_nor_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    for path in (tmp_path / "pipe.h5", Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(StoreError):
            FeatureStore.open(path)
    with pytest.raises(StoreError, match=r"nowhere\.h5 does not exist"):
        FeatureStore.open(tmp_path / "nowhere.h5")


# --- parts


@pytest.fixture
def parts(images: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    for start, stop in (0, 10), (10, 25), (25, 40):
        write_part(images, folder / f"{start}.h5", start, stop)
    return folder


def write_part(images: Path, path: Path, start: int, stop: int, **options: Any) -> None:
    manifest = manifest_of(images)
    ids = [record.id for record in manifest.records]
    extract(manifest.rows(start, stop), path, part=Part.of(ids, start, stop), **options)


def test_a_folder_of_parts_reads_as_the_whole_and_merges_to_it(parts: Path, good: Path, tmp_path: Path) -> None:
    whole, apart = everything(good), everything(parts)
    assert apart == whole
    rows = np.array([39, 0, 10, 9, 24, 25, 10])
    with FeatureStore.open(parts) as store, FeatureStore.open(good) as one:
        for layer in LAYERS:
            np.testing.assert_array_equal(store.features(layer.name, rows), one.features(layer.name, rows))
        with pytest.raises(IndexError, match="of a store of 40"):
            store.features("conv", np.array([40]))
    assert verify(parts).ok
    result = merge(sorted(parts.iterdir()), tmp_path / "M.h5")
    assert result.to_json() == {"store": str(tmp_path / "M.h5"), "parts": 3, "rows": 40}
    assert datasets(tmp_path / "M.h5") == datasets(good)
    assert everything(tmp_path / "M.h5") == whole
    assert verify(tmp_path / "M.h5").ok


def test_parts_that_are_not_one_store_are_refused(images: Path, parts: Path, tmp_path: Path) -> None:
    from cheap import recipe

    def refused(message: str) -> None:
        for attempt in (lambda: FeatureStore.open(parts), lambda: merge([parts], tmp_path / "M.h5")):
            with pytest.raises(StoreError, match=message):
                attempt()
        assert not (tmp_path / "M.h5").exists()

    middle = (parts / "10.h5").read_bytes()
    (parts / "10.h5").unlink()
    refused(r"parts lacks rows 10:25 of 40; extract them with --rows 10:25")
    (parts / "10.h5.partial").write_bytes(middle)
    refused(r"lacks rows 10:25 of 40 \(10.h5.partial not finished\)")
    (parts / "10.h5.partial").unlink()
    write_part(images, parts / "10.h5", 10, 26)
    refused(r"25.h5: rows 25:26 are in another part too")
    (parts / "10.h5").write_bytes(middle)
    (parts / "copy.h5").write_bytes(middle)
    refused(r"rows 10:25 are in another part too; remove one")
    (parts / "copy.h5").unlink()
    write_part(images, parts / "10.h5", 10, 25, force=True, recipe=recipe(base="other"))
    refused(r"are not parts of one store: other recipe, base: ")
    (parts / "10.h5").write_bytes(flip(middle, len(middle) * 8 - 20_000))
    with pytest.raises(StoreDamagedError):
        merge([parts], tmp_path / "M.h5")
    assert not (tmp_path / "M.h5").exists()
    (parts / "10.h5").write_bytes(middle)
    (parts / "last.h5").write_text("no store")
    refused("last.h5 is not a feature file")
    (parts / "last.h5").unlink()
    (parts / "25.h5").unlink()
    refused(r"lacks rows 25:40 of 40")
    with pytest.raises(StoreError, match="holds no feature file"):
        FeatureStore.open(images)


def test_parts_of_another_list_are_refused(images: Path, parts: Path, tmp_path: Path) -> None:
    other = tmp_path / "images"
    shutil.copytree(images, other)
    (other / "00030.jpg").rename(other / "00030.jpeg")
    (parts / "25.h5").unlink()
    write_part(other, parts / "25.h5", 25, 40)
    with pytest.raises(StoreError, match="other list of all ids"):
        FeatureStore.open(parts)


def test_a_header_that_names_another_list_is_refused(parts: Path) -> None:
    for path in parts.iterdir():
        rewrite(path, lambda fields: fields["part"].update(ids_sha256="0" * 64))
    with pytest.raises(StoreDamagedError, match="ids of the parts do not match"):
        FeatureStore.open(parts)


def test_headers_survive_their_own_writing(good: Path) -> None:
    content = good.read_bytes()
    line = MAGIC.match(content)
    assert line
    header = parse_header(content[: int(line[1])], where="F.h5", file_size=len(content))
    assert parse_header(header.to_bytes(), where="F.h5", file_size=len(content)) == header
