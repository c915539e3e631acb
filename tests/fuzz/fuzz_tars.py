"""List damaged and hostile tars until one does something that it must not.

Listing and reading may give images or raise `PipelineError`. They must not raise anything else, take more than
`MOST_SECONDS`, or more than `MOST_MEMORY` beside the interpreter. After most mutations the checksum of the header
is made right, so that what is behind it is met.

    python tests/fuzz/fuzz_tars.py --seconds 300 --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import resource
import signal
import sys
import tarfile
import tempfile
import time
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from pipeline.errors import PipelineError  # noqa: E402
from pipeline.sources import read_manifest  # noqa: E402

MOST_SECONDS = 5.0
MOST_MEMORY = 100 * 2**20
BLOCK = 512

_FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
_KINDS = b"01234567LKSxgXDVMNAZ\0\xff"
_SIZES = (0, 1, 511, 513, 2**33, 2**63, 2**64, 2**80, 2**95 - 1, -1, -512, -(2**80))
_RECORDS = (b"path=b.jpg", b"size=5", b"size=-5", b"size=1e9", b"size=" + b"9" * 40, b"path=", b"path=/a.jpg")
_RECORDS += (b"GNU.sparse.map=0,1", b"GNU.sparse.size=9", b"GNU.sparse.major=1", b"path=a\0.jpg", b"path=../a.jpg")
_RECORDS += (b"=", b"hdrcharset=BINARY", b"path=\xff.jpg", b"comment=" + b"1" * 3000)


class Hang(BaseException):
    """The time is over."""


def make_tar(rng: random.Random) -> bytearray:
    """A tar with images, labels, folders and links, names long and short."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=rng.choice(_FORMATS)) as tar:
        for number in range(rng.randint(1, 5)):
            folder = rng.choice(("", "ants/", "x" * 98 + "/", "y" * 60 + "/", "é/"))
            for suffix, kind in ((".jpg", b"0"), (".cls", b"0"), (".json", b"0"), ("", b"5"), (".jpg", b"2")):
                info = tarfile.TarInfo(f"{folder}{number}{'l' if kind == b'2' else ''}{suffix}")
                data = {".jpg": rng.randbytes(600), ".cls": b"3", ".json": b'{"length": 2.5}'}.get(suffix, b"")
                info.type, info.size = kind, len(data) if kind == b"0" else 0
                if rng.random() < 0.7:
                    tar.addfile(info, io.BytesIO(data))
    return bytearray(buffer.getvalue())


def mutate(rng: random.Random, data: bytearray) -> str:
    """Change one thing in place, and say what kind of thing."""
    start = rng.randrange(max(1, len(data) // BLOCK)) * BLOCK
    kind = rng.choice(("size", "kind", "pax", "long name", "bytes", "cut", "twice", "sparse", "field"))
    if kind == "size":
        data[start + 124 : start + 136] = _size(rng, rng.choice((*_SIZES, rng.randrange(10**6))))
    elif kind == "kind":
        data[start + 156 : start + 157] = rng.choice(_KINDS).to_bytes(1, "big")
    elif kind == "pax":
        data[start:start] = _extension(rng.choice((b"x", b"g", b"X")), _records(rng)) * rng.choice((1, 1, 1, 2000))
    elif kind == "long name":
        name = rng.choice((b"c.jpg\0", b"d" * 5000 + b"\0", b"", b"../e.jpg", b"\xff\xfe.jpg"))
        data[start:start] = _extension(rng.choice((b"L", b"K")), name) * rng.choice((1, 1, 3000))
    elif kind == "bytes":
        for _ in range(rng.choice((1, 4, 40))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return kind
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
        return kind
    elif kind == "twice":
        data += bytes(data)
        return kind
    elif kind == "sparse":
        data[start + 156 : start + 157] = b"S"
        data[start + 482 : start + 483] = rng.choice((b"\0", b"\1", b"\xff"))
    else:
        at = start + rng.choice((0, 100, 124, 136, 148, 156, 157, 257, 329, 345, 482, 504))
        data[at : at + 8] = rng.choice((b"\xff" * 8, b"\x80" + b"\xff" * 7, bytes(8), b"-0000001", b"        "))
    if rng.random() < 0.9:
        _seal(data, start)
    return kind


def _size(rng: random.Random, number: int) -> bytes:
    if 0 <= number < 8**11 and rng.random() < 0.5:
        return b"%011o\0" % number
    return (number % 2**96 | (0 if number < 0 else 2**95)).to_bytes(12, "big")


def _records(rng: random.Random) -> bytes:
    return b"".join(_record(rng, rng.choice(_RECORDS)) for _ in range(rng.randint(1, 4)))


def _record(rng: random.Random, text: bytes) -> bytes:
    length = next(n for n in range(len(text), len(text) + 9) if len(b"%d %s\n" % (n, text)) == n)
    wrong = rng.choice((b"0", b"1", b"-7", b"1" * 4000, b"1" + b"0" * 20))
    return (b"%d" % length if rng.random() < 0.8 else wrong) + b" " + text + b"\n"


def _extension(kind: bytes, data: bytes) -> bytes:
    block = bytearray(b"name".ljust(124, b"\0") + b"%011o\0" % len(data) + bytes(20) + kind + bytes(100))
    block = (block + b"ustar\x0000").ljust(BLOCK, b"\0")
    _seal(block, 0)
    return bytes(block) + data + bytes(-len(data) % BLOCK)


def _seal(data: bytearray, start: int) -> None:
    if len(data) >= start + BLOCK:
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + BLOCK])


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `Hang` where the block takes longer."""

    def over(number: int, frame: types.FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(path: Path) -> str:
    """List a tar and read all its images; images or refused, or what must not be."""
    try:
        with time_limit(MOST_SECONDS):
            for record in read_manifest(path).records:
                record.image.stat()
                record.image.read(10**6)
    except PipelineError as error:
        return "not one line" if "\n" in str(error) else "refused"
    except Hang:
        return "HANG"
    except Exception as error:  # noqa: BLE001 (any other is what is looked for)
        return f"TRACEBACK {type(error).__name__}: {error}"
    return "images"


def fuzz(*, seed: int, count: int | None = None, seconds: float | None = None) -> Counter[str]:
    """How many mutated tars ended how; raises `AssertionError` for a memory that grows."""
    outcomes: Counter[str] = Counter()
    rng = random.Random(seed)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        while outcomes.total() < count if count is not None else time.monotonic() - started < (seconds or 0):
            data = make_tar(rng)
            kinds = [mutate(rng, data) for _ in range(rng.choice((1, 1, 2, 3))) if data]
            path.write_bytes(data)
            outcome = attempt(path)
            if outcome not in ("images", "refused"):
                print(f"seed {seed}, tar {outcomes.total()}: {outcome} ({', '.join(kinds)})", file=sys.stderr)
            outcomes[outcome] += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < MOST_MEMORY, f"memory grew by {grown} bytes"
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(dict(fuzz(seed=given.seed, seconds=given.seconds)))
