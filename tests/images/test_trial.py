"""Images that hang or end a process, or eat its memory, are found by a process that is there for nothing else."""

from __future__ import annotations

from pathlib import Path

import cheap
from harmful import harmful
from pictures import write_photos

from pipeline.images.transform import InputTransform
from pipeline.images.trial import Trial
from pipeline.sources import read_manifest


def test_harmful_images_are_told_from_good_and_bad_ones(tmp_path: Path) -> None:
    write_photos(tmp_path, 2)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    for name in ("crash", "eat", "hang"):
        (tmp_path / f"{name}.jpg").write_bytes((tmp_path / "000.jpg").read_bytes())
    manifest = harmful(read_manifest(tmp_path))
    recipe = cheap.recipe(transform=InputTransform(resize=(64, 64), crop=(64, 64)).describe())
    trial = Trial(recipe, max_pixels=2**20, seconds=2.0)
    found = {record.id: error for record, error in trial.harmful(manifest.records)}
    assert list(found) == [record.id for record in manifest.records]
    reasons = {name: error.reason for name, error in found.items() if error is not None}
    assert reasons == {"crash.jpg": "corrupt", "eat.jpg": "too-large", "hang.jpg": "unreadable"}
    assert "SIGSEGV" in str(found["crash.jpg"])
    assert "more than 2 s" in str(found["hang.jpg"])
