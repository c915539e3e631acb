"""Feed damaged images to `pipeline.images.decoding.decode` until it does something that it must not.

It may return an RGB image or raise `ImageError`. It must not raise anything else, crash the process, take
more than `MOST_SECONDS` or need more than `MOST_MEMORY` beside the interpreter. The corpus beside this file
holds one small file of every kind, and every file that was once a finding.

    python tests/fuzz/fuzz_pixels.py --seconds 300 --seed 1
    python tests/fuzz/fuzz_pixels.py --replay FILE...
"""

from __future__ import annotations

import argparse
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.errors import ImageError  # noqa: E402
from pipeline.images.decoding import Limits, decode  # noqa: E402

CORPUS = Path(__file__).parent / "corpus"
LIMITS = Limits(max_bytes=10**6, max_pixels=10**6)
MOST_MEMORY = 150 * 2**20
MOST_SECONDS = 5.0

_EDGES = (0, 1, 2, 7, 8, 16, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)


class Finding(Exception):
    """Something that `decode` must not do."""


def read_corpus() -> dict[str, bytes]:
    """The files of the corpus by name, always in the same order."""
    return {path.name: path.read_bytes() for path in sorted(CORPUS.iterdir())}


def attempt(data: bytes, *, at_least: tuple[int, int] | None = None) -> str:
    """Decode once: ``pixels``, or the reason of the error; raises `Finding`."""
    start = time.perf_counter()
    try:
        image = decode(data, LIMITS, at_least=at_least)
    except ImageError as error:
        if "\n" in str(error) or len(str(error)) > 1000:
            raise Finding(f"a message of more than one line: {error!r}") from error
        outcome = error.reason
    except Exception as error:
        raise Finding(f"raises {type(error).__name__}: {error}") from error
    else:
        if image.mode != "RGB" or len(image.tobytes()) != 3 * image.width * image.height:
            raise Finding(f"an image of mode {image.mode} and size {image.size}")
        outcome = "pixels"
    if time.perf_counter() - start > MOST_SECONDS:
        raise Finding(f"takes {time.perf_counter() - start:.1f} s")
    return outcome


# ---- mutations: each changes `data` in place ----


def flip_bits(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    for _ in range(random.randint(1, 8)):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def set_bytes(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    for _ in range(random.randint(1, 4)):
        data[random.randrange(len(data))] = random.choice((0, 1, 127, 128, 255, random.randrange(256)))


def set_number(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    """An edge value of 2 or 4 bytes of either order: lengths, offsets, sizes."""
    form = random.choice(("<H", ">H", "<I", ">I"))
    size = struct.calcsize(form)
    if len(data) > size:
        # Headers come first in every format but TIFF: aim there twice in three times.
        reach = min(len(data), 80) if random.random() < 0.6 else len(data)
        value = random.choice(_EDGES) & (256**size - 1)
        struct.pack_into(form, data, random.randrange(max(1, reach - size)), value)


def cut(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    del data[random.randrange(len(data)) :]


def remove_block(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    at = random.randrange(len(data))
    del data[at : at + random.randint(1, 64)]


def repeat_block(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    at = random.randrange(len(data))
    data[at:at] = data[at : at + random.randint(1, 64)] * random.randint(1, 8)


def splice(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    other = random.choice(others)
    at = random.randrange(len(other))
    data[random.randrange(len(data)) :] = other[at:]


def insert_noise(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    at = random.randrange(len(data))
    data[at:at] = random.randbytes(random.randint(1, 32))


Mutation = Callable[[bytearray, Random, Sequence[bytes]], None]
MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    set_bytes,
    set_number,
    cut,
    remove_block,
    repeat_block,
    splice,
    insert_noise,
)


def with_checksums(data: bytes) -> bytes:
    """The same PNG with right checksums, so that damage gets past the first door."""
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out + data[at:])


def mutants(seed: int, corpus: Sequence[bytes]) -> Iterator[bytes]:
    """Damaged files without end; the same seed gives the same ones."""
    random = Random(seed)
    whole = [data for data in corpus if data]
    while True:
        data = bytearray(random.choice(whole))
        for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
            if data:
                random.choice(MUTATIONS)(data, random, whole)
        mutant = bytes(data)
        yield with_checksums(mutant) if mutant.startswith(b"\x89PNG") and random.random() < 0.8 else mutant


# ---- running ----


def fuzz(seed: int, *, count: int = 0, seconds: float = 0, scratch: Path | None = None) -> Counter[str]:
    """Try `count` mutants, or as many as `seconds` allow; the mutant under trial is kept in `scratch`."""
    outcomes: Counter[str] = Counter()
    started, before = time.monotonic(), _peak_memory()
    for number, data in enumerate(mutants(seed, list(read_corpus().values()))):
        if number >= count and time.monotonic() - started >= seconds:
            return outcomes
        if scratch is not None:
            scratch.write_bytes(data)
        outcomes[attempt(data, at_least=(8, 8) if number % 4 == 0 else None)] += 1
        if _peak_memory() - before > MOST_MEMORY:
            raise Finding(f"needs {(_peak_memory() - before) >> 20} MB")
    raise AssertionError("mutants never end")


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=Path, nargs="+", default=[])
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for path in options.replay:
        print(path, attempt(path.read_bytes()))
    if options.replay:
        return 0
    if options.scratch:  # the process that may crash
        print(json.dumps(fuzz(options.seed, seconds=options.seconds, scratch=options.scratch)))
        return 0
    return _watch(options.seed, options.seconds)


def _watch(seed: int, seconds: float) -> int:
    """Fuzz in a process of its own, whose last mutant outlives it."""
    scratch = Path(tempfile.mkdtemp()) / "mutant"
    again = [sys.executable, __file__, f"--seconds={seconds}", f"--seed={seed}", f"--scratch={scratch}"]
    done = subprocess.run(again, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        outcomes: Counter[str] = Counter(json.loads(done.stdout))
        print(f"{outcomes.total()} mutants, no finding: {dict(outcomes.most_common())}")
        return 0
    print(done.stderr[-3000:], f"exit status {done.returncode}; the file is {scratch}", sep="\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
