"""A trained model: the base and the head of a model folder, from images to answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from pipeline.config import BaseSettings, Recipe, RerunSettings
from pipeline.config.options import RerunOptions
from pipeline.config.signatures import takes
from pipeline.errors import BaseError, ModelError, RecipeMismatchError, SettingsError
from pipeline.files import TUNED
from pipeline.heads import Head
from pipeline.heads.unlikeness import FILE as UNLIKENESS_FILE
from pipeline.heads.unlikeness import Unlikeness
from pipeline.images.loading import BATCH
from pipeline.models.exported import number, ranked
from pipeline.models.folder import BaseRecord, ModelRecord, read_folder
from pipeline.models.seen import FILE as SEEN_FILE
from pipeline.models.seen import Seen
from pipeline.sources import Record, from_paths
from pipeline.text import plural

if TYPE_CHECKING:
    from pipeline.bases import Base
    from pipeline.engines.embedder import Embedded, Embedder, EmbeddersBeside
    from pipeline.store import FeatureStore


@takes(RerunSettings)
def load_model(folder: str | Path, **options: Unpack[RerunOptions]) -> Model:
    """Open a model folder, all of whose files are checked; the base itself is loaded when it is first needed.

    `options` are the fields of `RerunSettings`: `weights` names a file with the base's weights where the one recorded
    has moved, `device` and `engine` say what runs the base, ... Raises `ModelError`.
    """
    return open_model(folder, RerunSettings.of(options))


def open_model(folder: str | Path, settings: RerunSettings) -> Model:
    """Open a model folder as `load_model` does, with options that are checked already."""
    folder = Path(folder)
    record, head = read_folder(folder)
    return Model(folder, record, head, settings)


class Model:
    """A trained model: images to features to answers.

    `record` is the content of model.json, `head` the trained head.
    """

    def __init__(self, folder: Path, record: ModelRecord, head: Head, settings: RerunSettings) -> None:
        self.folder = folder
        self.record = record
        self.head = head
        self._settings = settings

    def __repr__(self) -> str:
        """Name folder, head, target and base."""
        classes = self.record.classes
        answered = f"numbers of {self.record.target!r}"
        if classes is not None:
            named = ", ".join(classes[:5]) + (f", ... ({len(classes)})" if len(classes) > 5 else "")
            answered = f"classes {named}"
        base = self.record.base
        weights = "fine-tuned" if base.fine_tuned else f"weights {base.weights}"
        beside = "".join(f" beside {one.base.name}" for one in self.record.beside)
        told = f"head {self.head.name}, {answered}, base {base.name} with {weights}{beside}"
        return f"Model({str(self.folder)!r}: {told})"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes that it tells apart; None where it predicts a number."""
        return self.record.classes

    @property
    def is_balanced(self) -> bool:
        """Probabilities of classes that occur equally often, not as they do."""
        settings = (self.record.request or {}).get("settings")
        return isinstance(settings, dict) and settings.get("class_weight") == "balanced"

    @property
    def views(self) -> int:
        """Views of an image that are asked about: the plain one, or all of the recipe where their mean was scored."""
        return self.record.recipe.views + 1 if self.record.score_views == "mean" else 1

    @cached_property
    def seen(self) -> Seen | None:
        """The images that it was trained on; None where its folder does not say so, as those of version 0.1.0."""
        return Seen.read(self.folder) if SEEN_FILE in (self.record.files or ()) else None

    @cached_property
    def unlikeness(self) -> Unlikeness | None:
        """The measure of how unlike the training pictures an image is; None where none was kept.

        A fine-tuned model has none, since its training moves the features.
        """
        if UNLIKENESS_FILE not in (self.record.files or ()):
            return None
        found = Unlikeness.read(self.folder)
        if sum(found.widths) != self.head.dimensions:
            raise ModelError(f"{self.folder / UNLIKENESS_FILE} does not fit its head; train it again")
        return found

    @cached_property
    def base(self) -> Base:
        """The base with the very weights of the training; any others are an error. The first, where there are more."""
        return self._load_base(self.record.base, self.record.recipe)

    def _load_base(self, known: BaseRecord, recipe: Recipe) -> Base:
        from pipeline.bases import base_of  # 180 MB of torchvision that a head on features does without

        weights = known.weights if known.fine_tuned else self._settings.weights or known.weights
        fine_tuned = self.folder / TUNED if known.fine_tuned else None
        try:
            return base_of(recipe, weights, seed=known.seed, fine_tuned=fine_tuned)
        except (BaseError, RecipeMismatchError) as error:
            way_out = ""
            if not known.fine_tuned and "/" in weights and not Path(weights).is_file():
                way_out = "; if the file has moved, give --weights FILE"
            raise ModelError(f"{self.folder}: its base cannot be loaded: {error}{way_out}") from error

    @cached_property
    def embedder(self) -> Embedder | EmbeddersBeside:
        """The embedder of the features that the head takes. Raises `ModelError` where they do not fit.

        A base is loaded only where the graph of its recipe is not at hand.
        """
        from pipeline.engines.embedder import EmbeddersBeside

        if not self.record.beside:
            embedder: Embedder | EmbeddersBeside = self._embedder(lambda: self.base, *self.record.bases[0])
        elif self._settings.weights is not None:
            raise SettingsError(f"{self.folder} has {len(self.record.bases)} bases, and weights=... names one file")
        else:
            embedder = EmbeddersBeside(
                [
                    self._embedder(partial(self._load_base, known, recipe), known, recipe)
                    for known, recipe in self.record.bases
                ]
            )
        if embedder.dimensions != self.head.dimensions:
            raise ModelError(
                f"{self.folder}: a head of {self.head.dimensions} features does not fit its base, which gives "
                f"{embedder.dimensions}; train it again"
            )
        return embedder

    def _embedder(self, load: Callable[[], Base], known: BaseRecord, recipe: Recipe) -> Embedder:
        """Make the embedder of one base."""
        from pipeline.engines.embedder import Embedder

        if self.views == 1:
            recipe = recipe.model_copy(update={"views": 0, "augment": ()})
        named = self._settings.weights is not None  # these are compared with those of the training
        lost = known.fine_tuned and not (self.folder / TUNED).is_file()
        try:
            return Embedder(load() if named or lost else load, recipe, self._settings)
        except BaseError as error:
            raise ModelError(f"{self.folder}: its base cannot be loaded: {error}") from error

    def open(self) -> Self:
        """Load the base, and all else, now, where the first image would do so; raises `ModelError` for another base."""
        self.embedder, self.unlikeness  # noqa: B018 - they are kept
        return self

    def embed(self, records: Sequence[Record], *, skip: Callable[[bytes], bool] | None = None) -> Iterator[Embedded]:
        """Embed the images of `records`, batch by batch, in their order; an image without finite features is bad.

        Contents that `skip` says yes to, by their sha256, are duplicates and get no features.
        """
        for batch in self.embedder.run(records, batch_size=self._settings.batch_or(BATCH), seen=skip):
            yield batch.finite()

    def predict(
        self,
        images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        top: int = 5,
        no_unknown: bool = False,
    ) -> Answers:
        """Answer for image files, or for all images of a folder, in the order asked.

        Each answer is a dict: `id` with `label`, `score`, `top` and `set` (classes), `value` and `interval` (numbers),
        or `error`, why the image has none. `set` holds the true class as often as `--coverage` of the training says;
        it is left out where there were too few rows to tell. `unlikeness` says how unlike the training pictures the
        image is, `unknown` whether that is above 1, as it is for 5 % of these pictures beside the others, and `nearest`
        which of them is nearest; these are left out with `no_unknown`, or where the model cannot tell.

        >>> load_model("artifacts/insects").predict("new.jpg")  # doctest: +SKIP
        [{'id': 'new.jpg', 'label': 'ants', 'score': 0.96, 'top': [['ants', 0.96], ['bees', 0.04]], 'set': ['ants'],
          'unknown': False, 'unlikeness': 0.81, 'nearest': 'train/ants/154124431_65460430f2.jpg'}]
        """
        self.open()
        records = from_paths(images).records
        return [answer for batch in self.answer_batches(records, top=top, no_unknown=no_unknown) for answer in batch]

    def answer_batches(self, records: Sequence[Record], *, top: int = 5, no_unknown: bool = False) -> Iterator[Answers]:
        """Yield the answers to the images of `records`, batch by batch, in their order."""
        waiting = iter(records)
        for batch in self.embed(records):
            answers: Answers = []
            if batch.indices:
                features = joined(batch.layers, views=self.views)
                answers = self.answers(features, top=top, no_unknown=no_unknown)
            by_index = dict(zip(batch.indices, answers, strict=True))
            by_index |= {image.index: {"error": str(image.error)} for image in batch.images if image.error is not None}
            yield [{"id": record.id, **by_index[record.index]} for record in islice(waiting, len(batch))]

    def layers_of(self, store: FeatureStore) -> list[str]:
        """Return the layers of `store` that the head takes, side by side.

        Raises `RecipeMismatchError` unless they are made by the recipes that the head knows, in their order.
        """
        from pipeline.store import SideBySide, layer_names  # HDF5, which images do without

        stores = store.stores if isinstance(store, SideBySide) else (store,)
        bases = self.record.bases
        if len(stores) != len(bases):
            listed = ", ".join(base.name for base, _ in bases)
            raise RecipeMismatchError(
                f"{self.folder} takes the features of {plural(len(bases), 'base')}, {listed}, and "
                f"{plural(len(stores), 'feature file')} is given; give one of each, in this order"
            )
        way_out = f"extract again with the recipe of {self.folder}, or train on this file"
        for one, (_, recipe) in zip(stores, bases, strict=True):
            recipe.refuse_without(one.recipe, where=one.path, way_out=way_out, views=self.views > 1)
        if len(bases) == 1:
            return list(self.record.recipe.layers)
        named = layer_names([base.name for base, _ in bases], [recipe.layers for _, recipe in bases])
        return [name for names in named for name in names]

    def answers(self, features: NDArray[np.float32], *, top: int = 5, no_unknown: bool = False) -> Answers:
        """Answer for `features` (B, D) or (B, V, D): `top` classes with scores and the set, or value and interval.

        The plain view, which comes first, says how unlike the training pictures an image is.
        """
        answers = self._answers(features, top)
        if no_unknown or self.unlikeness is None:
            return answers
        scores, nearest = self.unlikeness.of_images(features[:, 0] if features.ndim == 3 else features)
        found = zip(answers, scores.tolist(), nearest, strict=True)
        return [{**answer, "unknown": score > 1, "unlikeness": score, "nearest": id} for answer, score, id in found]

    def _answers(self, features: NDArray[np.float32], top: int) -> Answers:
        scores = self.head.predict_proba(features)
        if self.record.classes is None:
            halves = self.head.half_widths(features)
            known = [None] * len(scores) if halves is None else halves.tolist()
            return [number(value, half) for value, half in zip(scores.tolist(), known, strict=True)]
        return [ranked(self.record.classes, row, top, least=self.head.least_in_set) for row in scores]


def start_base(settings: BaseSettings, *, seed: int) -> Base:
    """Load the base that the settings name, which may be that of a fine-tuned model, by its folder.

    Such a base is one like any other from then on: a network with a file of weights, under the transform of its
    training. Raises `BaseError`, `ModelError`, or `SettingsError` for options that the folder answers.
    """
    from dataclasses import replace

    from pipeline.bases import is_known, load_base

    folder = Path(settings.base)
    if is_known(settings.base) or not (folder / "model.json").exists():
        return load_base(settings.base, settings.weights, seed=seed, size=settings.size, fit=settings.fit)
    given = [name for name in ("weights", "size", "fit") if name in settings.model_fields_set]
    twice = [name for name in given if getattr(settings, name) is not None]
    if twice:
        raise SettingsError(f"{twice[0]} comes from the model folder {folder} that base names; leave it out")
    model = load_model(folder, device="cpu")
    known = model.record.base
    if model.record.beside or not known.fine_tuned:
        raise SettingsError(
            f"{folder} has no base of its own, which fine-tuning makes; give --base {known.name} --weights "
            f"{known.weights}"
        )
    return replace(model.base, weights=str((folder / TUNED).resolve()))


Answers = list[dict[str, Any]]


def joined(layers: Iterable[NDArray[np.float32]], *, views: int = 1) -> NDArray[np.float32]:
    """Join several layers' features side by side, each flattened: (B, D1 + D2 + ...), or (B, V, ...) of several views.

    >>> joined([np.zeros((2, 3), np.float32), np.zeros((2, 4, 5), np.float32)]).shape
    (2, 23)
    """
    flat = [layer.reshape(len(layer), *([views] if views > 1 else []), -1) for layer in layers]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=-1)
