"""What a decoder is spared: each kind of file that takes minutes or gigabytes has a reason at once."""

from __future__ import annotations

import os
import subprocess
import sys
from random import Random

import hostile_images as hostile
import pytest
from pictures import encoded, photo

from pipeline.errors import ImageError
from pipeline.images import prescan
from pipeline.images.decoding import decode


def reason(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_a_progressive_photo_has_no_more_scans_than_are_let_in() -> None:
    assert decode(encoded(photo(1), "JPEG", progressive=True)).size == (64, 48)
    assert decode(hostile.jpeg_of_scans((64, 48), 80)).size == (64, 48)  # with its own about ten
    assert decode(hostile.jpeg_of_scans((3000, 3000), 6)).size == (3000, 3000)


@pytest.mark.parametrize(("size", "scans"), [((64, 48), 100), ((64, 48), 3000), ((6000, 6000), 30)])
def test_a_jpeg_of_many_scans_is_refused_before_decoding(size: tuple[int, int], scans: int) -> None:
    assert reason(hostile.jpeg_of_scans(size, scans)) == "too-large"


def test_what_looks_like_scans_behind_the_picture_does_not_count() -> None:
    data = encoded(photo(1), "JPEG", progressive=True)
    comment = b"\xff\xfe\x03\xea" + b"\xff\xda" * 500
    assert decode(data + b"\xff\xda" * 500).tobytes() == decode(data).tobytes()
    assert decode(data[:2] + comment + data[2:]).tobytes() == decode(data).tobytes()


@pytest.mark.parametrize(
    "stuffing",
    [b"\xff" * 2**22, b"\xff\0" * 2**21, b"\0" * 2**21, b"\xff\xd8" * 2**20, b"\xff\xfe\0\2" * 5000],
    ids=["fill", "escaped", "junk", "starts", "comments"],
)
def test_a_jpeg_that_is_mostly_between_its_markers_is_refused(stuffing: bytes) -> None:
    assert reason(hostile.jpeg_with(stuffing)) == "too-large"
    if b"\xff\xd8" in stuffing:
        return  # one is too many for libjpeg
    few = stuffing[: len(stuffing) // 64]
    assert decode(hostile.jpeg_with(few)).size == (64, 48)


def test_exif_that_claims_more_than_it_holds_or_repeats_its_mark() -> None:
    greedy = hostile.tags([(1000 + i, 7, 10**6) for i in range(1000)], body=10**6)
    assert reason(hostile.jpeg_with(hostile.segments(greedy))) == "corrupt"
    assert reason(hostile.jpeg_with(hostile.segments(b"Exif\0\0" * 10_000))) == "corrupt"
    assert reason(hostile.jpeg_with(hostile.segments(bytes(2**24 + 1)))) == "too-large"
    for block in (greedy, b"Exif\0\0" * 10_000):  # where Pillow need not read it, the pixels are fine
        assert decode(hostile.png(64, 48, before=hostile.png_chunk(b"eXIf", block))).size == (64, 48)


@pytest.mark.parametrize("name", [b"zzZz", b"IDAT", b"fcTL"])
def test_a_png_of_many_chunks_is_refused(name: bytes) -> None:
    many = hostile.png_chunk(name) * (prescan.MOST_CHUNKS + 1)
    assert reason(hostile.png(64, 48, after=many)) == "too-large"
    assert reason(hostile.png(64, 48, before=many)) == "too-large"
    whole = hostile.png(64, 48)
    assert decode(whole + many).tobytes() == decode(whole).tobytes()  # behind the end, nobody reads them


def test_a_webp_of_many_chunks_is_refused() -> None:
    assert reason(hostile.riff_with(b"zzZz\0\0\0\0" * (prescan.MOST_CHUNKS + 1))) == "too-large"
    assert decode(hostile.riff_with(b"zzZz\0\0\0\0" * 100)).size == (64, 48)


@pytest.mark.parametrize(
    "stuffing",
    [b"!\xfe" + (b"\xff" + bytes(255)) * 10_000 + b"\0", b"!\xf0\0" * 200_000, b"\1" * 200_000],
    ids=["comment", "extensions", "junk"],
)
def test_a_gif_of_many_blocks_before_its_first_frame_is_refused(stuffing: bytes) -> None:
    assert reason(hostile.gif_with(stuffing)) == "too-large"
    assert decode(hostile.gif_with(b"!\xfe\5hello\0" * 100)).size == (64, 48)


def test_tiff_directories_that_claim_too_much_are_refused() -> None:
    assert reason(hostile.tiff_with([(40_000 + i, 7, 10**6) for i in range(1000)], body=10**6)) == "corrupt"
    assert reason(hostile.tiff_with([(500 + i, 3, 1) for i in range(30_000)], body=0)) == "corrupt"
    assert reason(hostile.tiff_with([(273, 4, 10**6)], body=4 * 10**6)) == "too-large"
    assert reason(hostile.big_tiff(Random(0))) == "corrupt"
    assert decode(hostile.tiff_with([(40_000, 7, 10**6)], body=10**6)).size == (64, 48)


def test_a_large_run_length_bmp_is_refused() -> None:
    assert reason(hostile.runs_bmp(8192, 8192, b"\0\0" * 8192)) == "too-large"
    assert reason(hostile.runs_bmp(64, 48, b"\1\1" * (2**21 + 1))) == "too-large"
    assert decode(hostile.runs_bmp(64, 48, b"\x40\1\0\0" * 48)).size == (64, 48)


QUICK = ("thin_enlarged", "thin_giant", "scans", "scans_of_a_giant", "declared_giant", "webp_frames")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_dozen_hostile_images_in_processes_of_their_own() -> None:
    command = [sys.executable, hostile.__file__, "--count", "48", "--seed", "7", "--kind", *QUICK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert f"{2 * len(QUICK)} images" in done.stdout


@pytest.mark.slow
def test_three_hundred_hostile_images_in_processes_of_their_own() -> None:
    command = [sys.executable, hostile.__file__, "--count", "312", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-5000:]
