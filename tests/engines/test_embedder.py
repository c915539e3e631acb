"""Tests of images to features: every record once, in order, decoded while the base computes, by the right weights."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from cheap import recipe_for
from pictures import write_photos

from pipeline.bases import Base, base_of
from pipeline.config import RunSettings
from pipeline.engines.embedder import Embedded, Embedder
from pipeline.errors import BaseError, ImageError, RecipeMismatchError
from pipeline.images.loading import Loaded, load
from pipeline.images.preprocess import make_preprocess
from pipeline.sources import Manifest, read_manifest

SETTINGS = RunSettings.of({"device": "cpu", "batch_size": 4})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Ten photos; 5 is text, 8 is a copy of 7."""
    folder = tmp_path_factory.mktemp("embedder") / "photos"
    write_photos(folder, 10)
    files = sorted(folder.iterdir())
    files[5].write_text("not an image")
    files[8].write_bytes(files[7].read_bytes())
    return read_manifest(folder)


@pytest.mark.parametrize("views", [0, 2])
def test_every_record_once_in_order_with_the_features_of_the_engine(base: Base, photos: Manifest, views: int) -> None:
    recipe = recipe_for(base, views=views, augment=("flip",) if views else (), seed=13 if views else None)
    with Embedder(base, recipe, SETTINGS) as embedder:
        assert (embedder.shapes, embedder.dimensions) == ([(512,)], 512)
        batches = list(embedder.run(photos.records, batch_size=4))
        (batch,) = load(photos.records, make_preprocess(recipe, base.transform), batch_size=10)
        pixels = [image.pixels for image in batch if image.pixels is not None]
        expected = [embedder._engine(views_of_one)[0] for views_of_one in pixels]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [image.index for batch in batches for image in batch.images] == list(range(10))
    assert [index for batch in batches for index in batch.indices] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert not [image for batch in batches for image in batch.images if image.pixels is not None]
    found = np.concatenate([batch.layers[0] for batch in batches])
    assert found.shape == ((9, 3, 512) if views else (9, 512))
    np.testing.assert_allclose(found.reshape(-1, 512), np.concatenate(expected), rtol=1e-4, atol=1e-5)


def test_batches_without_a_good_image_have_no_features(base: Base, photos: Manifest) -> None:
    with Embedder(base, recipe_for(base), SETTINGS) as embedder:
        (bad,) = embedder.run([photos.records[5]])
        (copy,) = embedder.run([photos.records[8]], seen=lambda _: True)
        assert not list(embedder.run([]))
    assert (len(bad), bad.good, bad.layers) == (1, [], [])
    assert (len(copy), copy.good, copy.layers) == (1, [], [])


def test_images_whose_features_are_not_finite_are_bad() -> None:
    images = [Loaded(0), Loaded(1), Loaded(2, error=ImageError("empty", "0 bytes")), Loaded(3)]
    maps = np.ones((3, 2, 2), np.float32)
    maps[1, 0, 1] = np.nan
    found = Embedded(images, [np.arange(3, dtype=np.float32)[:, None], maps]).finite()
    assert found.indices == [0, 3]
    assert [layer.shape for layer in found.layers] == [(2, 1), (2, 2, 2)]
    assert found.layers[0].tolist() == [[0], [2]]
    assert [str(image.error) for image in images if image.error] == [
        "non-finite: the base gives NaN or infinity for it",
        "empty: 0 bytes",
    ]


@dataclass
class Late:
    """An image file that is read only when it is allowed."""

    path: Path
    allowed: threading.Event

    def stat(self) -> tuple[int, int]:
        return self.path.stat().st_size, 0

    def read(self, limit: int) -> bytes:
        assert self.allowed.wait(60)
        return self.path.read_bytes()[:limit]


def test_images_are_read_while_others_are_computed(base: Base, photos: Manifest) -> None:
    allowed = threading.Event()
    late = replace(photos.records[2], image=Late(Path(photos.source) / photos.records[2].id, allowed))
    with Embedder(base, recipe_for(base), RunSettings.of({"device": "cpu", "workers": 2})) as embedder:
        batches = embedder.run([*photos.records[:2], late], batch_size=1)
        assert next(batches).indices == [0]
        allowed.set()
        assert [batch.indices for batch in batches] == [[1], [2]]
        assert embedder.timings.read > 0
        assert embedder.seconds > 0


def test_the_base_of_a_recipe_has_its_very_weights(base: Base) -> None:
    recipe = recipe_for(base)
    assert base_of(recipe, "embedded", seed=13).digest == recipe.weights
    with pytest.raises(RecipeMismatchError, match=r"of squeezenet1_1, and none holds .*; give the right file with"):
        base_of(recipe, "none", seed=13)


def test_a_recipe_of_images_that_the_network_cannot_take_is_refused(base: Base) -> None:
    recipe = recipe_for(base)
    narrow = recipe.model_copy(update={"transform": recipe.transform | {"crop": [8192, 1], "resize": [8192, 8192]}})
    with pytest.raises(BaseError, match=r"squeezenet1_1 cannot take images of 8192 x 1: .*its recipe is damaged"):
        base_of(narrow, "embedded", seed=13)
