"""Which images trained a model: kept in its folder, checked like its head."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Trained
from safetensors.numpy import save_file

from pipeline.errors import ModelError
from pipeline.models.model import load_model
from pipeline.models.seen import FILE, Seen
from pipeline.store import FeatureStore


def test_contents_are_known_by_their_digest(tmp_path: Path) -> None:
    contents = np.random.default_rng(0).integers(0, 256, (50, 32), dtype=np.uint8)
    Seen.of(np.concatenate([contents[:20], contents[:5]]), tested=contents[40:]).write(tmp_path)
    assert (tmp_path / FILE).stat().st_size < 30 * 16 + 300
    found = Seen.read(tmp_path)
    assert found is not None
    assert found.among(contents).tolist() == [True] * 20 + [False] * 30
    assert found.among_tested(contents).tolist() == [False] * 40 + [True] * 10
    assert not Seen.of(contents, tested=contents[:0]).among_tested(contents).any()
    assert not Seen.of(contents[:0]).among(contents).any()


def test_a_model_knows_the_rows_that_trained_it(trained: Trained) -> None:
    seen = load_model(trained.linear).seen
    assert seen is not None
    with FeatureStore.open(trained.store) as store:
        assert seen.among(store.sha256).tolist() == (store.splits == "train").tolist()


def test_damage_to_them_is_refused_when_the_model_is_opened(trained: Trained, tmp_path: Path) -> None:
    model = Path(shutil.copytree(trained.linear, tmp_path / "m"))
    whole = (model / FILE).read_bytes()
    (model / FILE).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"rows\.safetensors fails its checksum"):
        load_model(model)
    (model / FILE).unlink()
    with pytest.raises(ModelError, match=r"rows\.safetensors cannot be read"):
        load_model(model)


def test_what_is_no_list_of_digests_is_refused(tmp_path: Path) -> None:
    for tensor in (np.zeros((3, 8), np.uint8), np.zeros((3, 16), np.float32), np.zeros(16, np.uint8)):
        save_file({"trained": tensor}, tmp_path / FILE)
        with pytest.raises(ModelError, match="digests of shape"):
            Seen.read(tmp_path)
        save_file({"trained": np.zeros((3, 16), np.uint8), "tested": tensor}, tmp_path / FILE)
        with pytest.raises(ModelError, match="digests of shape"):
            Seen.read(tmp_path)
    (tmp_path / FILE).write_text("text")
    with pytest.raises(ModelError, match="cannot be read"):
        Seen.read(tmp_path)
