"""Calibration of a base for int8: images of a source, the ranges of activations on some, the drift on others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Calibration, ExtractSettings, Recipe
from pipeline.devices import CoreThreads
from pipeline.engines import graph_of
from pipeline.engines.batch_size import Features, Pixels
from pipeline.engines.onnx_runner import run, session
from pipeline.engines.openvino_runner import MISSING, OpenvinoRunner, is_installed
from pipeline.engines.quantization import measure_ranges
from pipeline.errors import EngineError, ImageError
from pipeline.images.decoding import Limits
from pipeline.images.loading import load
from pipeline.images.preprocess import make_preprocess
from pipeline.images.transform import InputTransform
from pipeline.sources import Record

if TYPE_CHECKING:
    from pipeline.bases import Base

#: Images that ranges are measured on, and as many others for the drift.
#: Sixteen lose as little as 64, eight sometimes more.
IMAGES = 16
#: Images of a source whose content is looked at: those of a larger one that their ids choose.
CANDIDATES = 1024
#: Least cosine to the features in single precision, in the mean of the images and of any one.
LEAST_MEAN, LEAST = 0.98, 0.9
BATCH = 4


@dataclass(frozen=True)
class Drift:
    """Cosine of features in 8 bits to those in single precision: its mean and least over `images`, of any layer."""

    images: int
    mean: float
    least: float


def calibrate(
    base: Base | Callable[[], Base], recipe: Recipe, records: Sequence[Record], settings: ExtractSettings
) -> tuple[Calibration, Drift]:
    """Measure ranges and drift for `recipe` on images of `records`, by their content and in no order of theirs.

    Raises `EngineError` where OpenVINO is missing, where fewer than two images are good, where the base has no graph,
    or where too much is lost.
    """
    if not is_installed():
        raise EngineError(f"--precision int8 runs in OpenVINO: {MISSING}")
    with CoreThreads(settings.workers) as threads:
        pixels = _pixels(records, recipe, settings, threads)
        if len(pixels) < 2:
            raise EngineError("--precision int8 needs two good images or more, to measure ranges on; use fp32")
        shown, others = pixels[: len(pixels) // 2], pixels[len(pixels) // 2 :]
        graph = graph_of(base, recipe)
        ranges = measure_ranges(graph, _batches(shown), threads=threads.count)
        found = Calibration(images=len(shown), layers=recipe.layers, ranges=ranges)
        smaller = graph_of(base, recipe.model_copy(update={"calibration": found}))
        drift = _drift(graph, smaller, others, threads)
    if drift.mean < LEAST_MEAN or drift.least < LEAST:
        raise EngineError(
            f"{recipe.base} loses too much in int8: cosine to fp32 {drift.mean:.4f} in the mean and {drift.least:.4f}"
            f" at the least of {drift.images} images, {LEAST_MEAN} and {LEAST} are wanted; use --precision bf16 or fp32"
        )
    return found, drift


def _pixels(records: Sequence[Record], recipe: Recipe, settings: ExtractSettings, threads: CoreThreads) -> Pixels:
    """Decode up to twice `IMAGES` good images (n, H, W, 3), of different content, in the order of their sha256."""
    by_id = sorted(records, key=lambda record: hashlib.sha256(record.id.encode(errors="surrogateescape")).digest())
    candidates = by_id[:CANDIDATES]
    contents = dict(zip(threads.map(_content, candidates), candidates, strict=True))
    chosen = [contents[digest] for digest in sorted(digest for digest in contents if digest is not None)]
    plain = recipe.model_copy(update={"views": 0, "augment": (), "seed": None})
    preprocess = make_preprocess(
        plain, InputTransform.from_description(plain.transform), max_pixels=settings.max_pixels
    )
    batches = load(chosen, preprocess, threads=threads)
    good = (image.pixels[0] for batch in batches for image in batch if image.pixels is not None)
    found = list(islice(good, 2 * IMAGES))
    batches.close()
    return np.stack(found) if found else np.empty((0, 0, 0, 3), np.uint8)


def _content(record: Record) -> bytes | None:
    try:
        return hashlib.sha256(record.image.read(Limits().max_bytes)).digest()
    except ImageError:
        return None


def _batches(pixels: Pixels) -> Iterator[Pixels]:
    return (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))


def _drift(graph: bytes, smaller: bytes, pixels: Pixels, threads: CoreThreads) -> Drift:
    plain, runner = session(graph, threads=1), OpenvinoRunner(smaller, cores=threads.count, precision="int8")
    cosines = threads.map(lambda batch: _cosines(run(plain, batch), runner.on_one_core(batch)), _batches(pixels))
    each = np.concatenate(list(cosines), axis=1)
    return Drift(len(pixels), mean=float(each.mean(axis=1).min()), least=float(each.min()))


def _cosines(wanted: Features, given: Features) -> NDArray[np.float64]:
    """Return the cosine (layers, B) of each image's features in each layer."""
    pairs = [
        (one.reshape(len(one), -1).astype(float), other.reshape(len(one), -1).astype(float))
        for one, other in zip(wanted, given, strict=True)
    ]
    tiny = np.finfo(float).tiny
    return np.array(
        [
            (one * other).sum(1) / np.maximum(np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1), tiny)
            for one, other in pairs
        ]
    )
