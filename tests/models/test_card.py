"""README.md of a model folder: what a hub and a person read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.models.card import card
from pipeline.models.folder import BaseRecord, DataRecord, ModelRecord, SideRecord
from pipeline.models.model import load_model

huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub comes with timm")


def loaded(text: str, where: Path) -> Any:
    """Read a card as the hub's own client does, which checks the block."""
    where.write_text(text, encoding="utf-8")
    return huggingface_hub.ModelCard.load(where, ignore_metadata_errors=False)


def test_the_block_is_what_hubs_read(model: Path) -> None:
    found = huggingface_hub.ModelCard.load(model / "README.md", ignore_metadata_errors=False)
    assert (found.data.library_name, found.data.pipeline_tag) == ("cached-feature-pipeline", "image-classification")
    measured = load_model(model).record.metrics["val"]
    results = {one.metric_type: (one.metric_value, one.dataset_split) for one in found.data.eval_results}
    assert results["accuracy"] == (measured["accuracy"], "val")
    assert results["f1"] == (measured["macro_f1"], "val")


def test_a_person_reads_what_it_is_and_how_well_it_does(model: Path) -> None:
    text = (model / "README.md").read_text()
    record = load_model(model).record
    for said in (
        "This model tells 2 classes of images apart. It was trained on 24 images of:",
        "\n\n    ants\n    bees\n\n",
        f"    held-out rows: accuracy {record.metrics['val']['accuracy']:.4f}",
        "Bear in mind:\n\n    held-out rows: only 12 rows",
        f"sha256 of its tensors {record.recipe.weights}",
        "pipeline predict FOLDER photo.jpg",
    ):
        assert said in text, said


def test_no_name_breaks_out(model: Path, tmp_path: Path) -> None:
    names = ("```\n# title", "a: {b", "\x1b[2J---\n---", "\N{PILE OF POO}", "\udcff", '"')
    record = load_model(model).record.model_copy(
        update={
            "target": "---\nlicense: mit\n",
            "classes": names,
            "data": DataRecord(source="x\n---\nlicense: mit\udcff\x85", rows=1, fingerprint=""),
        }
    )
    text = card(record)
    assert loaded(text, tmp_path / "README.md").data.to_dict().get("license") is None
    body = text.split("\n---\n", 1)[1]
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert len(headings) == 5
    assert "title" not in "".join(headings)


def test_a_model_without_any_measure_and_a_number(model: Path, tmp_path: Path) -> None:
    record = load_model(model).record
    bare = ModelRecord.model_validate(
        {**record.model_dump(), "task": "numbers", "classes": None, "metrics": {}, "checksum": None}
    )
    found = loaded(card(bare), tmp_path / "README.md")
    assert found.data.pipeline_tag is None
    assert found.data.eval_results is None
    assert "answers an image with a number" in found.content


def test_a_thousand_classes_are_not_all_listed(model: Path) -> None:
    record = load_model(model).record.model_copy(update={"classes": tuple(f"class {n}" for n in range(1000))})
    assert "    class 49\n    and 950 more, in model.json\n" in card(record)


def test_a_tuned_base_is_told(model: Path) -> None:
    record = load_model(model).record
    tuned = record.model_copy(update={"base": BaseRecord(**{**record.base.model_dump(), "fine_tuned": True})})
    assert "# class: linear head on fine-tuned squeezenet1_1" in card(tuned)


def test_bases_side_by_side_are_all_named(model: Path) -> None:
    record = load_model(model).record
    other = record.base.model_copy(update={"name": "resnet18"})
    both = record.model_copy(update={"beside": (SideRecord(base=other, recipe=record.recipe, source="b.h5"),)})
    text = card(both)
    assert "# class: linear head on squeezenet1_1 and resnet18" in text
    assert "    base      resnet18, weights embedded" in text
