"""A trained model as one ONNX file, from the pixels of an image to its answer, for any runtime and language.

Its inputs and outputs:

    image          uint8 (H, W, 3): RGB, any size; or ``pixels`` uint8 (B, height, width, 3), as the base sees them
    probabilities  float32 (1, C) or (B, C), in the order of the classes
    value          float64 (1,) or (B,), where a number is predicted
    half_width     float64 (1,) or (B,): value ± half_width is its prediction interval, where the model has one

The metadata has ``format``, ``format_version``, ``task``, ``target``, and as JSON ``classes``, ``recipe``, ``versions``
and ``set_least``, the least probability of a class in a prediction set; ``sha256`` is the graph's without its metadata.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import compose
from PIL import Image
from torch import Tensor, nn

from pipeline.bases import FeatureNetwork, feature_network
from pipeline.engines.onnx_graph import trace
from pipeline.engines.onnx_runner import session
from pipeline.errors import EngineError, ModelError
from pipeline.heads.modules import HeadModule
from pipeline.images.onnx_resize import preprocess_graph
from pipeline.models.exported import FORMAT, FORMAT_VERSION
from pipeline.models.model import Model
from pipeline.versions import versions

#: Largest difference of a probability, or of a number as a share of itself, between the graph and the model.
TOLERANCE = 1e-3
#: Sides of the images on which graph and model are compared: upright, lying, square, thin, small, large.
CHECKED = ((300, 400), (400, 300), (224, 224), (20, 900), (900, 20), (31, 17), (1200, 900))

Input = Literal["image", "pixels"]


class Answering(nn.Module):
    """Normalised images (B, 3, H, W) to the answers of a head; probabilities are in single precision."""

    def __init__(self, network: FeatureNetwork, head: HeadModule) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Answer for a batch."""
        features = torch.cat([layer.flatten(1) for layer in self.network(images)], dim=1)
        answers = zip(self.head.names, self.head(features.float()), strict=True)
        return tuple(answer.float() if name == "probabilities" else answer for name, answer in answers)


def export_model(model: Model, *, takes: Input = "image") -> tuple[bytes, float]:
    """Return `model` as an ONNX file, and by how much its answers differ from the model's at most.

    Raises `ModelError` where it cannot be expressed so, or answers otherwise.
    """
    if model.views > 1:
        raise ModelError(
            f"{model.folder} answers by the mean over random views, which no file can draw; train it again"
        )
    if model.record.recipe.precision == "int8":
        raise ModelError(
            f"{model.folder} was trained on int8 features, and a file would answer from those in fp32; extract with"
            " --precision fp32 and train on that"
        )
    if model.record.beside:
        raise ModelError(f"{model.folder} asks several bases, and a file holds one; train on one feature file")
    try:
        graph = _graph(model, takes)
    except EngineError as error:
        raise ModelError(f"{model.folder} cannot be exported: {error}") from None
    difference = _difference(graph, model, takes)
    if not difference <= TOLERANCE:
        raise ModelError(f"{model.folder} cannot be exported: its graph answers otherwise, by {difference:.3g}")
    return _described(graph, model), difference


def _graph(model: Model, takes: Input) -> onnx.ModelProto:
    recipe, head = model.record.recipe, HeadModule(model.head)
    network = feature_network(model.base, recipe.layers, recipe.pool)
    traced = onnx.load_from_string(trace(Answering(network, head), model.base.transform, head.names))
    if takes == "pixels":
        return traced
    before = preprocess_graph(model.base.transform)
    traced.ir_version = before.ir_version = max(traced.ir_version, before.ir_version)
    return compose.merge_models(before, traced, io_map=[("pixels", "pixels")])


def _difference(graph: onnx.ModelProto, model: Model, takes: Input) -> float:
    """Return the largest difference of the graph's answers to images of noise from those of the model, run in torch."""
    run = session(graph.SerializeToString(), threads=1)
    network = feature_network(model.base, model.record.recipe.layers, model.record.recipe.pool)
    transform, differences = model.base.transform, []
    for image in _noise():
        pixels = np.array(transform.preprocess(Image.fromarray(image))[None])  # a copy, that torch may have
        found = run.run(None, {"image": image} if takes == "image" else {"pixels": pixels})
        with torch.inference_mode():
            layers = network(transform.normalize(torch.from_numpy(pixels)))
        features = np.concatenate([layer.flatten(1).numpy() for layer in layers], axis=1)
        answers, halves = model.head.predict_proba(features), model.head.half_widths(features)
        for one, wanted in zip(found, [answers] if halves is None else [answers, halves], strict=True):
            unit = max(1.0, float(np.abs(wanted).max())) if model.classes is None else 1.0
            differences.append(float(np.abs(one - wanted).max()) / unit)
    return max(differences)


def _noise() -> list[NDArray[np.uint8]]:
    """Return smooth images, so that their features are not far from those of photos."""
    random = np.random.default_rng(13)
    images = []
    for height, width in CHECKED:
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        images.append(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)))
    return images


def _described(graph: onnx.ModelProto, model: Model) -> bytes:
    record = model.record
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "task": record.task,
        "target": record.target,
        "classes": json.dumps(record.classes),
        "set_least": json.dumps(model.head.least_in_set),
        "recipe": record.recipe.canonical(),
        "versions": json.dumps(versions()),
        "sha256": hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest(),
    }
    onnx.helper.set_model_props(graph, metadata)
    content: bytes = graph.SerializeToString(deterministic=True)
    return content
