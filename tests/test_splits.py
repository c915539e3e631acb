"""Rows that are held out: a share of each class, no content on both sides, and a split of the user's own first."""

from __future__ import annotations

import numpy as np

from pipeline.splits import NOTHING_HELD_OUT, group_codes, hold_out, make_folds, split_rows


def test_a_share_of_each_class_is_held_out_and_groups_stay_whole() -> None:
    y, groups = np.repeat([0, 1, 2], 100), np.repeat(np.arange(150), 2)
    held = hold_out(y, groups, share=0.2, seed=13)
    assert [int(held[y == code].sum()) for code in range(3)] == [20, 20, 20]
    assert set(groups[held]).isdisjoint(groups[~held])
    np.testing.assert_array_equal(held, hold_out(y, groups, share=0.2, seed=13))
    assert (held != hold_out(y, groups, share=0.2, seed=14)).any()


def test_the_only_group_of_a_class_is_learned_from() -> None:
    y, groups = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 4, 4])
    for seed in range(20):
        assert not hold_out(y, groups, share=0.5, seed=seed)[4:].any()


def test_folds_of_numbers_spread_their_range_alike() -> None:
    y = np.linspace(0, 100, 500)
    folds = make_folds(y, np.arange(500), folds=5, seed=13)
    means = [y[folds == fold].mean() for fold in range(5)]
    assert max(means) - min(means) < 3
    assert np.bincount(folds).tolist() == [100] * 5


def test_rows_for_the_last_word_are_apart_from_those_that_choose() -> None:
    y, groups = np.tile([0, 1], 50), np.repeat(np.arange(50), 2)
    split = split_rows([""] * 100, y, groups, share=0.2, seed=13, test=0.1)
    assert {name: len(rows) for name, rows in split.parts.items()} == {"val": 18, "test": 10, "train": 72}
    of_parts = [set(groups[rows]) for rows in split.parts.values()]
    assert len(set.union(*of_parts)) == sum(map(len, of_parts)), "a group is in one part"
    same_share = split_rows([""] * 100, y, groups, share=0.1, seed=13)
    np.testing.assert_array_equal(same_share.held_out["val"], split.held_out["test"])
    named = split_rows(["val"] * 10 + ["train"] * 90, y, np.arange(100), share=0.5, seed=13, test=0.1)
    assert {name: len(rows) for name, rows in named.parts.items()} == {"val": 10, "test": 9, "train": 81}
    own = split_rows(["test"] * 10 + ["train"] * 90, y, np.arange(100), share=0.5, seed=13, test=0.1, chooses=True)
    assert {name: len(rows) for name, rows in own.parts.items()} == {"val": 45, "test": 10, "train": 45}


def test_equal_contents_have_one_code() -> None:
    contents = np.zeros((4, 32), np.uint8)
    contents[1, 31] = contents[3, 31] = 1
    codes = group_codes(contents)
    assert codes[0] == codes[2] != codes[1] == codes[3]
    assert group_codes(contents[:0]).shape == (0,)


def test_a_split_of_the_users_own_comes_before_a_share() -> None:
    splits, y = ["train", "train", "val", "test", ""], np.array([0, 1, 0, 1, 0])
    split = split_rows(splits, y, np.arange(5), share=0.5, seed=13)
    assert split.train.tolist() == [0, 1]
    assert {name: rows.tolist() for name, rows in split.held_out.items()} == {"val": [2], "test": [3]}
    assert split.notices == ["1 row of no split left out"]
    assert list(split.parts) == ["val", "test", "train"]


def test_a_twin_of_a_held_out_row_is_not_learned_from() -> None:
    split = split_rows(["train", "train", "val"], np.array([0, 1, 1]), np.array([0, 7, 7]), share=0.2, seed=13)
    assert split.train.tolist() == [0]
    assert split.notices == ["1 training row left out: a held-out row has the same content"]


def test_a_share_of_none_holds_nothing_out() -> None:
    split = split_rows([""] * 3, np.array([0, 1, 1]), np.arange(3), share=0, seed=13)
    assert (split.train.tolist(), split.held_out, split.notices) == ([0, 1, 2], {}, [NOTHING_HELD_OUT])


def test_groups_of_several_classes_leave_no_class_without_training_rows() -> None:
    y, groups = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 0, 0, 1, 1, 1])
    for seed in range(20):
        held = hold_out(y, groups, share=0.9, seed=seed)
        assert set(y[~held]) == {0, 1, 2}
        assert held.sum() == 3


def test_folds_of_uneven_groups_are_of_like_size() -> None:
    sizes = np.random.default_rng(0).integers(1, 30, 60)
    groups = np.repeat(np.arange(60), sizes)
    y = (groups % 2).astype(np.int64)
    folds = make_folds(y, groups, folds=5, seed=13)
    assert all(len(np.unique(folds[groups == group])) == 1 for group in range(60))
    counts = np.array([np.bincount(folds[y == code], minlength=5) for code in range(2)])
    assert (np.ptp(counts, axis=1) <= sizes.max()).all()


def test_a_group_of_a_held_out_row_is_left_out_by_its_name() -> None:
    split = split_rows(
        ["train", "train", "val"],
        np.array([0, 1, 1]),
        np.array([0, 7, 7]),
        share=0.2,
        seed=13,
        alike="the same patient",
    )
    assert split.notices == ["1 training row left out: a held-out row has the same patient"]
