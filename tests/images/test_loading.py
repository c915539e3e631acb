"""Tests of loading: order, bad images, duplicates, bounded memory, and ends that are not the end."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import write_photos

from pipeline.devices import CoreThreads
from pipeline.errors import ImageError
from pipeline.images import decoding
from pipeline.images.loading import BATCHES_AHEAD, Loaded, Timings, load
from pipeline.sources import Manifest, read_manifest


def preprocess(data: bytes, sha256: bytes) -> NDArray[np.uint8]:
    return np.asarray(decoding.decode(data).resize((8, 8)))[None]


@pytest.fixture
def photos(tmp_path: Path) -> Manifest:
    """Twenty photos; 5 is text, 9 is empty, 13 is gone once it is listed, 17 is a copy of 2."""
    folder = tmp_path / "photos"
    write_photos(folder, 20)
    files = sorted(folder.iterdir())
    files[5].write_text("not an image")
    files[9].write_bytes(b"")
    files[17].write_bytes(files[2].read_bytes())
    manifest = read_manifest(folder)
    files[13].unlink()
    return manifest


def flat(batches: list[list[Loaded]]) -> list[Loaded]:
    return [loaded for batch in batches for loaded in batch]


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [1, 6, 50])
def test_every_record_comes_once_in_order_and_bad_ones_say_why(photos: Manifest, workers: int, batch_size: int) -> None:
    batches = list(load(photos.records, preprocess, batch_size=batch_size, workers=workers))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    loaded = flat(batches)
    assert [entry.index for entry in loaded] == list(range(20))
    errors = {entry.index: entry.error.reason for entry in loaded if entry.error}
    assert errors == {5: "not-an-image", 9: "empty", 13: "missing"}
    for entry in loaded:
        if entry.error is None:
            data = Path(photos.records[entry.index].image.where).read_bytes()
            assert entry.sha256 == hashlib.sha256(data).digest()
            assert entry.size == len(data)
            np.testing.assert_array_equal(entry.pixels, preprocess(data, b""))
        else:
            assert entry.pixels is None


def test_nothing_to_load() -> None:
    assert list(load([], preprocess)) == []


def test_known_content_is_not_decoded(photos: Manifest) -> None:
    met: set[bytes] = set()
    lock = threading.Lock()

    def seen(sha256: bytes) -> bool:
        with lock:
            known = sha256 in met
            met.add(sha256)
            return known

    loaded = flat(list(load(photos.records, preprocess, seen=seen, workers=1)))
    (copy,) = [entry for entry in loaded if entry.duplicate]
    assert copy.index == 17
    assert copy.pixels is None
    assert copy.error is None
    assert copy.sha256 == loaded[2].sha256


def test_only_some_batches_are_loaded_ahead(photos: Manifest) -> None:
    started: Counter[bytes] = Counter()

    def count(data: bytes, sha256: bytes) -> NDArray[np.uint8]:
        started[sha256] += 1
        return preprocess(data, sha256)

    good = [record for record in photos.records if record.index not in (5, 9, 13, 17)]
    batches = load(good, count, batch_size=2)
    next(batches)
    time.sleep(0.2)
    assert started.total() <= 2 * (1 + BATCHES_AHEAD)
    batches.close()


def test_a_mistake_of_ours_is_an_error_and_no_hang(photos: Manifest) -> None:
    def broken(data: bytes, sha256: bytes) -> NDArray[np.uint8]:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError, match="ours"):
        list(load(photos.records, broken, batch_size=4))


def test_leaving_early_leaves_the_shared_threads_usable(photos: Manifest) -> None:
    with CoreThreads(2) as threads:
        for _ in load(photos.records, preprocess, batch_size=3, threads=threads):
            break
        assert list(threads.map(abs, [-1, -2])) == [1, 2]


def test_errors_of_shaping_belong_to_the_image(photos: Manifest) -> None:
    def picky(data: bytes, sha256: bytes) -> NDArray[np.uint8]:
        raise ImageError("corrupt", "for the test")

    assert {entry.error.reason for entry in flat(list(load(photos.records[:4], picky))) if entry.error} == {"corrupt"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "unreadable"),
        (OverflowError("signed integer is greater than maximum"), "corrupt"),
        (ValueError("height and width must be > 0"), "corrupt"),
        (RecursionError("too deep"), "corrupt"),
        (OSError("broken data stream"), "corrupt"),
    ],
)
def test_what_goes_wrong_with_one_image_does_not_end_the_run(photos: Manifest, error: Exception, reason: str) -> None:
    def failing(data: bytes, sha256: bytes) -> NDArray[np.uint8]:
        raise error

    found = flat(list(load(photos.records[:4], failing)))
    assert [entry.error.reason for entry in found if entry.error] == [reason] * 4
    assert all(entry.sha256 is not None for entry in found)


def test_timings_tell_where_the_time_went(photos: Manifest) -> None:
    def slow(data: bytes, sha256: bytes) -> NDArray[np.uint8]:
        time.sleep(0.02)
        return np.zeros((1, 8, 8, 3), np.uint8)

    timings = Timings()
    list(load(photos.records, slow, batch_size=4, workers=2, timings=timings))
    assert 19 * 0.02 / 2 <= timings.decode < 1.0
    assert timings.wait > 0.05
    assert timings.read < timings.decode


def test_ctrl_c_ends_a_program_that_is_loading(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 40)
    program = f"""
import os, signal, threading, time
import numpy as np
from pipeline.images.loading import load
from pipeline.sources import read_manifest

def slow(data, sha256):
    time.sleep(0.05)
    return np.zeros((1, 2, 2, 3), np.uint8)

threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    for batch in load(read_manifest({str(tmp_path / "photos")!r}).records * 100, slow, batch_size=4):
        pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout.strip() == "interrupted"
    assert run.stderr == ""
    assert run.returncode == 0


def test_a_missing_decoder_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for number in range(5):
        (tmp_path / f"{number}.heic").write_bytes(b"\0\0\0\x10ftypheic" + bytes(4))
    loaded = flat(list(load(read_manifest(tmp_path).records, preprocess, batch_size=2)))
    assert [image.error and image.error.reason for image in loaded] == ["unreadable"] * 5
    assert caplog.text.count("pip install 'cached-feature-pipeline[heif]'") == 1
