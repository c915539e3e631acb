"""Small pictures for tests, made on the spot."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def photo(seed: int = 0, size: tuple[int, int] = (64, 48), colour: tuple[int, int, int] | None = None) -> Image.Image:
    """A smooth RGB picture of width x height, different for every seed; near `colour` if there is one."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    if colour is not None:
        coarse = (coarse // 4 + np.array(colour) * 3 // 4).astype(np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    if format == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def write_photos(folder: Path, count: int, *, first_seed: int = 0, colour: tuple[int, int, int] | None = None) -> None:
    """`count` JPEGs called 000.jpg and so on in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = photo(first_seed + number, colour=colour)
        (folder / f"{number:03}.jpg").write_bytes(encoded(picture, quality=90))


def box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + name + body


def iso_of(brand: bytes, width: int, height: int) -> bytes:
    """What an AVIF or HEIC file says of the size of its picture, without the picture."""
    size = box(b"ispe", struct.pack(">III", 0, width, height))
    return box(b"ftyp", brand + bytes(4)) + box(b"meta", bytes(4) + box(b"iprp", box(b"ipco", size)))
