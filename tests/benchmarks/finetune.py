"""Seconds an epoch of fine-tuning against the PyTorch tutorial's loop: same photos, weights, steps and views.

    python tests/benchmarks/finetune.py PHOTOS [--rounds 3]
    python tests/benchmarks/finetune.py PHOTOS --cut [--rounds 3]

PHOTOS holds train/ and val/ with class folders. Epochs of both are taken in turn, so that a machine that slows down
slows both. What is trained: all of SqueezeNet, or its last two fire modules.

With --cut, epochs with what is frozen computed once, against epochs that compute it, at batches of 4 and of 32, without
random views; and both runs as a whole, reading and the computing included, of ten epochs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import datasets, transforms

from pipeline.bases import load_base
from pipeline.commands.finetune import FinetuneResult, finetune

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CHOICES = {"last two fire modules": ("features.11", "features.12"), "all": ("all",)}


def tutorial(photos: Path, train: tuple[str, ...], *, workers: int) -> Iterator[float]:
    """Seconds of one epoch after the other, as in "Transfer Learning for Computer Vision"."""
    views = {
        "train": [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()],
        "val": [transforms.Resize(256), transforms.CenterCrop(224)],
    }
    tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    loaders = {
        part: torch.utils.data.DataLoader(
            datasets.ImageFolder(str(photos / part), transforms.Compose([*views[part], *tensor])),
            batch_size=4,
            shuffle=True,
            num_workers=workers,
        )
        for part in views
    }
    features = load_base("squeezenet1_1", "embedded").module.features
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 2))
    for name, parameter in features.named_parameters():
        parameter.requires_grad_("all" in train or f"features.{name.split('.')[0]}" in train)
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=0.0001, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    while True:
        started = time.perf_counter()
        for part, loader in loaders.items():
            model.train(part == "train")
            right = 0
            for inputs, labels in loader:
                optimizer.zero_grad()
                with torch.set_grad_enabled(part == "train"):
                    outputs = model(inputs)
                    loss = criterion(outputs, labels)
                    if part == "train":
                        loss.backward()
                        optimizer.step()
                right += int((outputs.argmax(1) == labels).sum())
        yield time.perf_counter() - started


def ours(photos: Path, train: tuple[str, ...]) -> tuple[float, float]:
    """Seconds of one epoch, and of everything around it: reading, standardising, measuring, saving."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result = finetune(
            photos,
            Path(folder) / "model",
            base="squeezenet1_1",
            weights="embedded",
            recipe="tutorial",
            train=train,
            lr=0.0001,
            epochs=1,
        )
        epoch = result.epochs[1].seconds
        return epoch, time.perf_counter() - started - epoch


#: Base, its weights, and what is trained of it.
CUTS = [
    ("squeezenet1_1", "embedded", ("features.11", "features.12")),
    ("resnet18", "none", ("layer4",)),
]


def tune(photos: Path, base: tuple[str, str, tuple[str, ...]], **options: Any) -> tuple[float, FinetuneResult]:
    """Seconds of a whole run, and its result."""
    name, weights, train = base
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result = finetune(
            photos,
            Path(folder) / "model",
            base=name,
            weights=weights,
            recipe="tutorial",
            train=train,
            lr=0.0001,
            augment=("none",),
            **options,
        )
        return time.perf_counter() - started, result


def cuts(photos: Path, rounds: int) -> None:
    """Print a line for each base and size of batch."""
    for base, batch_size in itertools.product(CUTS, (4, 32)):
        pairs = []
        with tempfile.TemporaryDirectory() as folder:
            os.environ["PIPELINE_CACHE"] = folder  # nothing is there in the first round
            for number in range(rounds):
                options = {"batch_size": batch_size, "epochs": 1 if number else 10}
                plain, kept = (tune(photos, base, cache=how, **options) for how in ("never", "always"))
                pairs.append((plain, kept))
        ratios = sorted(
            statistics.median(one.seconds for one in plain.epochs[1:])
            / statistics.median(one.seconds for one in kept.epochs[1:])
            for (_, plain), (_, kept) in pairs
        )
        (whole, plain), (whole_kept, kept) = pairs[0]
        off = max(
            abs(one.val["loss"] - other.val["loss"]) for one, other in zip(plain.epochs, kept.epochs, strict=True)
        )
        print(
            f"{base[0]}, {'+'.join(base[2])}, batch {batch_size}: an epoch {statistics.median(ratios):.2f} x faster "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}); ten epochs from nothing {whole:.1f} s, cached {whole_kept:.1f} s "
            f"({whole / whole_kept:.2f} x); largest difference of a validation loss {off:.1e}",
            flush=True,
        )


def main() -> None:
    """Print a line for each choice of what is trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of the tutorial's DataLoader")
    parser.add_argument("--cut", action="store_true", help="with what is frozen computed once, against without")
    given = parser.parse_args()
    if given.cut:
        cuts(given.photos, given.rounds)
        return
    for name, train in CHOICES.items():
        epochs = tutorial(given.photos, train, workers=given.workers)
        pairs = [(next(epochs), *ours(given.photos, train)) for _ in range(given.rounds)]
        theirs, mine, around = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = sorted(pair[0] / pair[1] for pair in pairs)
        print(
            f"{name}: tutorial {theirs:.1f} s an epoch, pipeline {mine:.1f} s (once: {around:.1f} s), "
            f"{statistics.median(ratios):.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
