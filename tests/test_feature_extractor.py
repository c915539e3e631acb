"""A frozen base inside scikit-learn: cloned, searched, pickled, cross-validated like any other transformer."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from joblib import Parallel, delayed
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from pipeline import FeatureExtractor
from pipeline.commands.extract import extract
from pipeline.errors import BaseError, ImageError, RecipeMismatchError, SourceError
from pipeline.store import FeatureStore


def extractor(**options) -> FeatureExtractor:
    return FeatureExtractor("squeezenet1_1", weights="embedded", **options)


@pytest.fixture(scope="module")
def fitted() -> FeatureExtractor:
    return extractor().fit(["any.jpg"])


@pytest.fixture
def photos(photo_folder) -> list[str]:
    return sorted(str(path) for path in photo_folder.rglob("*.jpg"))


def test_paths_images_and_arrays_give_the_same(fitted, photos):
    by_path = fitted.transform(photos)
    opened = [Image.open(photo) for photo in photos]
    assert by_path.shape == (12, 512)
    assert by_path.dtype == np.float32
    np.testing.assert_array_equal(fitted.transform([Path(photo) for photo in photos]), by_path)
    np.testing.assert_array_equal(fitted.transform(opened), by_path)
    np.testing.assert_array_equal(fitted.transform([np.asarray(image) for image in opened]), by_path)
    np.testing.assert_array_equal(fitted.transform(np.array(photos)[:, None]), by_path)


def test_same_features_as_extract(fitted, photo_folder, photos, tmp_path):
    extract(photo_folder, tmp_path / "f.h5", base="squeezenet1_1", weights="embedded")
    with FeatureStore.open(tmp_path / "f.h5") as store:
        rows = [str(photo_folder / id) for id in store.ids]
        np.testing.assert_allclose(fitted.transform(rows), store.features(), rtol=1e-4, atol=1e-4)


def test_cross_validates_in_a_pipeline(photos):
    labels = [Path(photo).parent.name for photo in photos]
    scores = cross_val_score(make_pipeline(extractor(), LinearSVC()), photos, labels, cv=2)
    assert scores.tolist() == [1, 1]


def test_its_parameters_can_be_searched(photos):
    labels = [Path(photo).parent.name for photo in photos]
    grid = {"featureextractor__pool": ["avg", "max"]}
    model = make_pipeline(extractor(layer="features.12"), LinearSVC())
    assert GridSearchCV(model, grid, cv=2).fit(photos, labels).best_score_ == 1


def test_clone_and_parameters():
    copy = clone(extractor(layer=("avgpool", "features.5"), batch_size=3))
    assert copy.get_params()["layer"] == ("avgpool", "features.5")
    assert copy.batch_size == 3
    with pytest.raises(NotFittedError):
        copy.transform(["a.jpg"])


def test_pickles_without_its_base(fitted, photos):
    data = pickle.dumps(fitted)
    assert len(data) < 2000
    found = pickle.loads(data).transform(photos[:3])  # noqa: S301
    # To a tolerance: the new engine may measure another number of images at once, which rounds otherwise.
    np.testing.assert_allclose(found, fitted.transform(photos[:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_runs_in_other_processes(fitted, photos):
    found = Parallel(n_jobs=2)(delayed(fitted.transform)([photo]) for photo in photos[:4])
    np.testing.assert_allclose(np.concatenate(found), fitted.transform(photos[:4]), rtol=1e-4, atol=1e-5)


def test_set_output_names_the_columns(photos):
    frame = extractor().set_output(transform="pandas").fit_transform(photos[:2])
    assert list(frame.columns[:2]) == ["featureextractor0", "featureextractor1"]
    assert frame.shape == (2, 512)


def test_several_layers_side_by_side(photos):
    both = extractor(layer=("features.3", "avgpool"), pool="avg").fit_transform(photos[:2])
    assert both.shape == (2, 128 + 512)
    np.testing.assert_allclose(both[:, -512:], extractor(pool="avg").fit_transform(photos[:2]), rtol=1e-4, atol=1e-5)


def test_a_cache_spares_the_base(photo_folder, photos, tmp_path, monkeypatch):
    extract(photo_folder, tmp_path / "f.h5", base="squeezenet1_1", weights="embedded")
    cached = extractor(cache=tmp_path / "f.h5").fit(photos)
    plain = cached.transform(photos)
    monkeypatch.setattr(cached._runner._embedder, "_engine", None)  # whoever runs the base now fails
    np.testing.assert_array_equal(cached.transform(photos), plain)
    with pytest.raises(TypeError):
        cached.transform([Image.open(photos[0])])


def test_a_cache_of_another_recipe_is_refused(photo_folder, photos, tmp_path):
    extract(
        photo_folder, tmp_path / "f.h5", base="squeezenet1_1", weights="embedded", layer=("features.12",), pool="avg"
    )
    with pytest.raises(RecipeMismatchError, match="with pool='avg', and 'none' is asked for; leave out the cache"):
        extractor(cache=tmp_path / "f.h5", layer="features.12").fit(photos)
    with pytest.raises(RecipeMismatchError, match="has no layer 'avgpool'"):
        extractor(cache=tmp_path / "f.h5", pool="avg").fit(photos)


def test_bad_images_are_named(fitted, photos, tmp_path):
    with pytest.raises(ImageError, match="missing: gone"):
        fitted.transform([photos[0], "gone.jpg"])
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ImageError, match=r"not-an-image: .*text"):
        fitted.transform([tmp_path / "text.jpg"])
    with pytest.raises(ImageError, match="image 1: an array float64"):
        fitted.transform([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3))])
    (tmp_path / "cut.jpg").write_bytes(Path(photos[0]).read_bytes()[:-200])
    with Image.open(tmp_path / "cut.jpg") as cut, pytest.raises(ImageError, match="cannot be read"):
        fitted.transform([cut])
    with pytest.raises(ImageError, match="unreadable"):
        fitted.transform([tmp_path])


def test_what_is_no_list_of_images_is_refused(fitted):
    with pytest.raises(ImageError, match=r"one\.jpg does not exist"):
        fitted.transform("one.jpg")
    with pytest.raises(SourceError, match="no image"):
        fitted.transform([])
    with pytest.raises(BaseError):
        FeatureExtractor("squeezenet1_1", weights="missing.safetensors").fit(["a.jpg"])
