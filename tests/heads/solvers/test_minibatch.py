"""A stack of networks is what each alone would be, and the epoch that is kept is the best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import blobs, problem_of

from pipeline.heads.solvers.minibatch import Lesson, Plan, Stack, search_epochs, train_on_all, train_stack

PLAN = Plan(
    hidden=None,
    optimizer="sgd",
    lr=0.05,
    momentum=0.9,
    drop_every=0,
    epochs=5,
    batch_size=16,
    decays=(0.0, 0.1),
    seed=13,
)


def lesson_of(rows=90):
    features, y = blobs(rows, 6, 3)
    problem = problem_of(features, y)
    return problem, Lesson.of(problem, features, y)


def test_networks_of_a_stack_begin_alike_and_answer_rows_of_their_own_or_shared():
    stack = Stack(replace(PLAN, hidden=8), 3, 6, 2)
    shared = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    said = stack(shared)
    assert said.shape == (3, 4, 2)
    torch.testing.assert_close(said[0], said[2])
    torch.testing.assert_close(stack(shared.expand(3, 4, 6)), said)


def test_networks_that_see_the_same_rows_learn_the_same_and_decay_shrinks_weights():
    _, lesson = lesson_of()
    every = np.arange(90)
    rows = replace(PLAN, batch_size=90)  # all at once, so that no order tells them apart
    *_, (stack, _) = train_stack(rows, lesson, [every] * 3, torch.tensor([0.0, 0.0, 0.5]))
    plain, twin, decayed = stack.weights[0]
    torch.testing.assert_close(twin, plain, rtol=1e-4, atol=1e-5)
    assert decayed.square().sum() < plain.square().sum()


def test_the_loss_falls_and_the_same_seed_gives_the_same():
    _, lesson = lesson_of()
    losses = [float(found["loss"][0]) for _, found in train_stack(PLAN, lesson, [np.arange(90)], torch.tensor([0.0]))]
    again = [float(found["loss"][0]) for _, found in train_stack(PLAN, lesson, [np.arange(90)], torch.tensor([0.0]))]
    assert losses[-1] < losses[0]
    assert losses == again


def test_the_chosen_epoch_is_the_one_of_least_loss_and_is_trained_again_on_all_rows():
    problem, lesson = lesson_of()
    search = search_epochs(PLAN, problem, lesson, np.arange(90) % 3)
    assert search.chosen["decay"] in PLAN.decays
    assert search.best_epoch == search.chosen["epochs"] <= PLAN.epochs
    assert search.scores.shape == (90, 3)
    weight, bias = train_on_all(PLAN, lesson, search.chosen)
    assert (weight.shape, bias.shape) == ((6, 3), (3,))
    assert ((lesson.rows.numpy() @ weight + bias).argmax(axis=1) == lesson.targets.numpy()).mean() > 0.6


def test_losses_of_numbers_are_in_their_unit_on_training_rows_as_on_held_out_ones():
    """Standardised losses are about 1 here, and those of held-out rows about 900."""
    generator = np.random.default_rng(3)
    features = generator.normal(size=(90, 6)).astype(np.float32)
    y = 500 + 30 * (features[:, 0] + generator.normal(size=90))
    problem = problem_of(features, y)
    lesson = Lesson.of(problem, features, (y - y.mean()) / y.std())
    search = search_epochs(PLAN, problem, lesson, np.arange(90) % 3, offset=y.mean(), unit=y.std())
    last = search.epochs[-1]
    assert 0.3 < last["train_loss"] / last["val_loss"] < 1.5
    assert last["train_rmse"] == pytest.approx(last["train_loss"] ** 0.5, rel=0.1)


def test_training_rows_have_an_accuracy_and_each_decay_its_own_curve():
    problem, lesson = lesson_of()
    search = search_epochs(replace(PLAN, decays=(0.0, 100.0)), problem, lesson, np.arange(90) % 3)
    weak, strong = (entry["train_loss"] for entry in search.table)
    assert weak < strong
    assert 0.5 < search.epochs[-1]["train_accuracy"] <= 1
