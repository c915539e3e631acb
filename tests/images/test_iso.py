"""Tests of the boxes of AVIF and HEIC files: their kind, size and end, whatever the bytes are."""

from __future__ import annotations

import struct
import time

import pytest
from pictures import box, iso_of

from pipeline.errors import ImageError
from pipeline.images import iso
from pipeline.images.decoding import decode


def test_brands_tell_pictures_from_films() -> None:
    assert iso.kind_of(box(b"ftyp", b"mif1" + bytes(4) + b"miafavif")) == "AVIF"
    assert iso.kind_of(box(b"ftyp", b"mif1" + bytes(4) + b"miafheic")) == "HEIF"
    assert iso.kind_of(box(b"ftyp", b"mif1" + bytes(4))) == "HEIF"
    assert iso.kind_of(box(b"ftyp", b"mp42" + bytes(4) + b"isomheic")) is None
    assert iso.kind_of(b"") is None


def test_the_largest_picture_counts() -> None:
    sizes = b"".join(box(b"ispe", struct.pack(">III", 0, *size)) for size in ((160, 120), (4032, 3024), (512, 512)))
    head = box(b"ftyp", b"heic" + bytes(4))
    assert iso.largest_picture(head + box(b"meta", bytes(4) + box(b"iprp", box(b"ipco", sizes)))) == (4032, 3024)
    assert iso.largest_picture(iso_of(b"avif", 30_000, 20_000)) == (30_000, 20_000)
    assert iso.largest_picture(head) == (0, 0)


def test_what_is_appended_is_no_end() -> None:
    whole = iso_of(b"heic", 64, 48) + box(b"mdat", bytes(100))
    assert not iso.ends_early(whole)
    assert not iso.ends_early(whole + b"SEFT\xff\xff\xff\xff of a phone")
    assert not iso.ends_early(whole + struct.pack(">I4s", 999, b"sefd"))
    assert all(iso.ends_early(whole[:-cut]) for cut in (1, 50, 100))


@pytest.mark.parametrize("brand", [b"avif", b"heic"])
def test_boxes_that_never_end_take_no_time(brand: bytes) -> None:
    head, start = box(b"ftyp", brand + bytes(4)), time.perf_counter()
    for data in (
        head + struct.pack(">I4s", 8, b"free") * 10**6,
        head + box(b"meta", bytes(4) + box(b"iprp", box(b"ipco", struct.pack(">I4s", 8, b"free") * 10**6))),
        head + struct.pack(">I4sQ", 1, b"meta", 0) * 10**5,
        head + struct.pack(">I4sQ", 1, b"mdat", 2**64 - 1),
        head + struct.pack(">I4s", 0, b"meta"),
    ):
        with pytest.raises(ImageError) as caught:
            decode(data)
        assert caught.value.reason in ("too-large", "corrupt", "truncated", "unreadable")
    assert time.perf_counter() - start < 2
