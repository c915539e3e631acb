"""Datasets of torchvision, and what they share between their images."""

from __future__ import annotations

import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from listing import ids, labels, listed, make_torchvision, refusal

from pipeline.images.decoding import decode


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


def test_both_splits_of_a_torchvision_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    source = make_torchvision(tmp_path)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    manifest = listed(source)
    assert ids(manifest) == ["test/0", "test/1", *(f"train/{number:02}" for number in range(10))]
    assert [record.split for record in manifest.records] == ["test"] * 2 + ["train"] * 10
    assert labels(manifest)[:3] == ["airplane", "automobile", "airplane"]
    expected = np.asarray(datasets.CIFAR10(tmp_path, train=False)[1][0])
    assert np.array_equal(np.asarray(decode(manifest.records[1].image.read(10**6))), expected)
    assert len(listed(source + "&train=false")) == 2


def test_a_dataset_of_fake_images_has_no_root() -> None:
    manifest = listed("torchvision:FakeData?size=3&num_classes=2")
    assert ids(manifest) == ["0", "1", "2"]
    assert decode(manifest.records[2].image.read(10**6)).size == (224, 224)
    assert "class" in manifest.targets


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:CIFAR11?root=.", "torchvision has no dataset 'CIFAR11' (did you mean 'CIFAR10'?)"),
        ("torchvision:CIFAR10", "say where its files are, torchvision:CIFAR10?root=DIR"),
        ("torchvision:CIFAR10?rot=.", "CIFAR10 has no option 'rot' (did you mean 'root'?)"),
    ],
)
def test_datasets_that_are_refused(source: str, message: str) -> None:
    assert message in refusal(source)


def test_a_dataset_that_is_not_there(tmp_path: Path) -> None:
    assert "Dataset not found or corrupted" in refusal(f"torchvision:CIFAR10?root={tmp_path}")
    assert "torchvision:DTD" in refusal(f"torchvision:DTD?root={tmp_path}")
