"""Open damaged and hostile feature files until one does something that it must not.

Opening and reading may give the values that were written, or raise `StoreDamagedError`. They must not raise
anything else, return other values without an error, crash, or take more than `MOST_SECONDS` or `MOST_MEMORY`
beside the interpreter. After most mutations the checksums are made right, so that the checks behind them are
met: then other values may come, but they must fit together. The corpus holds headers that a mistake let in once.

    python tests/fuzz/fuzz_store.py --seconds 300 --seed 1
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cheap import everything, extract, manifest_of, write_images  # noqa: E402

from pipeline.commands.verify import verify  # noqa: E402
from pipeline.errors import StoreDamagedError  # noqa: E402
from pipeline.store.header import MAGIC, parse_header  # noqa: E402

CORPUS = Path(__file__).parent / "corpus_store"
MOST_MEMORY = 150 * 2**20
MOST_SECONDS = 5.0

_NUMBERS = (
    0,
    1,
    -1,
    2,
    39,
    40,
    41,
    255,
    4096,
    2**31,
    2**32,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    1.5,
    float("inf"),
    float("nan"),
)
_THINGS = (None, True, [], {}, "", "x", "\0", "\ud800", [[]], "|S0", "|S8", "<f4", "<f8", "|O", "features/", "status")


class Finding(Exception):
    """Something that a reader must not do."""


def make_seed_file(folder: Path) -> bytes:
    """A small feature file."""
    write_images(folder / "images", 20)
    extract(manifest_of(folder / "images"), folder / "seed.h5")
    return (folder / "seed.h5").read_bytes()


def split_header(content: bytes) -> tuple[bytes, bytes]:
    """The header's JSON, and everything behind the header."""
    line = MAGIC.match(content)
    assert line
    size = int(line[1])
    return content[line.end() : size].rstrip(b"\0"), content[size:]


def join_header(text: bytes, rest: bytes, *, size: int = 0) -> bytes:
    """A file with this header, and a right checksum over it."""
    size = size or max(4096, len(text) + 64)
    line_length = len(b"pipeline-features 1 header=%d crc32=%08x\n" % (size, 0))
    body = text.ljust(size - line_length, b"\0")
    return b"pipeline-features 1 header=%d crc32=%08x\n" % (size, zlib.crc32(body)) + body + rest


def attempt(path: Path, content: bytes, expected: dict[str, Any] | None, *, thorough: bool = False) -> str:
    """Read a file once: ``damaged``, ``as written`` or ``other``; raises `Finding`.

    Damaged files are verified too, the others only when `thorough`: HDF5 reads those, in a process of its own.
    """
    path.write_bytes(content)
    start = time.perf_counter()
    try:
        found = everything(path)
    except StoreDamagedError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise Finding(f"a message of more than one line: {error!r}") from error
        outcome = "damaged"
    except Exception as error:
        raise Finding(f"raises {type(error).__name__}: {error}") from error
    else:
        outcome = "as written" if found == expected else "other"
        if len(found["ids"]) != len(found["reasons"]) or (expected is not None and outcome == "other"):
            raise Finding("values that nobody wrote")
    if (outcome == "damaged" or thorough) and verify_says_ok(path) and outcome == "damaged":
        raise Finding("verify sees nothing wrong")
    if time.perf_counter() - start > MOST_SECONDS:
        raise Finding(f"takes {time.perf_counter() - start:.1f} s")
    return outcome


def verify_says_ok(path: Path) -> bool:
    """What `verify` thinks, which hands even a forged structure to HDF5; nothing may be raised."""
    try:
        return verify(path).ok
    except Exception as error:
        raise Finding(f"verify raises {type(error).__name__}: {error}") from error


# --- mutations


def mutate_bytes(content: bytes, dice: random.Random) -> bytes:
    """Some bytes changed, moved, cut or added, anywhere."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 8))):
        start = dice.randrange(len(changed))
        length = dice.choice((1, 2, 4, 8, 64, 512, 4096))
        kind = dice.randrange(5)
        if kind == 0:
            changed[start] ^= 1 << dice.randrange(8)
        elif kind == 1:
            changed[start : start + length] = dice.randbytes(len(changed[start : start + length]))
        elif kind == 2:
            source = dice.randrange(len(changed))
            changed[start : start + length] = changed[source : source + length]
        elif kind == 3:
            del changed[start : start + length]
        else:
            changed[start:start] = bytes(length)
        if not changed:
            return b""
    return bytes(changed)


def mutate_header(content: bytes, dice: random.Random) -> bytes:
    """Some values of the header changed, with a right checksum."""
    text, rest = split_header(content)
    fields = json.loads(text)
    for _ in range(dice.choice((1, 1, 2, 3))):
        _mutate_value(fields, dice)
    return join_header(json.dumps(fields).encode(), rest, size=_header_size(content, dice))


def mutate_text(content: bytes, dice: random.Random) -> bytes:
    """Some bytes of the header changed, with a right checksum."""
    text, rest = split_header(content)
    return join_header(mutate_bytes(text, dice), rest, size=_header_size(content, dice))


def mutate_structure(content: bytes, dice: random.Random) -> bytes:
    """Some bytes of what HDF5 keeps for itself, with a right checksum: only `verify` looks at them."""
    text, _ = split_header(content)
    fields, changed = json.loads(text), bytearray(content)
    line = MAGIC.match(content)
    assert line
    size = int(line[1])
    header = parse_header(content[:size], where="seed", file_size=len(content))
    for _ in range(dice.choice((1, 2, 16))):
        start, stop = dice.choice(header.structure(size))
        changed[dice.randrange(start, stop)] = dice.randrange(256)
    crc = 0
    for start, stop in header.structure(size):
        crc = zlib.crc32(changed[start:stop], crc)
    fields["structure_crc32"] = crc
    return join_header(json.dumps(fields).encode(), bytes(changed[size:]), size=size)


def _header_size(content: bytes, dice: random.Random) -> int:
    _, rest = split_header(content)
    return len(content) - len(rest) if dice.random() < 0.9 else 0


def _mutate_value(fields: dict[str, Any], dice: random.Random) -> None:
    """Change, remove or copy one value, at any depth."""
    place: Any = fields
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = dice.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and dice.random() < 0.85:
            place = place[key]
            continue
        break
    kind = dice.randrange(5)
    if kind == 0:
        del place[key]
    elif kind == 1 and isinstance(place, dict):
        place[dice.choice((*map(str, _THINGS), key + "x"))] = place[key]
    elif kind == 2 and isinstance(place[key], int):
        place[key] += dice.choice((-1, 1, 8, -8, 4096, 2**40))
    else:
        place[key] = dice.choice((*_NUMBERS, *_THINGS, *keys))


MUTATIONS: dict[str, tuple[Callable[[bytes, random.Random], bytes], bool]] = {
    "bytes": (mutate_bytes, True),
    "header": (mutate_header, False),
    "text": (mutate_text, False),
    "structure": (mutate_structure, True),
}


def fuzz(*, seed: int, count: int | None = None, seconds: float | None = None) -> Counter[str]:
    """Try files until `count` or `seconds` are over; what came of them. Raises `Finding` with the seed of the file."""
    outcomes: Counter[str] = Counter()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content, path = make_seed_file(folder), folder / "F.h5"
        expected = everything(folder / "seed.h5")
        while outcomes.total() != count and (seconds is None or time.monotonic() - started < seconds):
            number = outcomes.total()
            dice = random.Random(f"{seed}/{number}")
            kind = dice.choices(list(MUTATIONS), weights=(4, 4, 2, 1))[0]
            mutate, must_notice = MUTATIONS[kind]
            try:
                changed, thorough = mutate(content, dice), dice.random() < 0.02
                outcome = attempt(path, changed, expected if must_notice else None, thorough=thorough)
            except Finding as finding:
                (Path.cwd() / f"finding-{seed}-{number}.h5").write_bytes(path.read_bytes())
                raise Finding(f"seed {seed}, file {number} ({kind}): {finding}") from finding
            outcomes[f"{kind}: {outcome}"] += 1
    return outcomes


def read_corpus() -> dict[str, bytes]:
    """The headers of the corpus by name."""
    return {path.name: path.read_bytes() for path in sorted(CORPUS.iterdir())}


def main() -> None:
    """Fuzz for some time, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    outcomes = fuzz(seed=options.seed, seconds=options.seconds)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(f"{outcomes.total()} files, {grown / 2**20:.0f} MB more memory at most")
    for outcome, number in sorted(outcomes.items()):
        print(f"{number:8} {outcome}")
    if grown > MOST_MEMORY:
        raise Finding(f"needs {grown / 2**20:.0f} MB")


if __name__ == "__main__":
    main()
