"""AVIF and HEIC files, which are boxes within boxes (ISO/IEC 14496-12): their kind, size and end, without a decoder."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import ImageError

#: Brands of files by what codes their pictures; those of the container alone say nothing of it.
_CODINGS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIF"),
}
_CONTAINERS = (b"mif1", b"msf1", b"miaf")
#: Brands of one file, and boxes on one level of it, that are looked at.
MOST_BRANDS, MOST_BOXES = 64, 2**14
#: Boxes without which there is no picture; what cameras append behind them need be no box at all.
_NEEDED = (b"ftyp", b"meta", b"moov", b"mdat")


def kind_of(data: bytes) -> str | None:
    """Return AVIF or HEIF by the brands at the start of the bytes; None for another file.

    >>> kind_of(bytes(4) + b"ftypheic"), kind_of(bytes(4) + b"ftypmp42")
    ('HEIF', None)
    """
    major = data[8:12]
    if data[4:8] != b"ftyp" or not (major in _CODINGS or major in _CONTAINERS):
        return None
    end = min(int.from_bytes(data[:4], "big"), 16 + 4 * MOST_BRANDS)
    brands = [major, *(data[at : at + 4] for at in range(16, end, 4))]
    return next((_CODINGS[brand] for brand in brands if brand in _CODINGS), "HEIF")


def ends_early(data: bytes) -> bool:
    """Return True where a box that holds the picture goes on behind the end of the bytes."""
    return any(end > len(data) and name in _NEEDED for name, _, end in _boxes(data, 0, len(data)))


def largest_picture(data: bytes) -> tuple[int, int]:
    """Return width and height of the largest picture that the file says it has; (0, 0) where it does not say."""
    sizes = [(0, 0)]
    for name, start, end in _within(data, b"meta", b"iprp", b"ipco"):
        if name == b"ispe" and start + 12 <= end:
            width, height = (int.from_bytes(data[at : at + 4], "big") for at in (start + 4, start + 8))
            sizes.append((width, height))
    return max(sizes, key=lambda size: size[0] * size[1])


def _within(data: bytes, *path: bytes) -> list[tuple[bytes, int, int]]:
    """List the boxes inside of the first box at `path`."""
    found = list(_boxes(data, 0, len(data)))
    for wanted in path:
        start, end = next(((start, end) for name, start, end in found if name == wanted), (0, 0))
        found = list(_boxes(data, start + (4 if wanted == b"meta" else 0), min(end, len(data))))
    return found


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of the body of each box between two places, up to what is no box."""
    for _ in range(MOST_BOXES):
        if at + 8 > end:
            return
        length, header = int.from_bytes(data[at : at + 4], "big"), 8
        if length == 1:
            length, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        stop = at + length if length else end  # no length: the rest of the file
        if stop < at + header:
            return
        yield data[at + 4 : at + 8], at + header, stop
        at = stop
    raise ImageError("too-large", f"more than {MOST_BOXES} boxes side by side")
