"""The exported graph, and the key that it is kept under."""

from __future__ import annotations

import pytest
import torch

from pipeline.bases import Base, feature_network
from pipeline.engines import onnx_graph
from pipeline.errors import EngineError


def test_an_operation_that_onnx_does_not_have(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    network = feature_network(base, ["avgpool"])
    monkeypatch.setattr(
        type(base.transform),
        "normalize",
        lambda self, pixels: torch.special.bessel_j0(pixels.permute(0, 3, 1, 2).float()),
    )
    with pytest.raises(EngineError, match="does not export to ONNX: ") as caught:
        onnx_graph.export(network, base.transform)
    assert "\n" not in str(caught.value)
