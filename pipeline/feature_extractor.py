"""Feature extractor: a frozen base as a scikit-learn transformer, images in, features out.

>>> from sklearn.pipeline import make_pipeline
>>> from sklearn.svm import LinearSVC
>>> model = make_pipeline(FeatureExtractor("squeezenet1_1", weights="embedded"), LinearSVC())
>>> model.fit(["ant.jpg", "bee.jpg"], ["ant", "bee"])  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from pipeline.bases import Base, load_base
from pipeline.config import Pool, Recipe, RunSettings
from pipeline.engines.embedder import Embedder
from pipeline.errors import ImageError, SourceError
from pipeline.files import digest_bytes
from pipeline.images import decoding
from pipeline.images.loading import Loaded
from pipeline.models.model import joined
from pipeline.store import FeatureStore
from pipeline.text import shown

Features = NDArray[np.float32]


class FeatureExtractor(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A transformer of n images to features (n, D) float32.

    Images are paths, PIL images, or uint8 arrays (H, W), (H, W, 3) or (n, H, W, 3). `base`, `weights`, `size`, `layer`
    (one name or several), `pool` and `seed` are those of ``pipeline extract``; `engine` and `device` say what runs the
    base, `batch_size` images at a time. `cache` is a feature file that ``pipeline extract`` made with the same recipe:
    images whose content it holds are read from it and not computed.

    It learns nothing from images. It is cloned and pickled by its parameters alone; the base is loaded where it is
    needed. Raises `ImageError` for an image that cannot be read, `BaseError` where the base cannot be had.
    """

    def __init__(
        self,
        base: str = "resnet18",
        *,
        weights: str = "DEFAULT",
        size: int | None = None,
        layer: str | Sequence[str] = "avgpool",
        pool: Pool = "none",
        engine: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto",
        device: str = "auto",
        batch_size: int = 16,
        seed: int = 13,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self.base = base
        self.weights = weights
        self.size = size
        self.layer = layer
        self.pool = pool
        self.engine = engine
        self.device = device
        self.batch_size = batch_size
        self.seed = seed
        self.cache = cache

    def fit(self, X: object, y: object = None) -> Self:
        """Load the base and find the number of features; `X` is only looked at for being there."""
        _images(X)
        self._runner = _Runner(self)
        self.digest_ = self._runner.base.digest
        self.n_features_out_ = self._runner.dimensions
        return self

    def transform(self, X: object) -> Features:
        """Return the features (n, D) of the images of `X`."""
        check_is_fitted(self, "n_features_out_")
        images = _images(X)
        if not hasattr(self, "_runner"):
            self._runner = _Runner(self)
        return self._runner.features(images)

    if TYPE_CHECKING:  # scikit-learn's, typed

        def fit_transform(self, X: object, y: object = None) -> Features:
            """Return the features (n, D) of the images of `X`."""

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return one name for each column: featureextractor0, featureextractor1, ..."""
        check_is_fitted(self, "n_features_out_")
        return np.array([f"featureextractor{column}" for column in range(self.n_features_out_)], dtype=object)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_runner", None)  # a session of an engine belongs to its process
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        return tags


class _Runner:
    """The loaded base of an extractor, its engine, and the rows of its cache by content."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        layers = (extractor.layer,) if isinstance(extractor.layer, str) else tuple(extractor.layer)
        self.base: Base = load_base(extractor.base, extractor.weights, seed=extractor.seed, size=extractor.size)
        recipe = Recipe.plain(
            base=extractor.base,
            weights=self.base.digest,
            layers=layers,
            pool=extractor.pool,
            transform=self.base.transform.describe(),
            pixels=decoding.POLICY_VERSION,
        )
        settings = RunSettings.of({"engine": extractor.engine, "device": extractor.device})
        self._embedder = Embedder(self.base, recipe, settings)
        self._batch_size = extractor.batch_size
        self.dimensions = self._embedder.dimensions
        self._cache = None if extractor.cache is None else _Cache(Path(extractor.cache), recipe)

    def features(self, images: Sequence[Any]) -> Features:
        """Return the features (n, D); compute only those that the cache does not hold."""
        out = np.empty((len(images), self.dimensions), dtype=np.float32)
        for batch in self._embedder.compute(self._batches(images, out)):
            out[batch.indices] = joined(batch.layers)
        return out

    def _batches(self, images: Sequence[Any], out: Features) -> Generator[list[Loaded], None, None]:
        """Fill in the rows of `out` that the cache holds, and load the images of the others."""
        waiting: list[Loaded] = []
        for place, image in enumerate(images):
            data = _file_bytes(image)
            known = self._cache.find(data) if self._cache is not None and data is not None else None
            if known is not None:
                out[place] = known
                continue
            rgb = _rgb(image, data, place)
            with decoding.preprocessing():
                waiting.append(Loaded(place, pixels=self.base.transform.preprocess(rgb)[None]))
            if len(waiting) == self._batch_size:
                yield waiting
                waiting = []
        if waiting:
            yield waiting


class _Cache:
    """Rows of a feature file by the content of their images."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self._layers = recipe.layers
        self._store = FeatureStore.open(path)
        found = self._store.recipe
        recipe = recipe.model_copy(update={"dtype": found.dtype})  # rounded features serve as well
        recipe.refuse_without(found, where=path, way_out="leave out the cache")
        self._row_of = {self._store.sha256[row].tobytes(): int(row) for row in self._store.select()}

    def find(self, data: bytes) -> Features | None:
        """Return the features (D,) of a file with this content, or None where it is unknown."""
        row = self._row_of.get(digest_bytes(data))
        if row is None:
            return None
        parts = [self._store.features(layer, np.array([row])) for layer in self._layers]
        if self._store.recipe.views:  # the plain view comes first
            parts = [part[:, 0] for part in parts]
        row_features: Features = joined([part.astype(np.float32) for part in parts])[0]
        return row_features


def _images(X: Any) -> Sequence[Any]:
    """Return the images of `X`, one by one; a single path or image is one; raise `SourceError` where there is none."""
    if isinstance(X, str | os.PathLike | Image.Image):
        return [X]
    images = list(_unpacked(X))
    if not images:
        raise SourceError("no image is given")
    return images


def _unpacked(X: Any) -> Iterator[Any]:
    """Yield images, also those of a column of paths, as tables and splitters give it."""
    for image in getattr(X, "to_numpy", lambda: X)():
        one_cell = isinstance(image, np.ndarray) and image.shape == (1,)
        yield image[0] if one_cell else image


def _file_bytes(image: Any) -> bytes | None:
    """Read the file that `image` names; return None for an image in memory; raise `ImageError`."""
    if not isinstance(image, str | os.PathLike):
        return None
    try:
        return Path(image).read_bytes()
    except (FileNotFoundError, ValueError):  # a NUL in it, for one
        raise ImageError("missing", f"{shown(image)} does not exist") from None
    except OSError as error:
        raise ImageError("unreadable", f"{image}: {error.strerror}") from None


def _rgb(image: Any, data: bytes | None, place: int) -> Image.Image:
    """Decode an image to RGB; raise `ImageError` with the file or the place in the list."""
    try:
        if data is not None:
            return decoding.decode(data)
        if isinstance(image, Image.Image):
            return decoding.of_image(image)
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
            raise ImageError("not-an-image", f"an array {array.dtype} {array.shape}; give uint8 (H, W, 3)")
        return decoding.of_image(Image.fromarray(array))
    except ImageError as error:
        where = image if data is not None else f"image {place}"
        raise ImageError(error.reason, f"{where}: {error.detail}") from None
