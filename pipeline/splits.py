"""Splits and folds of rows: stratified, and identical content never on both sides."""

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

    `y` is class codes, or numbers, whose range is then alike in all folds. Groups are dealt out like cards, so that a
    class of fewer than `folds` groups is no trouble: the folds that get none of it are simply without.
    """
    order, of_group = _dealing_order(y, groups, seed=seed)
    fold_of_group = np.empty(len(order), dtype=np.int64)
    fold_of_group[order] = np.arange(len(order)) % folds
    return fold_of_group[of_group]


def hold_out(y: NDArray[np.generic], groups: Codes, *, share: float, seed: int) -> NDArray[np.bool_]:
    """Return a mask (n,) of the rows held out, `share` of each class's groups; never of a class's only group."""
    order, of_group = _dealing_order(y, groups, seed=seed)
    places = np.arange(len(order))
    # Evenly spaced in the order of dealing, so that each class, or range of numbers, gives its share.
    picked = np.floor((places + 1) * share) > np.floor(places * share)
    if not picked.any():  # the share is less than one group
        picked[len(order) // 2] = True
    held = np.empty(len(order), dtype=bool)
    held[order] = picked
    if np.issubdtype(y.dtype, np.integer):
        held &= ~_only_one_of_its_class(y.astype(np.int64), of_group, len(order))
    return np.asarray(held[of_group])


def _dealing_order(y: NDArray[np.generic], groups: Codes, *, seed: int) -> tuple[Codes, Codes]:
    """Sort groups by class (or by number, roughly), random within; return them and the group (0..G-1) of every row."""
    _, first, of_group = np.unique(groups, return_index=True, return_inverse=True)
    value = y[first]
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(first))
    if np.issubdtype(y.dtype, np.integer):
        return shuffled[np.argsort(value[shuffled], kind="stable")], of_group.astype(np.int64)
    ranks = np.empty(len(first))
    ranks[np.argsort(value, kind="stable")] = np.arange(len(first))
    # Neighbours in value come in random order, and ten ranks are few enough that each fold has all of the range.
    jitter = generator.uniform(0, min(10, len(first)), len(first))
    return np.argsort(ranks + jitter, kind="stable"), of_group.astype(np.int64)


def _only_one_of_its_class(y: Codes, of_group: Codes, groups: int) -> NDArray[np.bool_]:
    """Return a mask of the groups (G,) beside which their class has no other."""
    value = np.zeros(groups, dtype=np.int64)
    value[of_group] = y
    return np.asarray(np.bincount(value)[value] == 1)


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


def split_rows(splits: Sequence[str], y: NDArray[np.generic], groups: Codes, *, share: float, seed: int) -> Split:
    """Split by the rows' own split (train, val, test or empty, (n,)) where they have one, else hold out, stratified.

    A `share` of 0 holds out nothing where there is no split.
    Training rows that are in one of the `groups` (n,) of a held-out row are left out.
    """
    named, rows = np.array(splits, dtype=object), np.arange(len(y))
    held_out = {name: rows[named == name] for name in ("val", "test") if (named == name).any()}
    train, rest = rows[named == "train"], rows[named == ""]
    notices = []
    if held_out:
        if len(train) and len(rest):
            notices.append(f"{plural(len(rest), 'row')} of no split left out")
        train = train if len(train) else rest
    elif share == 0:
        return Split(train if len(train) else rows, {}, [NOTHING_HELD_OUT])
    else:
        pool = train if len(train) else rows
        held = hold_out(y[pool], groups[pool], share=share, seed=seed)
        train, held_out = pool[~held], {"val": pool[held]}
    if "val" not in held_out:
        held_out = {"val": held_out["test"]}
        notices.append("there is no val split: the test split is scored as val")
    twins = np.isin(groups[train], groups[np.concatenate(list(held_out.values()))])
    if twins.any():
        notices.append(f"{plural(int(twins.sum()), 'training row')} left out: a held-out row has the same content")
    return Split(train[~twins], held_out, notices)
