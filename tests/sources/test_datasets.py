"""Datasets that share something between their images."""

from __future__ import annotations

import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor

from listing import listed


def test_images_that_share_random_numbers_are_the_same_for_any_threads() -> None:
    records = listed("torchvision:FakeData?size=40").records
    alone = [hashlib.sha256(record.image.read(10**7)).digest() for record in records]
    assert len(set(alone)) == 40
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            together = threads.map(lambda record: hashlib.sha256(record.image.read(10**7)).digest(), records)
            assert list(together) == alone


def test_they_can_be_sent_to_another_process() -> None:
    record = listed("torchvision:FakeData?size=2").records[1]
    assert pickle.loads(pickle.dumps(record)).image.read(10**7) == record.image.read(10**7)  # noqa: S301 (our own)
