"""Stage one on real files through the real base: what ends up in which row."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from pictures import encoded, photo, write_photos
from PIL import Image

from pipeline import bases
from pipeline.bases import feature_network, load_base
from pipeline.commands.extract import ExtractResult, advice, extract, rehearse
from pipeline.commands.fit_head import fit_head
from pipeline.commands.info import info
from pipeline.commands.merge import merge
from pipeline.commands.predict import predict
from pipeline.commands.verify import verify
from pipeline.errors import (
    BaseError,
    OutputExistsError,
    RecipeMismatchError,
    SettingsError,
    SourceError,
    StoreError,
)
from pipeline.feature_extractor import FeatureExtractor
from pipeline.images.decoding import decode
from pipeline.models.model import load_model
from pipeline.sources import from_paths
from pipeline.store import FeatureStore

EMBEDDED: dict[str, Any] = {"base": "squeezenet1_1", "weights": "embedded"}


def run(source: Path, output: Path, **options: Any) -> ExtractResult:
    return extract(source, output, **{**EMBEDDED, **options})


def expected(data: bytes) -> np.ndarray:
    """The embedding of one image file, by the network itself."""
    base = load_base("squeezenet1_1", "embedded")
    pixels = torch.tensor(base.transform.preprocess(decode(data)))[None]
    with torch.inference_mode():
        return feature_network(base, ["avgpool"])(base.transform.normalize(pixels))[0][0].numpy()


def test_the_file_is_the_one_that_the_format_describes(split_folder: Path, tmp_path: Path) -> None:
    result = run(split_folder, tmp_path / "f.h5")
    assert (result.rows, result.good, result.computed, result.reused) == (24, 24, 24, 0)
    with h5py.File(tmp_path / "f.h5") as file:
        assert file.attrs["format"] == "pipeline-features"
        assert file["features/avgpool"].shape == (24, 512)
        assert file["features/avgpool"].dtype == np.float32
        assert file["features/avgpool"].chunks is None
        ids = file["id"].asstr()[:].tolist()
        assert ids == sorted(ids)
        assert ids[0] == "train/ants/000.jpg"
        assert set(file["split"].asstr()[:]) == {"train", "val"}
        assert file["target/class"][:].tolist() == [0] * 8 + [1] * 8 + [0] * 4 + [1] * 4
        assert list(file["target/class"].attrs["names"]) == ["ants", "bees"]
        assert (file["status"][:] == 1).all()
        assert file["source/sha256"].shape == (24, 32)
        row = ids.index("val/bees/002.jpg")
        right = expected((split_folder / "val/bees/002.jpg").read_bytes())
        np.testing.assert_allclose(file["features/avgpool"][row], right, atol=1e-4)


def hostile(folder: Path) -> dict[str, str]:
    """Eleven files a real folder may hold; the reason of each bad one."""
    folder.mkdir()
    good = photo(1, (90, 70))
    (folder / "plain.jpg").write_bytes(encoded(good))
    (folder / "text.jpg").write_text("not an image at all\n")
    (folder / "empty.jpg").touch()
    (folder / "truncated.jpg").write_bytes(encoded(photo(2, (90, 70)))[:-200])
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "rotated.jpg").write_bytes(encoded(photo(3, (90, 70)), exif=exif.tobytes(), quality=95))
    (folder / "cmyk.jpg").write_bytes(encoded(good.convert("CMYK"), quality=95))
    ramp = np.linspace(0, 65535, 90 * 70).reshape(70, 90).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "deep.png")
    clear = good.copy().convert("RGBA")
    clear.putalpha(0)
    clear.save(folder / "transparent.png")
    frames = [photo(seed, (90, 70)) for seed in (4, 5)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    (folder / "last.jpg").write_bytes(encoded(photo(6, (90, 70))))
    return {"text.jpg": "not-an-image", "empty.jpg": "empty", "truncated.jpg": "truncated"}


def test_bad_images_have_a_reason_and_disturb_no_other_row(tmp_path: Path) -> None:
    bad = hostile(tmp_path / "mixed")
    result = run(tmp_path / "mixed", tmp_path / "mixed.h5")
    assert result.bad == bad
    with FeatureStore.open(tmp_path / "mixed.h5") as store:
        found = dict(zip(store.ids, store.features("avgpool", np.arange(len(store))), strict=True))
    for name, features in found.items():
        if name in bad:
            assert np.isnan(features).all()
        else:
            data = (tmp_path / "mixed" / name).read_bytes()
            np.testing.assert_allclose(features, expected(data), atol=1e-4)
    upright = np.asarray(decode((tmp_path / "mixed" / "rotated.jpg").read_bytes()))
    assert upright.shape == (90, 70, 3)
    white = expected(encoded(Image.new("RGB", (90, 70), "white"), "PNG"))
    np.testing.assert_allclose(found["transparent.png"], white, atol=1e-4)


def test_targets_and_what_was_left_out_are_told(photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "wasps").mkdir()
    for name in ("1.jxl", "2.jxl", "3.svg"):
        (photo_folder / "ants" / name).touch()
    result = run(photo_folder, tmp_path / "f.h5")
    assert "class: 2 classes (ants 6, bees 6)" in result.summary().split("\n")
    assert "note: left out 3 files: 2 .jxl, 1 .svg (formats that are not read" in result.summary()
    assert "note: left out 1 class folder without images: 'wasps'" in result.summary()
    said = result.to_json()
    assert said["targets"] == {"class": {"kind": "class", "known": 12, "classes": {"ants": 6, "bees": 6}}}
    assert len(said["notes"]) == 2


@pytest.mark.parametrize("name", ["a\u3000b", "a\xa0b", os.fsdecode(b"caf\xe9"), "back\\slash", "two\nlines"])
def test_a_source_of_any_name_is_found_again(name: str, photo_folder: Path, tmp_path: Path) -> None:
    try:
        source = photo_folder.rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    run(source, tmp_path / "f.h5")
    found = verify(tmp_path / "f.h5", recompute=3)
    assert found.ok, found.problems
    assert found.recomputed == 3


def test_a_second_run_computes_nothing_and_only_changes_after_that(photo_folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "f.h5"
    run(photo_folder, store)
    before = store.read_bytes()
    again = run(photo_folder, store)
    assert (again.computed, again.reused) == (0, 12)
    assert store.read_bytes() == before

    (photo_folder / "bees" / "005.jpg").unlink()
    (photo_folder / "ants" / "000.jpg").rename(photo_folder / "bees" / "moved.jpg")
    (photo_folder / "ants" / "001.jpg").write_bytes(encoded(photo(77)))
    write_photos(photo_folder / "ants", 1, first_seed=500)  # 000.jpg is another picture now
    third = run(photo_folder, store)
    assert (third.rows, third.computed) == (12, 2)
    fresh = run(photo_folder, tmp_path / "fresh.h5")
    assert fresh.computed == 12
    with FeatureStore.open(store) as one, FeatureStore.open(tmp_path / "fresh.h5") as other:
        assert list(one.ids) == list(other.ids)
        rows = np.arange(12)
        np.testing.assert_allclose(one.features("avgpool", rows), other.features("avgpool", rows), atol=1e-5)
        np.testing.assert_array_equal(one.targets["class"].values, other.targets["class"].values)


def test_identical_content_is_computed_once(tmp_path: Path) -> None:
    write_photos(tmp_path / "p", 3)
    for copy in range(5):
        shutil.copyfile(tmp_path / "p/001.jpg", tmp_path / f"p/copy{copy}.jpg")
    (tmp_path / "p/bad1.jpg").write_text("same text")
    (tmp_path / "p/bad2.jpg").write_text("same text")
    result = run(tmp_path / "p", tmp_path / "f.h5")
    assert (result.rows, result.computed) == (10, 3)
    assert result.bad == {"bad1.jpg": "not-an-image", "bad2.jpg": "not-an-image"}
    with FeatureStore.open(tmp_path / "f.h5") as store:
        features = store.features("avgpool", store.select())
    assert features.shape == (8, 512)
    assert len(np.unique(features, axis=0)) == 3


def test_views_do_not_depend_on_batches_or_threads_and_the_plain_one_comes_first(
    photo_folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"views": 2, "augment": ("crop", "flip", "brightness")}
    run(photo_folder, tmp_path / "a.h5", **options, batch_size=1, workers=1)
    run(photo_folder, tmp_path / "b.h5", **options, batch_size=7, workers=3)
    run(photo_folder, tmp_path / "plain.h5")
    rows = np.arange(12)
    a = FeatureStore.open(tmp_path / "a.h5").features("avgpool", rows)
    b = FeatureStore.open(tmp_path / "b.h5").features("avgpool", rows)
    plain = FeatureStore.open(tmp_path / "plain.h5").features("avgpool", rows)
    assert a.shape == (12, 3, 512)
    np.testing.assert_allclose(a, b, atol=1e-4)
    np.testing.assert_allclose(a[:, 0], plain, atol=1e-4)
    assert np.abs(a[:, 1] - a[:, 2]).max() > 0.1


def test_several_layers_and_poolings(photo_folder: Path, tmp_path: Path) -> None:
    result = run(photo_folder, tmp_path / "f.h5", layer=("features.5", "avgpool"), pool="avg", dtype="float16")
    assert result.layers == {"features.5": (128,), "avgpool": (512,)}
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["features/features.5"].dtype == np.float16


def test_another_size_is_kept_to_by_all_that_comes_after(split_folder: Path, tmp_path: Path) -> None:
    run(split_folder, tmp_path / "f.h5", size=96)
    assert verify(tmp_path / "f.h5", recompute=100).largest_difference < 1e-5
    model = fit_head(tmp_path / "f.h5", tmp_path / "model").model
    with FeatureStore.open(tmp_path / "f.h5") as store:
        assert store.recipe.transform["crop"] == [96, 96]
        rows = store.select()
        wanted = load_model(model).head.predict_proba(store.features("avgpool", rows))
        ids = [str(split_folder / store.ids[row]) for row in rows]
    said = predict(model, ids, top=2).predictions
    np.testing.assert_allclose([entry["score"] for entry in said], wanted.max(axis=1), atol=1e-4)
    features = FeatureExtractor(**EMBEDDED, size=96, cache=tmp_path / "f.h5").fit_transform(ids)
    fresh = FeatureExtractor(**EMBEDDED, size=96).fit_transform(ids)
    np.testing.assert_allclose(features, fresh, rtol=1e-4, atol=1e-5)


def test_another_fit_is_another_recipe_and_kept_to_by_all_that_comes_after(split_folder: Path, tmp_path: Path) -> None:
    run(split_folder, tmp_path / "f.h5")
    with pytest.raises(RecipeMismatchError, match=r"made with transform\.fit='shortest', and 'longest' is asked for"):
        run(split_folder, tmp_path / "f.h5", fit="longest")
    run(split_folder, tmp_path / "whole.h5", fit="longest")
    assert verify(tmp_path / "whole.h5", recompute=100).largest_difference < 1e-5
    model = fit_head(tmp_path / "whole.h5", tmp_path / "model").model
    with FeatureStore.open(tmp_path / "whole.h5") as store:
        rows = store.select()
        wanted = load_model(model).head.predict_proba(store.features("avgpool", rows))
        said = predict(model, [str(split_folder / store.ids[row]) for row in rows], top=2).predictions
    np.testing.assert_allclose([entry["score"] for entry in said], wanted.max(axis=1), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "vit_b_32", "weights": "none", "size": 96}, "vit_b_32 cannot take images of 96 x 96"),
        ({"size": 3}, "squeezenet1_1 cannot take images of 3 x 3: .*leave out --size"),
    ],
)
def test_a_size_that_a_base_cannot_take(
    photo_folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BaseError, match=message):
        run(photo_folder, tmp_path / "f.h5", **options)


def test_a_size_is_refused_by_a_base_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(bases, "run_on_meta", refuse)
    with pytest.raises(BaseError, match="cannot take images of 99 x 99: an assertion of its code fails; leave out"):
        load_base("squeezenet1_1", "embedded", size=99)


@pytest.mark.parametrize(
    "change", [{"layer": ("features.5",)}, {"pool": "flatten"}, {"dtype": "float16"}, {"weights": "none"}, {"size": 96}]
)
def test_another_recipe_is_refused_and_the_file_stays(
    photo_folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    run(photo_folder, tmp_path / "f.h5")
    before = (tmp_path / "f.h5").read_bytes()
    with pytest.raises(RecipeMismatchError, match="--force"):
        run(photo_folder, tmp_path / "f.h5", **change)
    assert (tmp_path / "f.h5").read_bytes() == before
    run(photo_folder, tmp_path / "f.h5", **change, force=True)


def test_too_many_bad_images_stop_the_run_but_keep_what_was_done(tmp_path: Path) -> None:
    write_photos(tmp_path / "p", 20)
    for number in range(15):
        (tmp_path / "p" / f"bad{number}.jpg").write_text(f"text {number}")
    with pytest.raises(SourceError, match=r"15 of 35 images are bad \(15 not-an-image; the first is bad0\.jpg\)"):
        run(tmp_path / "p", tmp_path / "f.h5")
    assert not (tmp_path / "f.h5").exists()
    again = run(tmp_path / "p", tmp_path / "f.h5", max_bad=1)
    assert (again.computed, again.reused, again.good) == (0, 35, 20)


def test_not_one_good_image_is_an_error_whatever_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.jpg").write_text("text")
    with pytest.raises(SourceError, match="1 of 1 images are bad"):
        run(tmp_path / "p", tmp_path / "f.h5", max_bad=1)
    assert [path.name for path in tmp_path.iterdir()] == ["p"], "nothing is worth keeping"


def test_parts_hold_their_rows(photo_folder: Path, tmp_path: Path) -> None:
    run(photo_folder, tmp_path / "whole.h5")
    for number in (1, 2, 3):
        run(photo_folder, tmp_path / "parts" / f"{number}.h5", part=f"{number}/3")
    with FeatureStore.open(tmp_path / "parts") as parts, FeatureStore.open(tmp_path / "whole.h5") as whole:
        assert list(parts.ids) == list(whole.ids)
        np.testing.assert_allclose(parts.arrays()[0], whole.arrays()[0], atol=1e-4)
    with pytest.raises(SettingsError, match="K/N"):
        run(photo_folder, tmp_path / "x.h5", part="4/3")


def test_a_dry_run_measures_and_writes_nothing(photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "ants" / "text.jpg").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    result = rehearse(photo_folder, tmp_path / "new" / "f.h5", **EMBEDDED, views=1, augment=("flip",))
    assert sorted(tmp_path.rglob("*")) == before
    assert (result.rows, result.sample, result.bad_in_sample) == (13, 13, 1)
    assert result.store_bytes == 13 * 2 * 512 * 4
    assert result.image_bytes == sum(path.stat().st_size for path in photo_folder.rglob("*.jpg"))
    assert 0 < result.seconds < 60
    assert "nothing was written" in result.summary()
    assert result.to_json()["free_bytes"] > 0


def test_a_dry_run_counts_what_is_there_and_refuses_what_the_run_would(photo_folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "f.h5"
    run(photo_folder, store)
    again = rehearse(photo_folder, store, **EMBEDDED)
    assert (again.computed, again.reused, again.seconds, again.sample) == (0, 12, 0, 0)
    assert "12 reused, 0 to compute, nothing to do" in again.summary()
    write_photos(photo_folder / "wasps", 3, first_seed=300)
    grown = rehearse(photo_folder, store, **EMBEDDED)
    assert (grown.computed, grown.reused, grown.sample) == (3, 12, 3)
    assert grown.seconds > 0
    assert rehearse(photo_folder, store, force=True, **EMBEDDED).computed == 15
    with pytest.raises(RecipeMismatchError, match="--force"):
        rehearse(photo_folder, store, **EMBEDDED, size=96)
    with pytest.raises(OutputExistsError, match="give --force to start anew, or another -o"):
        rehearse(photo_folder / "wasps", store, **EMBEDDED)
    with pytest.raises(StoreError, match="cannot be written: Not a directory"):
        rehearse(photo_folder, store / "f.h5", **EMBEDDED)


def test_rows_of_other_images_are_not_dropped_without_a_word(photo_folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "f.h5"
    run(photo_folder, store)
    write_photos(tmp_path / "others", 2, first_seed=300)
    with pytest.raises(OutputExistsError, match=r"has 12 images of .*photos, and 12 of them are not among the 2 of"):
        run(tmp_path / "others", store)
    shutil.rmtree(photo_folder / "bees")
    result = run(photo_folder, store)
    assert (result.rows, result.reused, result.dropped) == (6, 6, 6)
    assert result.to_json()["dropped"] == 6
    assert "6 rows dropped, of images that are gone" in result.summary()
    again = run(photo_folder, store)
    assert again.dropped == 0
    assert "dropped" not in again.summary()
    assert run(tmp_path / "others", store, force=True).rows == 2


def test_the_slowest_stage_is_named_with_what_helps() -> None:
    seconds = {"total": 9.0, "read": 0.1, "decode": 5.0, "forward": 3.0, "write": 0.0, "wait": 0.2}
    assert advice(seconds).endswith("most goes to decode: --decode fast or more cores would help")
    assert "a GPU" in advice({**seconds, "forward": 6.0})


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on_and_goes_on(tmp_path: Path, number: signal.Signals, status: int) -> None:
    write_photos(tmp_path / "p", 150)
    command = [sys.executable, "-m", "pipeline", "extract", "p", "-o", "f.h5", "--base", "squeezenet1_1"]
    command += ["--weights", "embedded", "--batch-size", "2", "--workers", "1", "--views", "4", "--augment", "crop"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    partial = tmp_path / "f.h5.partial"
    while child.poll() is None and not (partial.exists() and _done(partial)):
        time.sleep(0.02)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == status, said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    assert not (tmp_path / "f.h5").exists()
    done = _done(partial)
    assert 0 < done < 150
    result = run(tmp_path / "p", tmp_path / "f.h5", views=4, augment=("crop",))
    assert (result.reused, result.computed) == (done, 150 - done)


def _done(partial: Path) -> int:
    with h5py.File(partial) as file:
        return int((file["status"][:] == 1).sum())


def test_int8_is_the_same_graph_in_a_second_run_in_parts_and_in_predict(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**EMBEDDED, "precision": "int8", "layer": ["avgpool", "pool5"], "pool": "avg", "batch_size": 4}
    whole = run(photo_folder, tmp_path / "f.h5", **options)
    assert whole.engine == "openvino"
    assert whole.drift is not None
    assert 0.98 < whole.drift["least"] <= whole.drift["mean"] < 1
    assert "int8: cosine to fp32 0.99" in whole.summary()
    assert whole.to_json()["drift"] == whole.drift
    for part in ("1/2", "2/2"):
        run(photo_folder, tmp_path / "parts" / f"{part[0]}.h5", part=part, **options)
    merge(tmp_path / "parts", tmp_path / "merged.h5")
    with FeatureStore.open(tmp_path / "f.h5") as one, FeatureStore.open(tmp_path / "merged.h5") as other:
        assert one.recipe == other.recipe
        assert one.environment.drift == whole.drift
        np.testing.assert_allclose(one.features("avgpool"), other.features("avgpool"), rtol=0.05, atol=0.1)
        kept = one.recipe
    (photo_folder / "ants" / "new.jpg").write_bytes(encoded(photo(99), "JPEG"))
    more = run(photo_folder, tmp_path / "f.h5", **options)
    assert (more.computed, more.drift) == (1, whole.drift)
    with FeatureStore.open(tmp_path / "f.h5") as store:
        assert store.recipe == kept
        rows = store.select()
        wanted = store.features("avgpool", rows)
        ids = [store.ids[row] for row in rows]
    assert verify(tmp_path / "f.h5", recompute=4).ok
    assert "ranges: " in info(tmp_path / "f.h5").summary()
    fit_head(tmp_path / "f.h5", tmp_path / "model", head="ridge", layer=["avgpool"])
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "another machine"))
    model = load_model(tmp_path / "model")
    records = from_paths([photo_folder / name for name in ids[:4]]).records
    (batch,) = model.embed(records)
    np.testing.assert_allclose(batch.layers[0], wanted[:4], rtol=0.05, atol=0.1)
    with pytest.raises(RecipeMismatchError, match="precision"):
        run(photo_folder, tmp_path / "f.h5", **{**options, "precision": "fp32"})
