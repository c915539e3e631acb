"""Seconds an epoch of fine-tuning against the PyTorch tutorial's loop: same photos, weights, steps and views.

    python tests/benchmarks/finetune.py PHOTOS [--rounds 3]

PHOTOS holds train/ and val/ with class folders. Epochs of both are taken in turn, so that a machine that slows down
slows both. What is trained: all of SqueezeNet, or its last two fire modules.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torchvision import datasets, transforms

from pipeline.bases import load_base
from pipeline.commands.finetune import finetune

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
            train=train,
            lr=0.0001,
            epochs=1,
        )
        epoch = result.epochs[1].seconds
        return epoch, time.perf_counter() - started - epoch


def main() -> None:
    """Print a line for each choice of what is trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of the tutorial's DataLoader")
    given = parser.parse_args()
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
