"""The tar reader on what real programs write, and on what was made to hang it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from listing import ids, listed, make_shard, refusal
from pictures import encoded, photo

from pipeline.sources.tar_members import LONGEST_EXTENSION, Member, TarDamage, read_members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
PROGRAM_FORMATS = ("v7", "oldgnu", "gnu", "ustar", "posix")
LONG = "/".join(["folder" * 8] * 3) + "/name.jpg"


def members_of(path: Path) -> list[Member]:
    with path.open("rb") as file:
        return list(read_members(file, path.stat().st_size))


def header(
    name: str = "a.jpg", kind: bytes = b"0", size: bytes = b"00000000000\0", magic: bytes = b"ustar\x0000"
) -> bytes:
    """One block with a checksum that is right."""
    block = name.encode().ljust(100, b"\0") + b"0000644\0" * 3 + size + b"00000000000\0" + b" " * 8 + kind
    block = (block.ljust(257, b"\0") + b"ustar\x0000").ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def octal(number: int) -> bytes:
    return b"%011o\0" % number


def base_256(number: int) -> bytes:
    return (number % 2**95 | 1 << 95).to_bytes(12, "big") if number >= 0 else (number % 2**96).to_bytes(12, "big")


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return header("pax", kind, octal(len(records))) + records + bytes(-len(records) % 512)


END = bytes(1024)


@pytest.mark.parametrize("kind", FORMATS)
def test_pythons_tars(kind: str, tmp_path: Path) -> None:
    names = ["a.jpg", "ünïcode/日本.jpg", LONG] if kind != "ustar" else ["a.jpg", "ünïcode/日本.jpg", LONG[10:]]
    data = {name: os.urandom(number * 700) for number, name in enumerate(names)}
    path = make_shard(tmp_path / "a.tar", data, format=FORMATS[kind])
    found = members_of(path)
    assert [(member.name, member.kind) for member in found] == [(name, "file") for name in names]
    whole = path.read_bytes()
    assert [whole[member.offset : member.offset + member.size] for member in found] == list(data.values())


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")
@pytest.mark.parametrize("kind", PROGRAM_FORMATS)
def test_tars_of_the_program_tar(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    long = LONG[-60:] if kind == "v7" else LONG
    (root / long).parent.mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b ü.jpg", long)):
        (root / name).write_bytes(os.urandom(600 * number + 1))
    (root / "link.jpg").symlink_to("a.jpg")
    (root / "hard.jpg").hardlink_to(root / "b ü.jpg")
    subprocess.run(["tar", f"--format={kind}", "-C", tmp_path, "-cf", tmp_path / "a.tar", "photos"], check=True)
    found = members_of(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
    assert [(one.name, one.offset, one.size) for one in found if one.kind == "file"] == expected
    assert sum(one.kind == "link" for one in found) == 2
    assert sum(one.kind == "other" for one in found) == long.count("/") + 1  # the folders


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")
@pytest.mark.parametrize("kind", ["gnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1", "posix"])
def test_sparse_files_and_links_are_left_out_with_a_note(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    (root / "real.jpg").write_bytes(encoded(photo()))
    (root / "last.jpg").write_bytes(encoded(photo(2)))
    with (root / "holes.jpg").open("wb") as file:
        for number in range(1, 60):
            file.seek(number * 100_000)
            file.write(b"x")
    (root / "link.jpg").symlink_to("real.jpg")
    options = ["--sparse", *f"--format={kind}".split()]
    subprocess.run(
        ["tar", *options, "-C", root, "-cf", tmp_path / "a.tar", *(path.name for path in sorted(root.iterdir()))],
        check=True,
    )
    manifest = listed(tmp_path / "a.tar")
    assert ids(manifest) == ["last.jpg", "real.jpg"]
    assert [record.image.read(10**6) for record in manifest.records] == [encoded(photo(2)), encoded(photo())]
    assert manifest.notices == ("left out members that are not plain files (link 1, sparse file 1)",)


def test_sizes_in_base_256_and_in_pax_headers_and_signed_checksums(tmp_path: Path) -> None:
    signed = bytearray(header("ü.jpg"))
    signed[148:156] = b"%06o\0 " % (sum(signed) - sum(signed[148:156]) + 8 * 32 - 256 * sum(b > 127 for b in signed))
    blocks = [header("a.jpg", size=base_256(5)), b"12345".ljust(512, b"\0")]
    blocks += [pax(b"10 size=6\n19 path=long/b.jpg\n"), header("b.jpg"), b"123456".ljust(512, b"\0")]
    blocks += [pax(b"9 size=3\n", b"g"), header("c.jpg"), b"123".ljust(512, b"\0"), header("d", b"5"), bytes(signed)]
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(blocks) + b"123".ljust(512, b"\0") + END)
    assert [(member.name, member.size) for member in members_of(path)] == [
        ("a.jpg", 5),
        ("long/b.jpg", 6),
        ("c.jpg", 3),
        ("d", 3),
        ("ü.jpg", 3),
    ]


def hostile() -> Iterator[tuple[str, bytes, str]]:
    """What it is, the tar, and what is said of it."""
    yield "negative size", header("a.jpg", size=base_256(-512)) + END, "is not a number"
    yield "back to the start", header("a.jpg") + header("b.jpg", size=base_256(-1024)) + END, "is not a number"
    yield "negative size of a link", header("a.jpg", b"1", base_256(-(2**90))) + END, "is not a number"
    yield "size of 2 ** 80", header("a.jpg", size=base_256(2**80)) + END, "cut short"
    yield "digits without end", pax(b"1" * 200_000) + header() + END, "is damaged"
    yield "pax length of 10 ** 20", pax(b"1%s path=x\n" % (b"0" * 20)) + header() + END, "is damaged"
    yield "pax length of 0", pax(b"0 path=x\n") + header() + END, "is damaged"
    yield "pax length of 1", pax(b"1 path=x\n") + header() + END, "is damaged"
    yield "pax size of 10 ** 30", pax(b"41 size=1%s\n" % (b"0" * 31)) + header() + END, "has the size"
    yield "negative pax size", pax(b"12 size=-51\n") + header() + END, "has the size"
    yield "long name of 7 GB", header("x", b"L", octal(7 * 2**30)) + header() + END, "an extended header of 75161"
    yield "long name beyond the end", header("x", b"L", octal(5000)) + header() + END, "cut short"
    yield "long name", header("x", b"L", octal(9000)) + b"n" * 9216 + header() + END, "not a name that a file can have"
    yield "NUL in a name", pax(b"15 path=a\0.jpg\n") + header() + END, "not a name that a file can have"
    yield "sparse map without end", header("a.jpg", b"S")[:482] + b"\1" + header()[483:] + END, "damaged at byte 0"


@pytest.mark.parametrize("case", list(hostile()), ids=lambda case: case[0])
def test_hostile_tars_are_refused_at_once(case: tuple[str, bytes, str], tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(case[1])
    started = time.monotonic()
    assert case[2] in refusal(path)
    assert time.monotonic() - started < 2


def test_three_thousand_long_names_before_one_member_are_one_name(tmp_path: Path) -> None:
    name = header("x", b"L", octal(6)) + b"b.jpg\0".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(name * 3000 + header(size=octal(1)) + b"x".ljust(512, b"\0") + END)
    assert ids(listed(tmp_path / "a.tar")) == ["b.jpg"]


def test_a_sparse_map_that_never_ends_is_cut_short(tmp_path: Path) -> None:
    block = bytearray(header("a.jpg", b"S"))
    block[482] = 1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a.tar").write_bytes(bytes(block) + (bytes(504) + b"\1" + bytes(7)) * 1000)
    with pytest.raises(TarDamage, match="cut short"):
        members_of(tmp_path / "a.tar")


def test_names_that_many_members_share_take_no_memory(tmp_path: Path) -> None:
    shared = b"path=" + b"d" * (LONGEST_EXTENSION - 20)
    record = b"%d " % (len(shared) + 9) + shared + b"\n"
    (tmp_path / "a.tar").write_bytes(pax(record, b"g") + header() * 1000 + END)
    with pytest.raises(TarDamage, match="not a name that a file can have"):
        members_of(tmp_path / "a.tar")


def test_a_pipe_that_is_called_tar_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    assert "is not a regular file" in refusal(tmp_path / "a.tar")


def test_a_json_label_with_half_a_character_is_no_label(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "a.tar", {"a.jpg": encoded(photo()), "a.json": b'{"class": "\\ud800"}'})
    assert "a.json is not a label" in refusal(path)
