from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import FinetuneSettings
from pipeline.training.recipes import BLOCKS, SMOOTHED, Case, Hyperparameters, resolve

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


def filled(case: Case | None = None, **given: Any) -> Hyperparameters:
    return resolve(FinetuneSettings.of(given), case or Case(rows=100, blocks=9))


def test_the_tutorials_recipe_is_the_tutorials() -> None:
    found = filled(recipe="tutorial")
    assert (found.optimizer, found.lr, found.momentum, found.step, found.gamma) == ("sgd", 0.001, 0.9, 7, 0.1)
    assert (found.epochs, found.batch_size, found.train, found.augment) == (25, 4, ("all",), ("crop", "flip"))
    assert (found.weight_decay, found.warmup, found.layer_decay, found.label_smoothing) == (0, 0, 1, 0)
    assert (found.freeze_norm, found.beat_head, found.kept_epochs) == (False, False, 1)
    assert filled(Case(rows=100, fitted=True), recipe="tutorial").lr == 0.0001
    assert filled(Case(rows=9), recipe="tutorial") == filled(Case(rows=9_000_000), recipe="tutorial")


def test_more_rows_mean_fewer_epochs_more_steps_and_larger_batches() -> None:
    found = [filled(Case(rows=rows)) for rows in (10, 40, 100, 400, 1000, 10_000, 1_000_000)]
    epochs, batches = [one.epochs for one in found], [one.batch_size for one in found]
    steps = [one.epochs * rows for one, rows in zip(found, (10, 40, 100, 400, 1000, 10_000, 1_000_000), strict=True)]
    assert (epochs, batches, steps) == (sorted(epochs, reverse=True), sorted(batches), sorted(steps))
    assert (epochs[0], epochs[-1], batches[0], batches[-1]) == (25, 3, 4, 32)
    assert [one.lr for one in found] == sorted(one.lr for one in found)


def test_large_images_come_in_small_batches() -> None:
    sizes = [filled(Case(rows=10_000, side=side)).batch_size for side in (64, 224, 448, 1024)]
    assert sizes == [32, 32, 8, 4]


def test_the_stem_is_trained_only_where_all_begins_at_random_or_that_is_said() -> None:
    assert filled(Case(rows=100, blocks=9)).train == (f"last:{BLOCKS}",)
    assert filled(Case(rows=100, blocks=4)).train == ("last:3",)
    assert filled(Case(rows=100, blocks=9, fresh=True)).train == ("all",)
    assert filled(train="all").train == ("all",)


def test_random_weights_learn_everything_at_one_rate_and_have_no_head_to_beat() -> None:
    fresh, other = filled(Case(rows=100, fresh=True)), filled(Case(rows=100))
    assert (fresh.layer_decay, fresh.freeze_norm, fresh.beat_head) == (1.0, False, False)
    assert (other.freeze_norm, other.beat_head) == (True, True)
    assert fresh.epochs > other.epochs
    assert fresh.lr > other.lr
    assert filled(Case(rows=100, fresh=True, fitted=True)).beat_head


def test_labels_are_smoothed_where_there_are_rows_enough_and_classes() -> None:
    assert filled(Case(rows=SMOOTHED - 1)).label_smoothing == 0
    assert filled(Case(rows=SMOOTHED)).label_smoothing > 0
    assert filled(Case(rows=SMOOTHED, smoothable=False)).label_smoothing == 0


@pytest.mark.parametrize("recipe", ["default", "tutorial"])
def test_what_is_set_wins(recipe: str) -> None:
    given = {
        "train": ("head",),
        "epochs": 7,
        "batch_size": 5,
        "optimizer": "rmsprop",
        "lr": 0.5,
        "base_lr": 0.25,
        "layer_decay": 0.9,
        "warmup": 0.3,
        "weight_decay": 0.0,
        "label_smoothing": 0.2,
        "step": 0,
        "freeze_norm": recipe == "tutorial",
        "beat_head": False,
        "momentum": 0.5,
    }
    found = filled(recipe=recipe, **given)
    assert {name: getattr(found, name) for name in given} == given


def test_a_larger_batch_that_is_set_has_a_larger_rate_and_sgd_has_its_own() -> None:
    assert filled(batch_size=64).lr == pytest.approx(2 * filled(batch_size=16).lr)
    assert filled(optimizer="sgd").lr == pytest.approx(10 * filled().lr)


def test_the_line_says_them() -> None:
    assert filled(recipe="tutorial").line(9) == (
        "tutorial recipe: 25 epochs of 4 images a step, training all, SGD 0.001, times 0.1 every 7 epochs"
    )
    assert filled(epochs=16, batch_size=16, lr=0.0001).line(9) == (
        f"default recipe: 16 epochs of 16 images a step, training last:{BLOCKS} of 9 blocks, AdamW 0.0001, "
        "times 0.7 a block, rising over 10 % of the steps, falling by a cosine, weight decay 0.05, "
        "batch norm as in evaluation"
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_published_experiments_name_the_tutorials_recipe(path: Path) -> None:
    steps = tomllib.loads(path.read_text()).get("finetune", [])
    assert all(step["recipe"] == "tutorial" for step in (steps if isinstance(steps, list) else [steps]))
