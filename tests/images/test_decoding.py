"""The pixel policy, clause by clause, on real files of every format."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, iso_of, photo
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from pipeline.errors import BAD_IMAGE, ImageError
from pipeline.images import decoding
from pipeline.images.decoding import FORMATS, MISSING_DECODERS, Limits, decode

#: Formats that have a decoder on every machine, and those that may have none.
ALWAYS = tuple(format for format in FORMATS if format not in MISSING_DECODERS)
READABLE = tuple(format for format in FORMATS if format in ALWAYS or decoding._has_decoder(format))
NEWER = tuple(
    pytest.param(format, marks=pytest.mark.skipif(format not in READABLE, reason=why))
    for format, why in MISSING_DECODERS.items()
)


def pixels(data: bytes, **options: object) -> np.ndarray:
    image = decode(data, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def reason(data: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, limits or Limits())
    assert "\n" not in str(caught.value)
    return caught.value.reason


def png_of_black(width: int, height: int) -> bytes:
    """A bilevel PNG that is small because all of it is black; without its pixels where they are too many."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    body = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 9) if width * height < 10**8 else b""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


#: Code for a child: its most memory so far, kB. That of getrusage begins with what its parent had.
PEAK = """
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
"""


# ---- plain images are Pillow's own ----


@pytest.mark.parametrize("format", ALWAYS)
def test_plain_rgb_equals_pillow(format: str) -> None:
    data = encoded(photo(1), format)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(pixels(data), np.asarray(expected))


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"quality": 5}, {"optimize": True}])
def test_kinds_of_jpeg_equal_pillow(options: dict[str, object]) -> None:
    data = encoded(photo(2), "JPEG", **options)
    assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "GIF"])
def test_grey_and_palette_equal_pillow(mode: str, format: str) -> None:
    data = encoded(photo(3).convert(mode), format)
    assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_real_photos_equal_pillow(real_data: Path) -> None:
    for path in sorted((real_data / "data/cats_dogs/cat").iterdir())[:40]:
        expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        assert np.array_equal(pixels(path.read_bytes()), np.asarray(expected)), path


def test_the_name_does_not_matter_and_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(data)).n_frames == 3
        assert (pixels(data) == (255, 0, 0)).all(), format


def test_a_multi_picture_jpeg_gives_its_first_picture() -> None:
    first, second = photo(1), photo(2)
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert np.array_equal(pixels(data), pixels(encoded(first, "JPEG", quality=95)))


# ---- AVIF and HEIC ----


def without_loss(format: str, image: Image.Image, **options: object) -> bytes:
    lossless = {"quality": 100, "subsampling": "4:4:4"} if format == "AVIF" else {"quality": -1, "chroma": 444}
    return encoded(image, format, **lossless, **options)


@pytest.mark.parametrize("format", NEWER)
def test_pictures_of_phones_are_read(format: str) -> None:
    for image in (photo(1), photo(1, (61, 47)), photo(1).convert("L")):
        found, expected = pixels(encoded(image, format, quality=95)), np.asarray(image.convert("RGB"))
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", NEWER)
def test_pictures_of_phones_are_turned_once(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo(4, (64, 32))
    turned = Image.open(io.BytesIO(encoded(image, "PNG", exif=exif.tobytes())))
    expected = np.asarray(ImageOps.exif_transpose(turned))
    found = pixels(without_loss(format, image, exif=exif.tobytes()))
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("format", NEWER)
def test_what_xmp_says_does_not_turn_what_was_turned(format: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(photo(4), format, xmp=xmp)
    if format == "AVIF":  # of the one format encoders write no turn for it
        assert decode(data).size == (64, 48)
        assert ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size == (48, 64)
    else:
        assert decode(data).size == (48, 64)


@pytest.mark.parametrize("format", NEWER)
def test_transparent_pictures_of_phones_are_composited_on_white(format: str) -> None:
    image = Image.new("RGBA", (64, 48), (255, 0, 0, 255))
    image.paste((0, 0, 255, 0), (0, 0, 32, 48))
    found = pixels(without_loss(format, image)).astype(int)
    assert np.abs(found[:, 4:28] - 255).max() < 8
    assert np.abs(found[:, 36:60] - (255, 0, 0)).max() < 8


@pytest.mark.skipif("HEIF" not in READABLE, reason=MISSING_DECODERS["HEIF"])
def test_ten_bits_become_eight() -> None:
    import pillow_heif

    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    image = np.broadcast_to(ramp[None, :, None], (48, 64, 3)).tobytes()
    buffer = io.BytesIO()
    pillow_heif.encode(mode="RGB;16", size=(64, 48), data=image, fp=buffer, quality=-1, chroma=444)
    assert pillow_heif.open_heif(buffer, convert_hdr_to_8bit=False).info["bit_depth"] == 10
    found = pixels(buffer.getvalue())
    assert np.abs(found[20].astype(int) - (ramp // 257)[:, None]).max() <= 3


@pytest.mark.parametrize("format", NEWER)
def test_a_size_that_is_a_lie_takes_no_memory(format: str) -> None:
    """The header says 16 x 16; what is coded is more, and is bad or cut, within the decoder's own bound."""
    data = bytearray(encoded(photo(1), format))
    at = data.index(b"ispe")
    data[at + 8 : at + 16] = struct.pack(">II", 16, 16)
    found: object
    try:
        found = decode(bytes(data)).size
    except ImageError as error:
        found = error.reason
    # Of HEIC, old decoders ask what is coded for its size, which is what the limit is then held to.
    assert found in ([(16, 16)] if format == "AVIF" else ["corrupt", (64, 48)])


@pytest.mark.parametrize(("brand", "format"), [(b"avif", "AVIF"), (b"heic", "HEIF"), (b"mif1", "HEIF")])
def test_what_has_no_decoder_says_what_to_install(brand: bytes, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "PIL.AvifImagePlugin", None)
    monkeypatch.delattr("PIL.AvifImagePlugin", raising=False)
    with pytest.raises(ImageError) as caught:
        decode(iso_of(brand, 64, 48))
    assert str(caught.value) == f"unreadable: {MISSING_DECODERS[format]}"


# ---- orientation ----


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(photo(4), format, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert decode(data).size == ((48, 64) if orientation >= 5 else (64, 48))
    assert np.array_equal(pixels(data), np.asarray(expected))


def test_exif_behind_the_pixels_of_a_png_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(4), "PNG", exif=exif)
    at = data.index(b"eXIf") - 4
    end = at + 12 + struct.unpack(">I", data[at : at + 4])[0]
    iend = data.index(b"IEND") - 4
    moved = data[:at] + data[end:iend] + data[at:end] + data[iend:]
    assert decode(moved).size == (48, 64)


@pytest.mark.parametrize(
    "exif",
    [b"", b"Exif\0\0", b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 99],
)
def test_unreadable_metadata_does_not_spoil_the_pixels(exif: bytes) -> None:
    plain = encoded(photo(5), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    assert np.array_equal(pixels(plain[:2] + segment + plain[2:]), pixels(plain))


def test_a_stray_orientation_is_no_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    assert decode(encoded(photo(4), "JPEG", exif=exif)).size == (64, 48)


# ---- transparency ----


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_on_white(format: str) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 128)])
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    found = pixels(encoded(image, format, **options))[0].tolist()
    assert found[:2] == [[10, 20, 30], [255, 255, 255]]
    assert np.allclose(found[2], 127, atol=1)


def test_grey_with_alpha_and_transparent_palettes_are_composited_on_white() -> None:
    grey = Image.new("LA", (2, 1))
    grey.putdata([(50, 255), (50, 0)])
    assert pixels(encoded(grey, "PNG"))[0].tolist() == [[50] * 3, [255] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 1, 2, 3])
    palette.putdata([0, 1])
    for format, transparency in (("PNG", b"\xff\x00"), ("PNG", 1), ("GIF", 1)):
        data = encoded(palette, format, transparency=transparency)
        assert pixels(data)[0].tolist() == [[9, 8, 7], [255] * 3], (format, transparency)


def test_colour_keys_are_transparent() -> None:
    rgb = Image.new("RGB", (2, 1))
    rgb.putdata([(1, 2, 3), (4, 5, 6)])
    assert pixels(encoded(rgb, "PNG", transparency=(4, 5, 6)))[0].tolist() == [[1, 2, 3], [255] * 3]
    sixteen = Image.fromarray(np.array([[0, 30000, 65535]], np.uint16))
    assert pixels(encoded(sixteen, "PNG", transparency=30000))[0, :, 0].tolist() == [0, 255, 255]


def test_a_tiff_with_premultiplied_alpha() -> None:
    image = Image.new("RGBA", (2, 1))
    image.putdata([(100, 0, 0, 255), (0, 0, 0, 0)])
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[338] = (1,)
    data = encoded(image, "TIFF", tiffinfo=tags)
    assert Image.open(io.BytesIO(data)).mode in ("RGBA", "RGBa")
    assert pixels(data)[0].tolist() == [[100, 0, 0], [255] * 3]


# ---- CMYK ----


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_converted(format: str) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow ink: red
    found = pixels(encoded(image, format))
    assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 3


# ---- more than eight bits ----


def ramp(top: float, dtype: type) -> np.ndarray:
    return np.linspace(0, top, 64 * 64).astype(dtype).reshape(64, 64)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_a_ramp_of_many_bits_keeps_all_its_tones(format: str, bits: int) -> None:
    values = ramp(2**bits - 1, np.uint16)
    found = pixels(encoded(Image.fromarray(values), format))[..., 0]
    assert np.array_equal(found, np.rint(values * (255 / (2**bits - 1))).astype(np.uint8))
    assert len(np.unique(found)) == 256


def test_a_photo_saved_with_sixteen_bits_keeps_its_brightness() -> None:
    grey = np.asarray(photo(6).convert("L"))
    grey = np.maximum(grey, np.uint8(70))  # a photo that uses more than a quarter of the range
    assert np.array_equal(pixels(encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"))[..., 0], grey)
    assert np.array_equal(pixels(encoded(Image.fromarray(grey.astype(np.uint16)), "PNG"))[..., 0], grey)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (0, 65535), (0, 1e-6), (-1, 1), (0, 1e30), (-3e38, 3e38)])
def test_a_float_ramp_keeps_all_its_tones(low: float, high: float) -> None:
    values = (ramp(1, np.float64) * (high - low) + low).astype(np.float32)
    found = pixels(encoded(Image.fromarray(values), "TIFF"))[..., 0]
    assert (found[0, 0], found[-1, -1]) == (0, 255)
    assert len(np.unique(found)) == 256
    assert (np.diff(found.ravel().astype(int)) >= 0).all()


def test_values_that_are_no_numbers_and_infinities() -> None:
    values = ramp(1, np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    assert pixels(encoded(Image.fromarray(values), "TIFF"))[0, :3, 0].tolist() == [0, 255, 0]
    nothing = np.full((8, 8), np.nan, np.float32)
    assert reason(encoded(Image.fromarray(nothing), "TIFF")) == "corrupt"


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (65535, 255), (32768, 128)])
def test_an_image_of_one_value(value: int, grey: int) -> None:
    data = encoded(Image.fromarray(np.full((4, 4), value, np.uint16)), "PNG")
    assert (pixels(data) == grey).all()


def test_thirty_two_bit_integers_use_their_own_range() -> None:
    found = pixels(encoded(Image.fromarray(ramp(2**30, np.int32)), "TIFF"))[..., 0]
    assert (found[0, 0], found[-1, -1], len(np.unique(found))) == (0, 255, 256)


# ---- large images are made piece by piece ----


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def odd(mode: str) -> Image.Image:
    """A photo in this mode, of every opacity where it has one, and of prime width and height."""
    picture = photo(4, (61, 47))
    if mode in ("I;16", "I", "F"):
        return Image.fromarray(np.asarray(picture)[..., 0].astype({"I;16": "u2", "I": "i4", "F": "f4"}[mode]) * 7)
    if mode in ("RGBA", "LA"):
        picture.putalpha(photo(5, picture.size).convert("L"))
    return picture.convert(mode)


WAYS = [
    *[(mode, "PNG", {}) for mode in ("1", "L", "P", "RGB", "LA", "RGBA", "I;16")],
    ("L", "PNG", {"transparency": 90}),
    ("RGB", "PNG", {"transparency": (90, 90, 90)}),
    ("P", "PNG", {"transparency": bytes(range(256))}),
    ("P", "GIF", {"transparency": 3}),
    *[(mode, "JPEG", {}) for mode in ("L", "RGB", "CMYK")],
    *[(mode, "TIFF", {}) for mode in ("1", "P", "CMYK", "RGBX", "I;16", "I", "F")],
    *[(mode, "WEBP", {}) for mode in ("RGB", "RGBA")],
]


@pytest.mark.parametrize(("mode", "format", "options"), WAYS)
@pytest.mark.parametrize("piece", [59, 700])
def test_pixels_are_the_same_piece_by_piece(
    mode: str, format: str, options: dict[str, object], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [encoded(odd(mode), format, exif=turned(number), **options) for number in range(1, 9)]
    whole = [pixels(data) for data in files]
    monkeypatch.setattr("pipeline.images.decoding._LARGE", 0)
    monkeypatch.setattr("pipeline.images.decoding._PIECE", piece)
    assert all(np.array_equal(pixels(data), expected) for data, expected in zip(files, whole, strict=True))


LARGEST = {
    "rgba.png": ("RGBA", {"exif": turned(6), "compress_level": 1}),
    "deep.png": ("I;16", {"compress_level": 1}),
    "cmyk.jpg": ("CMYK", {"exif": turned(3)}),
    "float.tif": ("F", {"compression": "tiff_adobe_deflate"}),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the kernel's figure")
@pytest.mark.parametrize("name", ["rgba.png", *(pytest.param(n, marks=pytest.mark.slow) for n in list(LARGEST)[1:])])
def test_the_largest_good_image_needs_little_memory(name: str, tmp_path: Path) -> None:
    mode, options = LARGEST[name]
    Image.new(mode, (8192, 8192)).save(tmp_path / name, **options)
    code = textwrap.dedent(
        """
        import pathlib, sys
        from pipeline.images.decoding import decode
        before = peak()
        image = decode(pathlib.Path(sys.argv[1]).read_bytes())
        print(*image.size, (peak() - before) // 2**10)
        """
    )
    child = [sys.executable, "-c", PEAK + code, tmp_path / name]
    width, height, grown = subprocess.run(child, check=True, capture_output=True, timeout=60).stdout.split()
    assert (int(width), int(height)) == (8192, 8192)
    assert 250 < int(grown) < 500


# ---- what is refused ----


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"this is a text file named .jpg\n", "not-an-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not-an-image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not-an-image"),
        (b"%PDF-1.7\n", "not-an-image"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"II*\0", "truncated"),
        (b"RIFF\x10\0\0\0WEBP", "truncated"),
        (b"BM", "truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 5000 + b"IEND", "corrupt"),
    ],
)
def test_what_is_no_image_has_a_reason(data: bytes, why: str) -> None:
    assert reason(data) == why


def test_every_other_format_of_pillow_is_refused() -> None:
    Image.init()
    for format in ("PPM", "TGA", "ICO", "JPEG2000", "PCX", "SGI", "DDS", "EPS", "PDF"):
        assert reason(encoded(photo(1), format)) == "not-an-image", format


def test_an_eps_file_starts_no_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert reason(encoded(photo(1), "EPS")) == "not-an-image"
    assert not (tmp_path / "started").exists()


def test_too_many_bytes_and_too_many_pixels() -> None:
    data = encoded(photo(1), "PNG")
    assert reason(data, Limits(max_bytes=len(data) - 1)) == "too-large"
    assert reason(data, Limits(max_pixels=64 * 48 - 1)) == "too-large"
    assert decode(data, Limits(max_bytes=len(data), max_pixels=64 * 48)).size == (64, 48)


def test_a_bomb_is_refused_from_its_header_in_no_time() -> None:
    bomb = png_of_black(8900, 8900)
    assert len(bomb) < 12_000
    start = time.perf_counter()
    assert reason(bomb) == "too-large"
    assert time.perf_counter() - start < 0.5
    assert reason(png_of_black(2**31 - 1, 2**31 - 1)) == "too-large"


def patched_tiff(changes: dict[int, tuple[int, int]]) -> bytes:
    """An LZW TIFF in which some tags are replaced: old tag -> new tag and its value."""
    data = bytearray(encoded(photo(1), "TIFF", compression="tiff_lzw"))
    start = struct.unpack_from("<I", data, 4)[0]
    for entry in range(struct.unpack_from("<H", data, start)[0]):
        at = start + 2 + 12 * entry
        tag = struct.unpack_from("<H", data, at)[0]
        if tag in changes:
            new_tag, value = changes[tag]
            struct.pack_into("<HHII", data, at, new_tag, 4, 1, value)
    return bytes(data)


def webp_of(width: int, height: int) -> bytes:
    """An animation of two small frames on a large canvas."""
    frames = {"save_all": True, "append_images": [photo(2)]}
    data = bytearray(encoded(photo(1), "WEBP", **frames))
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


#: Small files whose headers declare images that would need gigabytes.
BOMBS = {
    "bmp": b"BM" + struct.pack("<IIIIiiHHIIIIII", 60, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
    "gif": b"GIF89a" + b"\xff" * 4 + b"\x80\0\0" + bytes(6) + b",\0\0\0\0" + b"\xff" * 4 + b"\0\x02\0;",
    "jpeg": b"\xff\xd8\xff\xc0\0\x0b\x08" + b"\xff" * 4 + b"\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0\x3f\0",
    "png": png_of_black(8900, 8900),
    "tiff": patched_tiff({256: (256, 60000), 257: (257, 60000)}),
    "webp": webp_of(16383, 16383),
    "avif": iso_of(b"avif", 30_000, 30_000),
    "heic": iso_of(b"heic", 30_000, 30_000),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the kernel's figure")
def test_bombs_of_every_format_need_little_memory(tmp_path: Path) -> None:
    for name, data in BOMBS.items():
        (tmp_path / name).write_bytes(data)
    code = textwrap.dedent(
        """
        import pathlib, sys
        from pipeline.errors import ImageError
        from pipeline.images.decoding import decode
        before = peak()
        for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
            try:
                decode(path.read_bytes())
            except ImageError as error:
                print(path.name, error.reason)
        print("kB", peak() - before)
        """
    )
    lines = subprocess.run(
        [sys.executable, "-c", PEAK + code, tmp_path], check=True, capture_output=True, text=True, timeout=60
    ).stdout.splitlines()
    assert lines[:-1] == [f"{name} too-large" for name in sorted(BOMBS)]
    assert int(lines[-1].split()[1]) < 20_000


def test_a_huge_tile_is_refused() -> None:
    tile = {278: (322, 50000), 273: (323, 50000)}  # in place of rows per strip and strip offsets
    assert reason(patched_tiff(tile)) == "too-large"


def test_metadata_that_refers_to_itself_does_not_grow() -> None:
    """Two thousand tags that share 60 kB would be 120 MB."""
    count, size = 2000, 60_000
    entries = b"".join(struct.pack("<HHII", tag, 7, size, 8) for tag in range(1000, 1000 + count))
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", count) + entries
    block += bytes(size)
    plain = encoded(photo(1), "JPEG")
    parts = [block[at : at + 65000] for at in range(0, len(block), 65000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(p) + 2) + p for p in parts)
    start = time.perf_counter()
    assert np.array_equal(pixels(plain[:2] + segments + plain[2:]), pixels(plain))
    assert time.perf_counter() - start < 1


# ---- truncated files ----

WHOLE = {
    "jpeg": encoded(photo(7), "JPEG"),
    "progressive": encoded(photo(7), "JPEG", progressive=True),
    "png": encoded(photo(7), "PNG"),
    "palette": encoded(photo(7).convert("P"), "PNG"),
    "webp": encoded(photo(7), "WEBP"),
    "lossless": encoded(photo(7), "WEBP", lossless=True),
    "gif": encoded(photo(7), "GIF"),
    "bmp": encoded(photo(7), "BMP"),
    "tiff": encoded(photo(7), "TIFF"),
    "lzw": encoded(photo(7), "TIFF", compression="tiff_lzw"),
    "packbits": encoded(photo(7), "TIFF", compression="packbits"),
    "fax": encoded(photo(7).convert("1"), "TIFF", compression="group4"),
    "jpeg in tiff": encoded(photo(7), "TIFF", compression="jpeg"),
    "cmyk": encoded(photo(7).convert("CMYK"), "JPEG"),
    "deflate": encoded(photo(7), "TIFF", compression="tiff_adobe_deflate"),
    **{format.lower(): encoded(photo(7), format) for format in READABLE if format in MISSING_DECODERS},
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_truncated_file_is_bad_or_lacks_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is cut: an error, or exactly the pixels of the whole (what was cut held none)."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some library may have set it
    whole = WHOLE[name]
    expected = pixels(whole)
    cuts = {*range(1, len(whole), max(1, len(whole) // 60)), *range(len(whole) - 40, len(whole))}
    reasons = []
    for cut in sorted(cuts):
        try:
            found = pixels(whole[:cut])
        except ImageError as error:
            reasons.append(error.reason)
        else:
            assert np.array_equal(found, expected), f"cut at {cut} of {len(whole)}"
    assert len(reasons) > 50
    assert set(reasons) <= {"truncated", "corrupt", "not-an-image"}
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_jpeg_that_lacks_two_bytes_is_truncated() -> None:
    assert reason(WHOLE["jpeg"][:-2]) == "truncated"
    assert reason(WHOLE["png"][: len(WHOLE["png"]) // 2]) == "truncated"


def run_length_bmp(rows: int) -> bytes:
    """An 8-bit run-length BMP of 4 x 4 pixels with the code of only some rows."""
    body = b"\x04\x01\0\0" * rows
    palette = bytes(range(256)) * 4
    size = 54 + len(palette) + len(body)
    header = b"BM" + struct.pack("<IIIIiiHHIIIIII", size, 0, 54 + 1024, 40, 4, 4, 1, 8, 1, len(body), 0, 0, 256, 0)
    return header + palette + body


def test_a_run_length_bmp_is_not_padded() -> None:
    assert pixels(run_length_bmp(4)).shape == (4, 4, 3)
    assert reason(run_length_bmp(2)) == "corrupt"  # as long as its header says, but with too few pixels


# ---- fast decoding ----


@pytest.mark.parametrize(
    ("at_least", "size"),
    [((64, 64), (160, 120)), ((80, 60), (80, 60)), ((81, 60), (160, 120)), ((600, 9), (640, 480))],
)
def test_scaled_decoding_never_goes_under(at_least: tuple[int, int], size: tuple[int, int]) -> None:
    assert decode(encoded(photo(8, (640, 480)), "JPEG"), at_least=at_least).size == size


def test_scaled_decoding_minds_the_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(8, (640, 480)), "JPEG", exif=exif)
    assert decode(data, at_least=(120, 160)).size == (120, 160)
    assert decode(data, at_least=(130, 160)).size == (240, 320)


def test_scaled_decoding_is_for_jpeg_alone() -> None:
    data = encoded(photo(8, (640, 480)), "PNG")
    assert np.array_equal(pixels(data, at_least=(8, 8)), pixels(data))


# ---- manners ----


def test_warnings_of_pillow_do_not_leak_and_are_given_back() -> None:
    bomb = encoded(Image.new("1", (9500, 9500)), "PNG")  # over the size at which Pillow itself warns
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(bomb, Limits(max_pixels=10**8)).size == (9500, 9500)
    assert warnings.filters == before


def test_the_global_switches_of_pillow_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode(WHOLE["png"]).size == (64, 48)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_threads_share_the_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    cut = WHOLE["jpeg"][:-100]
    wrong: list[str] = []

    def work() -> None:
        for _ in range(50):
            try:
                decode(cut)
                wrong.append("padded")
            except ImageError as error:
                if error.reason != "truncated":
                    wrong.append(error.reason)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(WHOLE)),
    edits=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=8),
)
def test_any_damage_gives_pixels_or_a_reason(name: str, edits: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE[name])
    for at, value in edits:
        data[at % len(data)] = value
    outcome = "pixels"
    try:
        decode(bytes(data), Limits(max_pixels=10**6))
    except ImageError as error:
        outcome = error.reason
    assert outcome in ("pixels", *BAD_IMAGE)
