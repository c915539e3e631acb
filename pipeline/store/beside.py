"""Several feature files of the same images side by side, joined by id: what two bases see of each image."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RecipeMismatchError, SettingsError, StoreError
from pipeline.sources import Target
from pipeline.store.header import GOOD, PENDING
from pipeline.store.reader import FeatureStore
from pipeline.text import plural, shown

AGAIN = "bring all files up to date: run their extract commands again on the same images and labels"


def open_stores(paths: str | Path | Sequence[str | Path]) -> FeatureStore:
    """Open one feature file, or several of the same images side by side. Raises as `FeatureStore.open` does."""
    several = [paths] if isinstance(paths, str | Path) else list(paths)
    if not several:
        raise SettingsError("no feature file is given; give one, or several of the same images")
    stores: list[FeatureStore] = []
    try:
        for path in several:
            stores.append(FeatureStore.open(path))
        return stores[0] if len(stores) == 1 else SideBySide(stores)
    except BaseException:
        for store in stores:
            store.close()
        raise


def layer_names(bases: Sequence[str], layers: Sequence[Sequence[str]]) -> list[list[str]]:
    """Name the layers of several files by the base, and by its number where a base comes twice.

    >>> layer_names(["resnet18", "resnet50", "resnet18"], [["avgpool"], ["avgpool"], ["avgpool"]])
    [['resnet18:avgpool'], ['resnet50:avgpool'], ['resnet18#2:avgpool']]
    """
    met: Counter[str] = Counter()
    named = []
    for base, own in zip(bases, layers, strict=True):
        met[base] += 1
        label = base if met[base] == 1 else f"{base}#{met[base]}"
        named.append([f"{label}:{layer}" for layer in own])
    return named


class SideBySide(FeatureStore):
    """The rows of the first of several files, with the features that all of them have of the same images.

    Its ids, splits and labels are the first's. Layers are called BASE:LAYER. A row that another file lacks, or has no
    features for, has none here either, and `notices` say how many those are. Raises `StoreError` where the files
    disagree about an image, `RecipeMismatchError` where their views differ.
    """

    def __init__(self, stores: Sequence[FeatureStore]) -> None:
        first = stores[0]
        super().__init__(first.path, first._parts)
        self.stores = tuple(stores)
        self._open_files = first._open_files
        names = layer_names([store.recipe.base for store in stores], [list(store.layers) for store in stores])
        self._homes = {
            name: (number, layer)
            for number, (store, own) in enumerate(zip(stores, names, strict=True))
            for name, layer in zip(own, store.layers, strict=True)
        }
        for other in stores[1:]:
            _refuse_other_views(first, other)
        self._places = [_places(first, other) for other in stores]
        for other, places in zip(stores[1:], self._places[1:], strict=True):
            _refuse_disagreement(first, other, places)

    @property
    def paths(self) -> list[Path]:
        """Paths of the files."""
        return [store.path for store in self.stores]

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Shape of one row for each layer of each file."""
        return {name: self.stores[number].layers[layer] for name, (number, layer) in self._homes.items()}

    @cached_property
    def statuses(self) -> NDArray[np.uint8]:
        """1 for every row with features in all files; else the status in the first that has none, 0 if it lacks it."""
        found = np.full(len(self), GOOD, dtype=np.uint8)
        for store, places in zip(self.stores, self._places, strict=True):
            own = np.where(places >= 0, store.statuses[np.maximum(places, 0)], PENDING)
            found = np.where(found == GOOD, own, found).astype(np.uint8)
        return found

    @cached_property
    def fingerprint(self) -> str:
        """The sha256, in hexadecimal, of the fingerprints of all files."""
        return hashlib.sha256("\n".join(store.fingerprint for store in self.stores).encode()).hexdigest()

    @property
    def notices(self) -> list[str]:
        """Counts of the images that are left out, and why."""
        found = []
        for store, places in zip(self.stores[1:], self._places[1:], strict=True):
            missing, more = int((places < 0).sum()), len(store) - int((places >= 0).sum())
            names = shown(self.path), shown(store.path)
            for count, name in ((missing, names[0]), (more, names[1])):
                if count:
                    found.append(f"{plural(count, 'image')} of {name} alone, and left out")
        bad = int(((self.statuses != GOOD) & (self.stores[0].statuses == GOOD)).sum())
        bad -= int(np.logical_or.reduce([places < 0 for places in self._places])[self.stores[0].statuses == GOOD].sum())
        return [*found, f"{plural(bad, 'image')} bad in another file alone, and left out"] if bad else found

    def by_store(self, layers: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the plain names of `layers`, of each file. Raises `SettingsError` where a file has none of them."""
        found: list[list[str]] = [[] for _ in self.stores]
        for name in layers:
            number, layer = self._homes[name]
            found[number].append(layer)
        for store, own in zip(self.stores, found, strict=True):
            if not own:
                raise SettingsError(f"no layer of {store.path} is asked for; leave it out, or name one of its layers")
        return [tuple(own) for own in found]

    def close(self) -> None:
        """Close the files of all."""
        for store in self.stores:
            store.close()

    def column(self, name: str) -> NDArray[Any]:
        """Read a whole column of the first file, or a layer: NaN in rows without features."""
        return self._rows(name, np.arange(len(self))) if name in self._homes else super().column(name)

    def _layer_column(self, layer: str | None) -> str:
        if layer in self._homes:
            return str(layer)
        raise SettingsError(f"{self.path} and others have the layers {', '.join(self._homes)}; say which one")

    def _rows(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        if name not in self._homes:
            return super()._rows(name, rows)
        number, layer = self._homes[name]
        places = self._places[number][rows]
        found = self.stores[number].features(layer, np.maximum(places, 0))
        found[places < 0] = np.nan
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._again, (self.stores,)

    @classmethod
    def _again(cls, stores: Sequence[FeatureStore]) -> Self:
        return cls(stores)


def _places(first: FeatureStore, other: FeatureStore) -> NDArray[np.int64]:
    """Return the row (N,) of each id of the `first` in the `other`, -1 where it is not there."""
    numbers = {id: number for number, id in enumerate(other.ids)}
    return np.array([numbers.get(id, -1) for id in first.ids], dtype=np.int64)


def _refuse_other_views(first: FeatureStore, other: FeatureStore) -> None:
    for name in ("views", "augment", "seed"):
        mine, theirs = getattr(first.recipe, name), getattr(other.recipe, name)
        if mine != theirs:
            raise RecipeMismatchError(
                f"{other.path} was made with {name}={theirs!r} and {first.path} with {mine!r}; side by side the views "
                "have to be the same: extract one of them again"
            )


def _refuse_disagreement(first: FeatureStore, other: FeatureStore, places: NDArray[np.int64]) -> None:
    """Raise `StoreError` where an id has another content, split or label in the `other`."""
    shared = np.flatnonzero(places >= 0)
    there = places[shared]
    if not len(shared):
        raise StoreError(f"{first.path} and {other.path} have no image in common; give files of the same images")

    def refuse(differ: NDArray[np.bool_], what: str) -> None:
        if differ.any():
            name, count = shown(first.ids[shared[np.flatnonzero(differ)[0]]]), plural(int(differ.sum()), "image")
            raise StoreError(f"{first.path} and {other.path} differ in {what} of {count}, such as {name}; {AGAIN}")

    good = (first.statuses[shared] == GOOD) & (other.statuses[there] == GOOD)
    refuse(good & (first.sha256[shared] != other.sha256[there]).any(axis=1), "the content")
    refuse(first.splits[shared] != other.splits[there], "the split")
    for name in first.targets.keys() & other.targets.keys():
        refuse(_differ(first.targets[name].take(shared), other.targets[name].take(there)), f"the {name!r}")


def _differ(mine: Target, theirs: Target) -> NDArray[np.bool_]:
    """Return the mask (n,) of rows whose labels are known and not the same."""
    known = mine.known & theirs.known
    if mine.names is None or theirs.names is None:
        return np.asarray(known & ((mine.names is None) != (theirs.names is None) or mine.values != theirs.values))
    codes = {name: code for code, name in enumerate(mine.names)}
    recoded = np.array([codes.get(name, -1) for name in theirs.names], dtype=np.int64)
    return np.asarray(known & (mine.values != recoded[np.maximum(theirs.values, 0)]))
