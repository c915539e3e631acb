"""The transform as a graph gives the bytes that Pillow gives."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnxruntime
import PIL
import pytest
from PIL import Image

from pipeline.errors import EngineError
from pipeline.images.onnx_resize import preprocess_graph
from pipeline.images.transform import InputTransform

SIDES = [
    (300, 400),
    (400, 300),
    (37, 91),
    (1, 90),
    (90, 1),
    (64, 64),
    (48, 48),
    (13, 7),
    (512, 60),
    (60, 512),
    (700, 500),
]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("fit", "resize", "crop"),
    [
        ("shortest", (64, 64), (56, 56)),
        ("shortest", (60, 80), (50, 70)),
        ("shortest", (50, 50), (64, 64)),
        ("longest", (64, 64), (64, 64)),
        ("longest", (60, 80), (64, 80)),
        ("stretch", (60, 80), (60, 80)),
    ],
)
def test_bytes_are_those_of_pillow(
    fit: str, resize: tuple[int, int], crop: tuple[int, int], interpolation: str
) -> None:
    transform = InputTransform(resize=resize, crop=crop, interpolation=interpolation, fit=fit)  # type: ignore[arg-type]
    graph = preprocess_graph(transform)
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    random = np.random.default_rng(3)
    for height, width in SIDES:
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        wanted = transform.preprocess(Image.fromarray(image))
        found = session.run(None, {"image": image})[0][0]
        difference = np.abs(found.astype(int) - wanted)
        # Which pass comes first was another thing in older releases, for tall images: other roundings between the two,
        # which is one grey level, but where bicubic weights overshoot 0 or 255: in noise up to 2.3 % of the values.
        older = int(PIL.__version__.split(".")[0]) < 13
        assert (difference > 1).mean() <= 0.03 if older else not difference.any(), (height, width)


def test_an_interpolation_that_is_not_written_is_refused() -> None:
    with pytest.raises(EngineError, match="interpolation 'lanczos' cannot be exported, bilinear and bicubic can"):
        preprocess_graph(InputTransform(resize=(8, 8), crop=(8, 8), interpolation="lanczos"))


def test_the_graph_is_small() -> None:
    graph = preprocess_graph(InputTransform(resize=(256, 256), crop=(224, 224)))
    assert io.BytesIO(graph.SerializeToString()).getbuffer().nbytes < 30_000
