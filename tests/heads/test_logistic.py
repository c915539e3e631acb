"""The batched solver reaches scikit-learn's optimum, for every fold and penalty on its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import blobs
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from pipeline.config import FitSettings
from pipeline.heads import HEADS, problem_of
from pipeline.heads.basis import LARGEST_DECOMPOSITION, make_basis
from pipeline.heads.folds import make_folds
from pipeline.heads.linear import fit_logistic
from pipeline.heads.logistic import LogisticBatch, fold_weights
from pipeline.heads.rows import ArrayRows, StreamedRows
from pipeline.heads.standard import Standard


def digits():
    features, y = load_digits(return_X_y=True)
    return features.astype(np.float32), y


DATA = {
    "digits": digits,
    "two classes": lambda: blobs(800, 40, 2),
    "wide": lambda: blobs(150, 600, 4),
    "tall": lambda: blobs(2500, 64, 10),
}


def objective(weight, bias, features, y, strength, weights=None):
    """scikit-learn's: C times the weighted log loss plus half the squared weights."""
    logits = features.astype(np.float64) @ weight.T + bias
    if weight.shape[0] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    losses = logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]
    return strength * np.sum(losses if weights is None else losses * weights) + np.square(weight).sum() / 2


def as_reference(weight, bias):
    """For two classes scikit-learn has one vector: the difference of ours."""
    return (weight[1:] - weight[:1], bias[1:] - bias[:1]) if len(weight) == 2 else (weight, bias)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_same_optimum_as_scikit_learn(name, strength):
    features, y = DATA[name]()
    rows = ArrayRows(features)
    standard = Standard.of(rows)
    basis = make_basis(rows, standard).double()
    batch = LogisticBatch(basis, y.astype(np.int64), np.ones((len(y), 1)), int(y.max()) + 1)
    fits = batch.solve(strength, batch.start(), tolerance=1e-9)
    weight = basis.standard_weights(fits.weights[:-1, 0]).T.numpy()
    bias = fits.weights[-1, 0].numpy()
    scaled = standard.apply(features).astype(np.float64)
    reference = LogisticRegression(C=strength, tol=1e-9, max_iter=5000).fit(scaled, y)
    ours = objective(*as_reference(weight, bias), scaled, y, strength)
    theirs = objective(reference.coef_, reference.intercept_, scaled, y, strength)
    assert ours <= theirs * (1 + 1e-6)
    assert abs(ours - theirs) <= 1e-6 * theirs
    agree = (scaled @ weight.T + bias).argmax(axis=1) == reference.predict(scaled)
    assert agree.mean() >= 0.999


@pytest.mark.parametrize("skipping", [False, True])
def test_a_batch_of_folds_equals_each_fold_alone(skipping):
    features, y = blobs(300, 20, 3)
    rows = ArrayRows(features)
    standard = Standard.of(rows)
    basis = make_basis(rows, standard).double()
    weights = np.random.default_rng(0).uniform(0.5, 2, 300)
    folds = make_folds(y, np.arange(300), folds=4, seed=1)
    batch = LogisticBatch(basis, y, fold_weights(weights, folds), 3, folds=folds if skipping else None)
    fits = batch.solve(0.1, batch.start(), tolerance=1e-10)
    scaled = standard.apply(features).astype(np.float64)
    for fold in range(4):
        train = folds != fold
        reference = LogisticRegression(C=0.1, tol=1e-10, max_iter=5000)
        reference.fit(scaled[train], y[train], sample_weight=weights[train])
        weight = basis.standard_weights(fits.weights[:-1, fold]).T.numpy()
        np.testing.assert_allclose(weight, reference.coef_, atol=2e-5)
        held = batch.survey(fits.weights, folds)[1][~train]
        expected = reference.decision_function(scaled[~train])
        np.testing.assert_allclose(
            held - held.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=1e-3
        )


def centred(logits):
    return logits - logits.mean(axis=1, keepdims=True)


def test_a_warm_start_ends_where_a_cold_one_does():
    features, y = blobs(400, 30, 4)
    rows = ArrayRows(features)
    batch = LogisticBatch(make_basis(rows, Standard.of(rows)).double(), y, np.ones((400, 1)), 4)
    first = batch.solve(0.1, batch.start(), tolerance=1e-10)
    cold = batch.solve(0.2, batch.start(), tolerance=1e-10)
    warm = batch.solve(0.2, first, tolerance=1e-10)
    torch.testing.assert_close(warm.losses, cold.losses, rtol=1e-8, atol=0)


def test_streamed_rows_give_the_same_head():
    features, y = blobs(900, 32, 3)
    head = HEADS["linear"]("classes").fit(problem_of(features, y))
    problem = problem_of(features, y)
    streamed = StreamedRows(lambda which: features[which], np.arange(900), 32)
    other = HEADS["linear"]("classes").fit(type(problem)(streamed, y, problem.weights, problem.groups, 3))
    assert other.search.chosen == pytest.approx(head.search.chosen)
    np.testing.assert_allclose(other.weight, head.weight, atol=2e-4)
    np.testing.assert_allclose(other.scores(features), head.scores(features), atol=1e-4)


def test_no_decomposition_where_it_would_be_too_large(monkeypatch):
    monkeypatch.setattr("pipeline.heads.basis.LARGEST_DECOMPOSITION", 10)
    assert LARGEST_DECOMPOSITION > 10
    features, y = blobs(300, 20, 3)
    problem = problem_of(features, y)
    standard = Standard.of(problem.rows)
    plain, _, _ = fit_logistic(problem, standard, None)
    streamed = StreamedRows(lambda which: features[which], np.arange(300), 20)
    by_stream, _, _ = fit_logistic(type(problem)(streamed, y, problem.weights, problem.groups, 3), standard, None)
    monkeypatch.undo()
    rotated, _, _ = fit_logistic(problem, standard, None)
    np.testing.assert_allclose(plain, rotated, atol=1e-3)
    np.testing.assert_allclose(by_stream, rotated, atol=1e-3)


def test_the_search_finds_a_penalty_that_generalises():
    """Few rows and many useless dimensions: hardly any penalty would be far from the best."""
    features, y = blobs(1500, 200, 4, apart=0.8)
    train, test = slice(0, 200), slice(200, None)
    head = HEADS["linear"]("classes").fit(problem_of(features[train], y[train]))
    assert len(head.search.table) >= 6
    scaled = Standard.of(ArrayRows(features[train]))
    scores = [
        LogisticRegression(C=entry["C"], max_iter=5000)
        .fit(scaled.apply(features[train]), y[train])
        .score(scaled.apply(features[test]), y[test])
        for entry in head.search.table
    ]
    ours = (head.predict(features[test]) == y[test]).mean()
    assert ours >= max(scores) - 0.02
    assert ours >= min(scores) + 0.03


@pytest.mark.parametrize("classes", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_classes(classes):
    features, y = blobs(3 * classes, 32, classes, apart=3.0)
    train = np.arange(len(y)) < 2.6 * classes
    problem = problem_of(features[train], y[train], classes=classes)
    head = HEADS["linear"]("classes", FitSettings.of({"cv": 2})).fit(problem)
    assert head.weight.shape == (classes, 32)
    assert (head.predict(features[~train]) == y[~train]).mean() > 20 / classes


def test_sgd_is_the_tutorials_recipe_and_keeps_the_best_epoch():
    features, y = blobs(200, 30, 2, apart=1.5)
    head = HEADS["linear"]("classes", FitSettings.of({"solver": "sgd", "epochs": 8})).fit(problem_of(features, y))
    epochs = head.search.epochs
    assert [entry["epoch"] for entry in epochs] == list(range(1, 9))
    best = min(epochs, key=lambda entry: entry["val_loss"])
    assert head.search.chosen["epochs"] == pytest.approx(best["epoch"], abs=2)
    assert (head.predict(features) == y).mean() > 0.8
