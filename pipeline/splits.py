"""Splits and folds of rows: stratified, and a group of rows never on both sides: identical content, one patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.text import plural

Codes = NDArray[np.int64]

NOTHING_HELD_OUT = "no row is held out: what is measured is measured on training rows, out of fold where it says so"


def make_folds(y: NDArray[np.generic], groups: Codes, *, folds: int, seed: int) -> Codes:
    """Assign every row (n,) a fold, 0 to `folds` - 1: class shares alike in all folds, a group whole in one.

    `y` is class codes, or numbers, whose range is then alike in all folds. Groups are dealt out like cards, the large
    ones first, so that a class of fewer than `folds` groups is no trouble: the folds that get none of it are simply
    without. A group of several classes counts as that of most of its rows.
    """
    order, of_group = _dealing_order(y, groups, seed=seed)
    fold_of_group = np.empty(len(order), dtype=np.int64)
    fold_of_group[order] = np.arange(len(order)) % folds
    return fold_of_group[of_group]


def hold_out(y: NDArray[np.generic], groups: Codes, *, share: float, seed: int) -> NDArray[np.bool_]:
    """Return a mask (n,) of the rows held out, `share` of each class's groups; never all of a class's groups."""
    order, of_group = _dealing_order(y, groups, seed=seed)
    places = np.arange(len(order))
    # Evenly spaced in the order of dealing, so that each class, or range of numbers, gives its share.
    picked = np.floor((places + 1) * share) > np.floor(places * share)
    if not picked.any():  # the share is less than one group
        picked[len(order) // 2] = True
    held = np.empty(len(order), dtype=bool)
    held[order] = picked
    if np.issubdtype(y.dtype, np.integer):
        _give_back(held, y.astype(np.int64), of_group)
    return np.asarray(held[of_group])


def _dealing_order(y: NDArray[np.generic], groups: Codes, *, seed: int) -> tuple[Codes, Codes]:
    """Sort groups by class and size (or by number, roughly), random within; return them and the group of every row.

    Groups are numbered 0 to G - 1.
    """
    _, of_group = np.unique(groups, return_inverse=True)
    of_group = of_group.astype(np.int64)
    sizes = np.bincount(of_group)
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(sizes))
    if np.issubdtype(y.dtype, np.integer):
        value = _most_frequent(y.astype(np.int64), of_group)
        return shuffled[np.lexsort((-sizes[shuffled], value[shuffled]))], of_group
    means = np.bincount(of_group, weights=y.astype(np.float64) / sizes[of_group])
    ranks = np.empty(len(sizes))
    ranks[np.argsort(means, kind="stable")] = np.arange(len(sizes))
    # Neighbours in value come in random order, and ten ranks are few enough that each fold has all of the range.
    jitter = generator.uniform(0, min(10, len(sizes)), len(sizes))
    return np.argsort(ranks + jitter, kind="stable"), of_group


def _most_frequent(y: Codes, of_group: Codes) -> Codes:
    """Return the class (G,) that most rows of each group have; of several the first."""
    pairs, counts = np.unique(np.stack([of_group, y]), axis=1, return_counts=True)
    order = np.lexsort((-counts, pairs[0]))
    return np.asarray(pairs[1][order][np.unique(pairs[0][order], return_index=True)[1]])


def _give_back(held: NDArray[np.bool_], y: Codes, of_group: Codes) -> None:
    """Clear in the mask `held` (G,) of groups one group of each class of which no row is left to learn from."""
    for code in np.setdiff1d(y, y[~held[of_group]]):
        if held[of_group[y == code]].all():  # a group that was given back may hold this class too
            held[of_group[y == code][0]] = False


def group_codes(contents: NDArray[np.uint8]) -> Codes:
    """Return one code for each distinct content, from digests (n, 32)."""
    if len(contents) == 0:
        return np.zeros(0, dtype=np.int64)
    keys = np.ascontiguousarray(contents).view(f"V{contents.shape[1]}").ravel()
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class Split:
    """Positions of the rows to learn from and of those held out, if any: val, and test where there is one beside it."""

    train: Codes
    held_out: dict[str, Codes]
    notices: list[str]

    @property
    def parts(self) -> dict[str, Codes]:
        """Positions of all rows by part, held-out ones first."""
        return {**self.held_out, "train": self.train}


def split_rows(
    splits: Sequence[str],
    y: NDArray[np.generic],
    groups: Codes,
    *,
    share: float,
    seed: int,
    alike: str = "the same content",
    test: float = 0.0,
    chooses: bool = False,
) -> Split:
    """Split by the rows' own split (train, val, test or empty, (n,)) where they have one, else hold out, stratified.

    A `share` of 0 holds out nothing where there is no split; `test` is that of rows for the last word, where there is
    no split of that name. Where val `chooses` something, it is held out of the training rows where only test is named:
    the last word is on rows that chose nothing.
    Training rows that are in one of the `groups` (n,) of a held-out row are left out; `alike` says what rows of a group
    have in common.
    """
    named, rows = np.array(splits, dtype=object), np.arange(len(y))
    held_out = {name: rows[named == name] for name in ("val", "test") if (named == name).any()}
    train, rest = rows[named == "train"], rows[named == ""]
    notices = []
    if held_out and len(train) and len(rest):
        notices.append(f"{plural(len(rest), 'row')} of no split left out")
    train = train if len(train) else rest if held_out else rows
    for name, wanted in (("test", test), ("val", 0 if "test" in held_out and not chooses else share)):
        if wanted and name not in held_out:
            held = hold_out(y[train], groups[train], share=wanted, seed=seed)
            train, held_out[name] = train[~held], train[held]
    if not held_out:
        return Split(train, {}, [NOTHING_HELD_OUT])
    if "val" not in held_out:
        held_out = {"val": held_out["test"]}
        notices.append("there is no val split: the test split is scored as val")
    held_out = {name: held_out[name] for name in ("val", "test") if name in held_out}
    twins = np.isin(groups[train], groups[np.concatenate(list(held_out.values()))])
    if twins.any():
        notices.append(f"{plural(int(twins.sum()), 'training row')} left out: a held-out row has {alike}")
    return Split(train[~twins], held_out, notices)
