"""Files that are no model, or no longer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Trained

import pipeline
from pipeline.errors import ModelError
from pipeline.models.exported import ExportedModel
from pipeline.models.model import load_model
from pipeline.models.onnx import export_model


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "linear.onnx"
    pipeline.export(trained.linear, path)
    return path


def changed(source: Path, target: Path, **metadata: str) -> Path:
    graph = onnx.load(source)
    said = {one.key: one.value for one in graph.metadata_props} | metadata
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, said)
    onnx.save(graph, target)
    return target


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "another"}, "is no model of this program"),
        ({"format_version": "2"}, "has format version 2, this program reads 1"),
        ({"classes": "["}, "is damaged"),
        ({"classes": '["ants"]'}, "its classes are not those of its 2 answers"),
    ],
)
def test_metadata_that_is_not_ours(exported: Path, tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ExportedModel(changed(exported, tmp_path / "m.onnx", **metadata))


@pytest.mark.parametrize("content", [b"", b"no protobuf", b"\x08\x07" * 30])
def test_bytes_that_are_no_graph(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"m.onnx (cannot be|is no model)"):
        ExportedModel(tmp_path / "m.onnx")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing.onnx cannot be opened"):
        ExportedModel(tmp_path / "nothing.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ModelError, match=r"folder.onnx cannot be opened"):
        ExportedModel(tmp_path / "folder.onnx")


def test_a_file_of_pixels_takes_no_images(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(export_model(load_model(trained.linear), takes="pixels")[0])
    with pytest.raises(ModelError, match="takes pixels of a base and not images"):
        ExportedModel(tmp_path / "m.onnx")


def test_no_flipped_byte_is_a_traceback(exported: Path, tmp_path: Path, photo_folder: Path) -> None:
    content = np.frombuffer(exported.read_bytes(), np.uint8)
    random, refused = np.random.default_rng(5), []
    for place in random.integers(0, min(len(content), 20_000), 25):
        broken = content.copy()
        broken[place] ^= 1 << random.integers(8)
        (tmp_path / "m.onnx").write_bytes(broken.tobytes())
        try:
            pipeline.predict(tmp_path / "m.onnx", photo_folder / "ants" / "000.jpg")
        except ModelError as error:
            refused.append(str(error))
    assert all("\n" not in message for message in refused)
