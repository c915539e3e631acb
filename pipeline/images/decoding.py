"""Bytes of one image file to RGB pixels, under one written policy.

Policy, version 1. The version is part of every recipe: a change here that moves a pixel raises it.

- The format is decided by the content, never by the name, and is one of JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF (where
  Pillow can), HEIC (where pillow-heif is installed; it is asked by name, and never registered with Pillow).
  Nothing else is ever given to a decoder: an EPS file named .jpg does not start Ghostscript.
- A file over `Limits.max_bytes`, or whose header says more than `Limits.max_pixels`, is refused before any
  pixel is decoded.
- A file that is made so that decoding it takes minutes, such as a JPEG of a thousand scans, is refused (`prescan`).
- A truncated file is bad. It is never padded, whatever `PIL.ImageFile.LOAD_TRUNCATED_IMAGES` says.
- Of an animation, the first frame counts; of a HEIC file with several pictures, the one that it calls primary.
- EXIF orientation is applied (XMP's where there is no EXIF one), so that up is up. AVIF and HEIC turn pictures by
  properties of their own, which are applied instead, once.
- Transparent pixels are composited on white: alpha channels, transparent palette entries, colour keys.
- CMYK and YCCK are converted with Adobe's inverted convention, as Pillow does; colour profiles are ignored.
- Grey images of more than 8 bits and of floating point are scaled to 0..255 by their range of values, which
  is the first of 0..1 (floats only), 0..255, 0..1023, 0..4095, 0..16383, 0..65535 that holds every value and
  whose 8-bit image would not be all black; where there is none, it is the image's own smallest to largest
  value. So a 12-bit scan in a 16-bit file keeps its tones, and a photo saved with 16 bits its brightness.
  NaN becomes black, an infinity becomes the end of the range on its side.
- AVIF and HEIC of more than 8 bits in colour are brought to 8 by their decoders.
- Everything else is Pillow's own `convert("RGB")`: a plain RGB JPEG gives exactly the pixels that
  `PIL.Image.open(path).convert("RGB")` gives.
"""

from __future__ import annotations

import importlib.util
import io
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from pipeline.config import MAX_PIXELS, MOST_PIXELS
from pipeline.errors import ImageError
from pipeline.images import iso, prescan

#: Part of the recipe. Raise it when the same bytes no longer give the same pixels.
POLICY_VERSION = 1

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")

#: What is to be done where these formats have no decoder: the images are fine, and are tried again another day.
MISSING_DECODERS = {
    "AVIF": "AVIF needs Pillow 11.3 or newer that was built with it: pip install --upgrade Pillow",
    "HEIF": "HEIC needs pillow-heif: pip install 'cached-feature-pipeline[heif]'",
}
_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)

#: Tops of the ranges that values are usually recorded in: 8, 10, 12, 14 and 16 bits.
_INTEGER_TOPS = (255, 1023, 4095, 16383, 65535)

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_ORIENTATIONS[value] for value in (5, 6, 7, 8)}
#: What these turns bring from the left to the right, and from the top to the bottom, after any change of sides.
_MIRRORED = {_ORIENTATIONS[value] for value in (2, 3, 6, 7)}
_UPSIDE_DOWN = {_ORIENTATIONS[value] for value in (3, 4, 7, 8)}
_ORIENTATION_KEYS = ("exif", "xmp", "Raw profile type exif", "XML:com.adobe.xmp")

#: What Pillow raises on metadata that it cannot read. Such a file has no orientation; its pixels are fine.
_BAD_METADATA = (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error)


@dataclass(frozen=True)
class Limits:
    """The largest file and the largest image that are decoded.

    Beside the file's bytes, a large image takes about 7 bytes of memory a pixel; the decoders of progressive JPEGs and
    of WebPs take up to 10 and 16.
    """

    max_bytes: int = 128 * 2**20
    max_pixels: int = MAX_PIXELS


_DEFAULT_LIMITS = Limits()

#: Pixels of an image that is large: at Pillow's four bytes a pixel it is never there twice.
_LARGE = 2**25
#: Pixels of a piece of an image, for what is done piece by piece.
_PIECE = 2**18


#: Pillow's modules, as a regular expression that no other filter of warnings is likely to have.
_PILLOW = r"(?:PIL)\."


class _StrictPillow:
    """Pillow's switches set for us, by however many threads: no truncated images, no warnings, our cap on pixels.

    Pillow and `warnings` keep these switches in global variables, so the first thread in turns them and the
    last one out puts them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: tuple[bool, int | None] = (False, None)
        self._silence: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
                ImageFile.LOAD_TRUNCATED_IMAGES = False
                Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow warns from here on, and refuses twice as many
            # Checked on every entry: a catch_warnings block of another thread may have taken it away.
            if self._silence is None or self._silence not in warnings.filters:
                warnings.filterwarnings("ignore", module=_PILLOW)
                self._silence = next(f for f in warnings.filters if getattr(f[3], "pattern", "") == _PILLOW)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = self._before
                if self._silence in warnings.filters:
                    warnings.filters.remove(self._silence)  # type: ignore[attr-defined]


_strict_pillow = _StrictPillow()


#: What Pillow and NumPy raise on an image that they cannot make into another one.
_REFUSALS = (ValueError, OverflowError, RecursionError, OSError, SystemError, struct.error)


@contextmanager
def preprocessing() -> Iterator[None]:
    """Turn what goes wrong with one image inside into an `ImageError`: a run of thousands goes on without it.

    A mistake of ours, such as a TypeError, stays what it is.
    """
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise short_of_memory() from error
    except _REFUSALS as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ImageError("corrupt", f"it cannot be made into the base's input: {said}") from error


def decode(
    data: bytes,
    limits: Limits = _DEFAULT_LIMITS,
    *,
    at_least: tuple[int, int] | None = None,
    refuse: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """Decode the bytes of one file to an RGB image, under the policy at the top of this module.

    With `at_least` = (width, height), a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as
    neither side falls below that. This is several times faster, and gives other pixels: another recipe.
    `refuse` is shown width and height before any pixel is decoded, and may raise `ImageError`.

    Raises `ImageError` and nothing else, whatever the bytes are.

    >>> decode(b"GIF89a but nothing follows")
    Traceback (most recent call last):
    pipeline.errors.ImageError: truncated: the GIF file ends before its header does
    """
    if not data:
        raise ImageError("empty", "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise ImageError("too-large", f"{len(data)} bytes, the limit is {limits.max_bytes}")
    kind = kind_of(data)
    try:
        with _strict_pillow:
            # Two steps, so that nothing here still holds the image of the first while the second makes its own.
            flat, orientation = _read(data, kind, limits, at_least, refuse)
            return _upright(flat, orientation)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too-large", f"decoding the {kind} file needs too much memory: {error}") from error
    except MemoryError as error:
        raise short_of_memory() from error
    except Exception as error:
        # Pillow raises OSError, SyntaxError, ValueError, struct.error, KeyError, zlib.error and more.
        if "out of memory" in str(error):
            raise short_of_memory() from error
        raise _bad_image(data, kind, error) from error


def short_of_memory() -> ImageError:
    """Make the error for an image that is fine: another time there may be room for it, so it is tried again."""
    return ImageError("unreadable", "there is not enough memory to decode it now; give fewer --workers, or more memory")


def of_image(image: Image.Image) -> Image.Image:
    """Convert an image that Pillow has opened or made to RGB, under the same policy; raise `ImageError`."""
    try:
        return _upright(*_flat(image, None))
    except MemoryError as error:
        raise short_of_memory() from error
    except OSError as error:
        raise ImageError("corrupt", f"the opened image cannot be read: {error}") from None


def kind_of(data: bytes) -> str:
    """Return the format of the bytes, one of `FORMATS`, by their first few; raises `ImageError`."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if boxed := iso.kind_of(data):
        return boxed
    raise ImageError("not-an-image", f"starts with {data[:8]!r}, not one of {', '.join(FORMATS)}")


def _open(data: bytes, kind: str, limits: Limits) -> Image.Image:
    """Read the header alone, and refuse what it says is too large."""
    counts_scans = prescan.refuse_slow(data, kind)
    if kind in ("AVIF", "HEIF"):
        _refuse_boxes(data, kind, limits)
    try:
        image = _heif(data) if kind == "HEIF" else Image.open(io.BytesIO(data), formats=(kind,))
    except (UnidentifiedImageError, SyntaxError) as error:
        raise _bad_image(data, kind, error, part="header") from error
    _refuse_large(image.size, limits)
    if kind == "TIFF" and _largest_block(image) > limits.max_pixels:
        raise ImageError("too-large", f"a tile of {_largest_block(image)} pixels, more than the image needs")
    if counts_scans:
        prescan.refuse_many_scans(data, image.size)
    elif kind == "BMP" and image.tile and image.tile[0][0] == "bmp_rle":
        prescan.refuse_run_lengths(data, image.size)
    return image


def _refuse_large(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        way_out = f"; --max-pixels {width * height} allows it" if width * height <= MOST_PIXELS else ""
        raise ImageError("too-large", f"{width} x {height} pixels, the limit is {limits.max_pixels} in all{way_out}")


def _refuse_boxes(data: bytes, kind: str, limits: Limits) -> None:
    """Refuse what needs no decoder to be refused, and what has none here."""
    if iso.ends_early(data):
        raise ImageError("truncated", f"the {kind} file ends before its picture does")
    _refuse_large(iso.largest_picture(data), limits)
    if not _has_decoder(kind):
        raise ImageError("unreadable", MISSING_DECODERS[kind])


def _has_decoder(kind: str) -> bool:
    if kind == "HEIF":
        return importlib.util.find_spec("pillow_heif") is not None
    try:
        from PIL import AvifImagePlugin
    except ImportError:
        return False
    return bool(AvifImagePlugin.SUPPORTED)


def _heif(data: bytes) -> ImageFile.ImageFile:
    """Read the header of a HEIC file; raise `SyntaxError`, as Pillow's plugins do."""
    import pillow_heif

    opener: type[ImageFile.ImageFile] = pillow_heif.HeifImageFile
    return opener(io.BytesIO(data))


def _largest_block(image: Image.Image) -> int:
    """Return pixels of a TIFF's tile, which is allocated whole even where the image is smaller; 0 without tiles."""
    tags: dict[int, Any] = getattr(image, "tag_v2", {})
    width, height = tags.get(322, 0), tags.get(323, 0)
    return width * height if isinstance(width, int) and isinstance(height, int) else 0


def _read(
    data: bytes,
    kind: str,
    limits: Limits,
    at_least: tuple[int, int] | None,
    refuse: Callable[[int, int], None] | None,
) -> tuple[Image.Image | NDArray[np.uint8], int]:
    image = _open(data, kind, limits)
    if refuse is not None:
        refuse(image.width, image.height)
    return _flat(image, at_least)


def _flat(image: Image.Image, at_least: tuple[int, int] | None) -> tuple[Image.Image | NDArray[np.uint8], int]:
    """Decode pixels of mode L or RGB as they lie in the file, with the orientation that is still to be applied.

    They are a packed array, (H, W) or (H, W, 3), where a second image would take too much memory.
    """
    if at_least is not None and image.format in ("JPEG", "MPO"):
        image.draft(None, at_least[::-1] if _ORIENTATIONS.get(_orientation(image)) in _SIDEWAYS else at_least)
    image.load()
    # After loading: a PNG may keep its EXIF behind the pixels. Pillow turns TIFFs itself.
    orientation = 1 if image.format == "TIFF" else _orientation(image)
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return _eight_bits(image), orientation
    is_done = image.mode == "RGB" and not image.has_transparency_data
    if image.width * image.height > _LARGE and not (is_done and orientation not in _ORIENTATIONS):
        return _packed(image), orientation
    return image if is_done else _opaque(image), orientation


def _upright(flat: Image.Image | NDArray[np.uint8], orientation: int) -> Image.Image:
    """Turn what `_flat` gives upright, as an RGB image."""
    turn = _ORIENTATIONS.get(orientation)
    if not isinstance(flat, Image.Image):
        return _unpacked(flat, turn)
    image = flat if flat.mode == "RGB" else flat.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _pieces(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes that make up an image, each of at most `_PIECE` pixels, however thin the image is."""
    columns = min(width, _PIECE) or 1
    rows = _PIECE // columns
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(left + columns, width), min(top + rows, height)


def _packed(image: Image.Image) -> NDArray[np.uint8]:
    """Return what `_opaque` gives at one byte a pixel, (H, W), or three, (H, W, 3)."""
    is_grey = image.mode in ("1", "L") and not image.has_transparency_data
    packed = np.empty((image.height, image.width) if is_grey else (image.height, image.width, 3), np.uint8)
    for box in _pieces(*image.size):
        left, top, right, bottom = box
        packed[top:bottom, left:right] = np.asarray(_opaque(image.crop(box)))
    return packed


def _unpacked(values: NDArray[np.uint8], turn: Image.Transpose | None) -> Image.Image:
    """Make an RGB image of (H, W) or (H, W, 3), turned."""
    height, width = values.shape[:2]
    image = Image.new("RGB", (height, width) if turn in _SIDEWAYS else (width, height))
    for left, top, right, bottom in _pieces(width, height):
        piece = Image.fromarray(np.ascontiguousarray(values[top:bottom, left:right]))
        if turn is None:
            image.paste(piece, (left, top))
            continue
        if turn in _SIDEWAYS:
            left, top, right, bottom = top, left, bottom, right
        left = image.width - right if turn in _MIRRORED else left
        top = image.height - bottom if turn in _UPSIDE_DOWN else top
        image.paste(piece.transpose(turn), (left, top))
    return image


def _opaque(image: Image.Image) -> Image.Image:
    """Composite an image on white; the result has mode L or RGB."""
    if image.has_transparency_data:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(layer, mask=layer)
        return white
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _orientation(image: Image.Image) -> int:
    if not any(key in image.info for key in _ORIENTATION_KEYS):
        return 1
    try:
        prescan.check_exif(_exif_of(image))
        exif = _own_exif(image) if image.format in ("AVIF", "HEIF") else image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except (*_BAD_METADATA, ImageError):
        return 1
    return orientation if isinstance(orientation, int) else 1


def _own_exif(image: Image.Image) -> Image.Exif:
    """Return the EXIF alone: there decoders write what is still to be turned, and what XMP says has been done."""
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return exif


def _exif_of(image: Image.Image) -> bytes:
    """Return the block of EXIF that Pillow is going to read."""
    if "exif" in image.info:
        return bytes(image.info["exif"])
    return bytes.fromhex("".join(image.info.get("Raw profile type exif", "").split("\n")[3:]))


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Scale an image of mode I, I;16 or F to 8 bits by its range of values: (H, W)."""
    low, high = _range_of_values(image)
    scale = 255.0 / ((high - low) or 1.0)
    colour_key = image.info.get("transparency")
    grey = np.empty((image.height, image.width), np.uint8)
    for box in _pieces(*image.size):
        values = np.asarray(image.crop(box))
        scaled = np.rint((np.clip(values.astype(np.float64), low, high) - low) * scale)
        scaled = np.nan_to_num(scaled, copy=False, nan=0.0)
        if isinstance(colour_key, int):
            scaled[values == colour_key] = 255
        left, top, right, bottom = box
        grey[top:bottom, left:right] = scaled
    return grey


def _range_of_values(image: Image.Image) -> tuple[float, float]:
    """Return the values that become 0 and 255."""
    low, high = np.inf, -np.inf
    for box in _pieces(*image.size):
        values = np.asarray(image.crop(box))
        finite = values[np.isfinite(values)] if image.mode == "F" else values
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        raise ImageError("corrupt", "no pixel of this floating-point image is finite")
    tops = (1, *_INTEGER_TOPS) if image.mode == "F" else _INTEGER_TOPS
    top = next((top for top in tops if high <= top), None)
    if low < 0 or top is None or round(high * 255 / top) == 0:
        return low, high
    return 0.0, float(top)


def _bad_image(data: bytes, kind: str, error: Exception, *, part: str = "pixels") -> ImageError:
    if part == "header":
        detail = f"the {kind} file's header cannot be read"
        if _ends_early(data, kind):
            return ImageError("truncated", f"the {kind} file ends before its header does")
    else:
        detail = f"the {kind} decoder says: {str(error) or type(error).__name__}".replace("\n", " ")
    truncated = "truncated" in str(error).lower() or _ends_early(data, kind)
    return ImageError("truncated" if truncated else "corrupt", detail)


def _ends_early(data: bytes, kind: str) -> bool:
    """Return True where the mark of this format's end is absent, or fewer bytes are there than the header declares."""
    if kind == "JPEG":  # cameras and editors append bytes after the mark
        return b"\xff\xd9" not in data[-4096:]
    if kind == "PNG":
        return b"IEND" not in data[-4096:]
    if kind == "GIF":
        return b"\x3b" not in data[-16:]
    if kind == "WEBP":
        return len(data) < 12 or int.from_bytes(data[4:8], "little") + 8 > len(data)
    if kind == "BMP":
        return len(data) < 26 or int.from_bytes(data[2:6], "little") > len(data)
    return len(data) < 8
