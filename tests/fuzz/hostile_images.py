"""Thin, slow and bomb images: each must be answered with pixels or a reason, within seconds and little memory.

Every image goes through decoding and the base's transform in a process of its own, which is watched from outside.

    python tests/fuzz/hostile_images.py --count 320 --seed 1
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

MOST_SECONDS = 5.0
MOST_MEMORY = 500 * 2**20
#: After so many seconds a child is killed.
PATIENCE = 60


# ---- files ----


def png_chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *, bits: int = 8, colour: int = 2, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of one colour, `before` and `after` its pixels; colour 0 is grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    row = 1 + (width * bits * {0: 1, 2: 3, 4: 2, 6: 4}[colour] + 7) // 8
    packer = zlib.compressobj(9)
    strip = bytes(row * max(1, 2**20 // row))
    left, parts = row * height, []
    while left > 0:
        parts.append(packer.compress(strip[:left]))
        left -= len(strip)
    body = b"".join([*parts, packer.flush()])
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + png_chunk(b"IDAT", body) + after + png_chunk(b"IEND")


def flat(format: str, size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 77 if mode in ("L", "P", "I;16", "F") else (90, 120, 30, 200)[: len(mode)]).save(
        file, format, **options
    )
    return file.getvalue()


def jpeg_with(stuffing: bytes, **options: object) -> bytes:
    """A JPEG with `stuffing` behind its first segment."""
    plain = flat("JPEG", **options)
    return plain[:20] + stuffing + plain[20:]


def jpeg_of_scans(size: tuple[int, int], scans: int) -> bytes:
    """A progressive JPEG with empty scans at its end."""
    plain = flat("JPEG", size, progressive=True)
    return plain[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00" * scans + plain[-2:]


def tags(entries: list[tuple[int, int, int]], *, body: int = 0, big: bool = False) -> bytes:
    """A TIFF directory: tag, type and count of each entry, all with their values at its start; then `body` bytes."""
    if big:
        packed = b"".join(struct.pack("<HHQQ", *entry, 16) for entry in entries)
        return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, len(entries)) + packed + bytes(8 + body)
    packed = b"".join(struct.pack("<HHII", *entry, 8) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4 + body)


def segments(exif: bytes) -> bytes:
    """EXIF as segments of a JPEG."""
    parts = [b"Exif\0\0" + exif[at : at + 65000] for at in range(0, len(exif), 65000)]
    return b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)


def tiff_with(entries: list[tuple[int, int, int]], *, body: int, **options: object) -> bytes:
    """A TIFF whose directory is moved to its end, with more entries in it."""
    plain = bytearray(flat("TIFF", **options))
    start = struct.unpack_from("<I", plain, 4)[0]
    count = struct.unpack_from("<H", plain, start)[0]
    kept = [bytes(plain[start + 2 + 12 * i : start + 14 + 12 * i]) for i in range(count)]
    named = {entry[0] for entry in entries}
    kept = [entry for entry in kept if struct.unpack_from("<H", entry)[0] not in named]
    added = [struct.pack("<HHII", *entry, 8) for entry in entries]
    struct.pack_into("<I", plain, 4, len(plain) + body)
    directory = sorted(kept + added, key=lambda entry: struct.unpack_from("<H", entry)[0])
    return bytes(plain) + bytes(body) + struct.pack("<H", len(directory)) + b"".join(directory) + bytes(4)


def gif_with(stuffing: bytes) -> bytes:
    plain = flat("GIF", mode="L")
    at = 13 + (3 << (plain[10] % 8 + 1) if plain[10] & 0x80 else 0)
    return plain[:at] + stuffing + plain[at:]


def riff_with(chunks: bytes, **options: object) -> bytes:
    """A WebP in the extended form with more chunks at its end."""
    plain = flat("WEBP", mode="RGBA", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0", **options)
    return plain[:4] + struct.pack("<I", len(plain) - 8 + len(chunks)) + plain[8:] + chunks


def webp_of_frames(count: int) -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (i % 256, i // 256, 9)) for i in range(count)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True, method=0)
    return file.getvalue()


def runs_bmp(width: int, height: int, code: bytes) -> bytes:
    """A run-length BMP."""
    size = 54 + 1024 + len(code)
    header = struct.pack("<IIIIiiHHIIIIII", size, 0, 1078, 40, width, height, 1, 8, 1, len(code), 0, 0, 256, 0)
    return b"BM" + header + bytes(range(256)) * 4 + code


# ---- kinds: each draws one file ----


def _near(random: Random, count: int) -> int:
    return max(1, int(count * random.uniform(0.5, 1.5)))


def thin_enlarged(random: Random) -> bytes:
    short, long = random.choice((1, 1, 2, 3, 7)), int(10 ** random.uniform(2, 4.6))
    size = (short, long) if random.random() < 0.6 else (long, short)
    return png(*size, colour=random.choice((0, 2, 4, 6)))


def thin_giant(random: Random) -> bytes:
    long = int(10 ** random.uniform(5, 7.7))
    return png(*random.choice(((1, long), (long, 1))), bits=1, colour=0)


def thin_reduced(random: Random) -> bytes:
    short = random.randint(200, 400)
    size = (short, random.randint(20_000, 60_000))
    return png(*(size if random.random() < 0.5 else size[::-1]), colour=2)


def thin_other_formats(random: Random) -> bytes:
    long = random.randint(3_000, 16_000)
    size = random.choice(((1, long), (long, 1), (2, long)))
    return flat(random.choice(("JPEG", "WEBP", "BMP", "TIFF", "GIF")), size)


def scans(random: Random) -> bytes:
    side = random.choice((64, 1000, 4000))
    return jpeg_of_scans((side, side), random.choice((90, 150, 3_000, 50_000)))


def scans_of_a_giant(random: Random) -> bytes:
    return jpeg_of_scans((6000, 6000), _near(random, 30))


def fill_bytes(random: Random) -> bytes:
    return jpeg_with(random.choice((b"\xff", b"\0", b"\xff\0", b"\xff\xd8")) * _near(random, 20_000_000))


def little_segments(random: Random) -> bytes:
    return jpeg_with(random.choice((b"\xff\xfe\0\2", b"\xff\xe5\0\3x", b"\xff\xe2\0\2")) * _near(random, 3_000_000))


def exif_of_many_segments(random: Random) -> bytes:
    return jpeg_with(segments(bytes(_near(random, 60_000_000))))


def greedy_exif(random: Random) -> bytes:
    count, size = _near(random, 20_000), _near(random, 1_000_000)
    exif = tags([(1000 + i % 60_000, 7, size) for i in range(count)], body=size)
    kind = random.choice(("jpeg", "png", "webp"))
    if kind == "jpeg":
        return jpeg_with(segments(exif))
    if kind == "png":
        return png(64, 48, before=png_chunk(b"eXIf", exif))
    return riff_with(b"EXIF" + struct.pack("<I", len(exif)) + exif)


def repeated_exif_mark(random: Random) -> bytes:
    marks = b"Exif\0\0" * _near(random, 3_000_000)
    return png(64, 48, before=png_chunk(b"eXIf", marks)) if random.random() < 0.5 else jpeg_with(segments(marks))


def little_chunks(random: Random) -> bytes:
    name = random.choice((b"tEXt", b"zzZz", b"IDAT", b"fcTL"))
    many = png_chunk(name, b"a\0b" if name == b"tEXt" else b"") * _near(random, 2_000_000)
    return png(64, 48, before=many) if random.random() < 0.5 else png(64, 48, after=many)


def packed_texts(random: Random) -> bytes:
    body = zlib.compress(bytes(random.choice((1_000_000, 200_000_000))), 9)
    kind = random.choice(("zTXt", "iCCP", "iTXt"))
    head = {"zTXt": b"a\0\0", "iCCP": b"a\0\0", "iTXt": b"a\0\1\0\0\0"}[kind]
    return png(64, 48, before=png_chunk(kind.encode(), head + body) * random.choice((1, 300)))


def gif_blocks(random: Random) -> bytes:
    block = b"\xff" + bytes(255)
    kind = random.choice(("comment", "comments", "application", "junk", "empty"))
    if kind == "comment":
        return gif_with(b"!\xfe" + block * _near(random, 60_000) + b"\0")
    if kind == "comments":
        return gif_with((b"!\xfe" + block + b"\0") * _near(random, 60_000))
    if kind == "application":
        return gif_with(b"!\xff\x0bXMP DataXMP" + block * _near(random, 200_000) + b"\0")
    return gif_with((b"\1" if kind == "junk" else b"!\xf0\0") * _near(random, 10_000_000))


def greedy_tiff(random: Random) -> bytes:
    count, size = _near(random, 4_000), _near(random, 1_000_000)
    return tiff_with([(40_000 + i, 7, size) for i in range(min(count, 20_000))], body=size)


def tiff_of_tags(random: Random) -> bytes:
    options = {"compression": random.choice(("raw", "tiff_lzw"))}
    return tiff_with([(500 + i, 3, 1) for i in range(_near(random, 30_000))], body=0, **options)


def tiff_of_strips(random: Random) -> bytes:
    count = _near(random, 3_000_000)
    return tiff_with([(random.choice((273, 279, 258, 324)), random.choice((3, 4)), count)], body=4 * count)


def big_tiff(random: Random) -> bytes:
    many = random.choice((2**40, 2**63, _near(random, 500_000)))
    whole = tags([(256, 3, 1)] * min(many, 700_000), big=True)
    return whole[:16] + struct.pack("<Q", many) + whole[24:]


def riff_chunks(random: Random) -> bytes:
    return riff_with(b"zzZz\0\0\0\0" * _near(random, 5_000_000))


def webp_frames(random: Random) -> bytes:
    return webp_of_frames(_near(random, 1_000))


def webp_giant(random: Random) -> bytes:
    side = random.choice((4000, 9000))
    return flat("WEBP", (side, side), lossless=True, method=0)


def bmp_runs(random: Random) -> bytes:
    width, height = random.choice(((8192, 8192), (3000, 3000), (1, 60_000), (60_000, 1_000)))
    code = random.choice((b"\0\0", b"\1\1", b"\1\1\0\0", b"\0\2\1\0"))
    return runs_bmp(width, height, code * _near(random, random.choice((10_000, 5_000_000))))


def declared_giant(random: Random) -> bytes:
    width, height = random.randint(10_000, 2**31 - 1), random.randint(10_000, 2**31 - 1)
    kind = random.choice(("png", "bmp", "gif", "jpeg"))
    if kind == "png":
        small = png(8, 8)
        header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return small[:8] + header + small[33:]
    if kind == "bmp":
        return runs_bmp(width, height, b"\0\1")
    if kind == "gif":
        small = bytearray(flat("GIF", mode="L"))
        small[6:10] = b"\xff" * 4
        return bytes(small)
    return b"\xff\xd8\xff\xc0\0\x0b\x08" + b"\xff" * 4 + b"\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0\x3f\0"


def pixel_bomb(random: Random) -> bytes:
    """Few bytes for nearly as many pixels as are let in."""
    side = random.choice((3000, 5000, 7000, 8192))
    kind = random.choice(("grey", "rgb", "rgba", "deep", "jpeg", "turned"))
    if kind in ("jpeg", "turned"):
        exif = Image.Exif()
        exif[0x0112] = 6 if kind == "turned" else 1
        return flat("JPEG", (side, side), exif=exif)
    bits, colour = {"grey": (1, 0), "rgb": (8, 2), "rgba": (8, 6), "deep": (16, 0)}[kind]
    return png(side, side, bits=bits, colour=colour)


KINDS: tuple[Callable[[Random], bytes], ...] = (
    *(thin_enlarged, thin_giant, thin_reduced, thin_other_formats),
    *(scans, scans_of_a_giant, fill_bytes, little_segments, exif_of_many_segments, greedy_exif, repeated_exif_mark),
    *(little_chunks, packed_texts, gif_blocks, greedy_tiff, tiff_of_tags, tiff_of_strips, big_tiff),
    *(riff_chunks, webp_frames, webp_giant, bmp_runs, declared_giant, pixel_bomb),
)


def hostile_images(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of `count` files, of each kind in turn; the same seed gives the same ones."""
    for number in range(count):
        make = KINDS[number % len(KINDS)]
        yield f"{make.__name__} {number}", make(Random(f"{seed} {number}"))


# ---- trying them ----


@dataclass
class Trial:
    """What became of one image: `outcome` is pixels, a reason, or what must not be."""

    name: str
    file_bytes: int
    outcome: str
    seconds: float
    memory: int

    @property
    def passed(self) -> bool:
        from pipeline.errors import BAD_IMAGE

        is_answered = self.outcome in ("pixels", *BAD_IMAGE)
        return is_answered and self.seconds <= MOST_SECONDS and self.memory <= MOST_MEMORY

    def line(self) -> str:
        return (
            f"{'ok  ' if self.passed else 'FAIL'} {self.seconds:6.2f} s {self.memory >> 20:5d} MB "
            f"{self.file_bytes / 1e6:7.2f} MB file  {self.outcome:12} {self.name}"
        )


def attempt(name: str, data: bytes) -> Trial:
    """Decode and shape `data` in a child; its time is its own CPU time, so that a loaded machine does not count."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        size = len(data)
        del data
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            _child(file.name, write)
        os.close(write)
        with os.fdopen(read) as said:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
            signal.alarm(PATIENCE)
            text = said.read()
            signal.alarm(0)
        os.waitpid(child, 0)
    outcome, seconds, memory = json.loads(text) if text else ("no answer", float(PATIENCE), 0)
    return Trial(name, size, outcome, seconds, memory)


def _child(path: str, say: int) -> None:
    from pipeline.config import Recipe
    from pipeline.images.loading import load
    from pipeline.images.preprocess import make_preprocess
    from pipeline.images.transform import InputTransform
    from pipeline.sources import FileImage, Record

    try:
        transform = InputTransform(resize=(256, 256), crop=(224, 224))
        recipe = Recipe.plain(
            base="b", weights="0", layers=("l",), pool="none", transform=transform.describe(), pixels=1
        )
        before, started = _peak_memory(), time.process_time()
        (loaded,) = next(load([Record(0, "image", FileImage(path), "")], make_preprocess(recipe, transform), workers=1))
        outcome = "pixels" if loaded.error is None else loaded.error.reason
        os.write(say, json.dumps([outcome, time.process_time() - started, _peak_memory() - before]).encode())
    finally:
        os._exit(0)  # without a word where anything else was raised


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", nargs="+", help="only these kinds")
    options = parser.parse_args()
    import pipeline.images.loading
    import pipeline.images.preprocess  # noqa: F401 (so that no child has to)

    trials = []
    for name, data in hostile_images(options.count, options.seed):
        if options.kind is None or name.split()[0] in options.kind:
            trials.append(attempt(name, data))
            print(trials[-1].line(), flush=True)
    print(f"{len(trials)} images: {dict(Counter(trial.outcome for trial in trials).most_common())}")
    print(
        f"longest {max(t.seconds for t in trials):.2f} s, most {max(t.memory for t in trials) >> 20} MB over baseline"
    )
    return 0 if all(trial.passed for trial in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
