"""The batched solver reaches scikit-learn's optimum, for every fold and penalty on its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from examples import blobs, problem_of
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from pipeline.config import FitSettings
from pipeline.errors import SettingsError
from pipeline.heads import HEADS
from pipeline.heads.rows import ArrayRows, StreamedRows
from pipeline.heads.solvers.arrays import take_home
from pipeline.heads.solvers.basis import LARGEST_DECOMPOSITION, make_basis
from pipeline.heads.solvers.descent import Batch, fold_weights
from pipeline.heads.solvers.logistic import fit_logistic
from pipeline.heads.solvers.losses import LogLoss, SquaredHinge
from pipeline.heads.standard import Standard
from pipeline.splits import make_folds


def digits():
    features, y = load_digits(return_X_y=True)
    return features.astype(np.float32), y


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products as small as these gain nothing from a second core, and wait long for one that is busy."""
    with threadpool_limits(1):
        yield


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
    batch = Batch(basis, y.astype(np.int64), np.ones((len(y), 1)), int(y.max()) + 1, loss=LogLoss())
    fits = batch.solve(strength, batch.start(), tolerance=1e-9)
    weight = basis.standard_weights(fits.weights[0, :, :-1].T).T
    bias = fits.weights[0, :, -1]
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
    batch = Batch(basis, y, fold_weights(weights, folds), 3, loss=LogLoss(), folds=folds if skipping else None)
    fits = batch.solve(0.1, batch.start(), tolerance=1e-10)
    scaled = standard.apply(features).astype(np.float64)
    for fold in range(4):
        train = folds != fold
        reference = LogisticRegression(C=0.1, tol=1e-10, max_iter=5000)
        reference.fit(scaled[train], y[train], sample_weight=weights[train])
        weight = basis.standard_weights(fits.weights[fold, :, :-1].T).T
        np.testing.assert_allclose(weight, reference.coef_, atol=2e-5)
        if not skipping:
            continue
        held = batch.held_out(fits.weights)[~train]
        expected = reference.decision_function(scaled[~train])
        np.testing.assert_allclose(
            held - held.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=1e-3
        )


def centred(logits):
    return logits - logits.mean(axis=1, keepdims=True)


def test_a_warm_start_ends_where_a_cold_one_does():
    features, y = blobs(400, 30, 4)
    rows = ArrayRows(features)
    batch = Batch(make_basis(rows, Standard.of(rows)).double(), y, np.ones((400, 1)), 4, loss=LogLoss())
    first = batch.solve(0.1, batch.start(), tolerance=1e-10)
    cold = batch.solve(0.2, batch.start(), tolerance=1e-10)
    warm = batch.solve(0.2, first, tolerance=1e-10)
    np.testing.assert_allclose(warm.losses, cold.losses, rtol=1e-8)


def test_a_path_of_penalties_is_followed_to_the_optimum_of_each():
    """Extrapolated starts and curvature from other penalties change the way, not the end."""
    features, y = blobs(900, 30, 4)
    rows = ArrayRows(features)
    folds = make_folds(y, np.arange(900), folds=3, seed=1)
    basis = make_basis(rows, Standard.of(rows)).double()
    batch = Batch(basis, y, fold_weights(np.ones(900), folds), 4, loss=LogLoss(), folds=folds)
    fits = batch.start()
    for strength in (0.001, 0.01, 0.1, 1.0):
        fits = batch.solve(strength, fits, tolerance=1e-10)
        cold = batch.solve(strength, batch.start(), tolerance=1e-10)
        np.testing.assert_allclose(fits.losses, cold.losses, rtol=1e-8)
        np.testing.assert_allclose(fits.weights, cold.weights, rtol=0, atol=1e-4)
    assert fits.iterations < cold.iterations


def test_the_search_orders_penalties_as_exact_fits_do(monkeypatch):
    features, y = blobs(600, 60, 4, apart=0.6)
    search = HEADS["linear"]("classes").fit(problem_of(features, y)).search
    monkeypatch.setattr("pipeline.heads.solvers.path.SEARCH_TOLERANCE", 1e-6)
    exact = HEADS["linear"]("classes").fit(problem_of(features, y)).search
    assert search.chosen == exact.chosen
    found, expected = (np.array([entry["loss"] for entry in one.table]) for one in (search, exact))
    best = expected.argmin()
    np.testing.assert_allclose(found[best - 1 : best + 2], expected[best - 1 : best + 2], rtol=0.01)


def test_the_same_head_twice():
    features, y = blobs(300, 20, 3)
    one, other = (HEADS["linear"]("classes").fit(problem_of(features, y)) for _ in range(2))
    assert np.array_equal(one.weight, other.weight)


def test_a_device_that_is_none_is_named():
    features, y = blobs(60, 10, 2)
    with pytest.raises(SettingsError, match="unknown device 'gpu'"):
        HEADS["linear"]("classes", FitSettings.of({"device": "gpu"})).fit(problem_of(features, y))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", [(900, 32, 3), (150, 600, 4), (400, 40, 2)])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_gpu_finds_the_head_that_the_cpu_finds(shape, streaming):
    features, y = blobs(*shape)
    problem = problem_of(features, y)
    if streaming:
        streamed = StreamedRows(lambda which: features[which], np.arange(shape[0]), shape[1])
        problem = type(problem)(streamed, y, problem.weights, problem.groups, problem.classes)
    cpu, gpu = (
        HEADS["linear"]("classes", FitSettings.of({"device": device})).fit(problem) for device in ("cpu", "cuda")
    )
    assert gpu.search.chosen == pytest.approx(cpu.search.chosen)
    np.testing.assert_allclose(gpu.weight, cpu.weight, atol=5e-4)
    np.testing.assert_allclose(gpu.predict_proba(features), cpu.predict_proba(features), atol=1e-3)


@pytest.mark.parametrize("shape", [(900, 32, 3), (150, 600, 4), (400, 40, 2)])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("loss", [LogLoss(), SquaredHinge()])
def test_arrays_of_torch_give_the_fits_that_those_of_numpy_give(shape, streaming, loss):
    """They are those of a GPU; torch on the CPU is asked for them here."""
    features, y = blobs(*shape)
    rows = ArrayRows(features)
    standard = Standard.of(rows)
    if streaming:
        rows = StreamedRows(lambda which: features[which], np.arange(shape[0]), shape[1])
    folds = make_folds(y, np.arange(len(y)), folds=3, seed=1)
    found = []
    for device in (None, torch.device("cpu")):
        basis = make_basis(rows, standard, device)
        batch = Batch(basis, y, fold_weights(np.ones(len(y)), folds), shape[2], loss=loss, folds=folds)
        fits = batch.solve(0.1, batch.solve(0.01, batch.start(), tolerance=1e-6), tolerance=1e-6)
        whole = Batch(basis.double(), y, np.ones((len(y), 1)), shape[2], loss=loss)
        exact = whole.solve(0.1, fits.mean().double(), tolerance=1e-10)
        found.append((batch.held_out(fits.weights), take_home(exact.weights), take_home(exact.losses)))
    for ours, of_torch in zip(*found, strict=True):
        np.testing.assert_allclose(of_torch, ours, atol=3e-2 * np.abs(ours).max())  # single precision's floor
    np.testing.assert_allclose(found[1][-1], found[0][-1], rtol=1e-6)


def test_streamed_rows_give_the_same_head():
    features, y = blobs(900, 32, 3)
    head = HEADS["linear"]("classes").fit(problem_of(features, y))
    problem = problem_of(features, y)
    streamed = StreamedRows(lambda which: features[which], np.arange(900), 32)
    other = HEADS["linear"]("classes").fit(type(problem)(streamed, y, problem.weights, problem.groups, 3))
    assert other.search.chosen == pytest.approx(head.search.chosen)
    np.testing.assert_allclose(other.weight, head.weight, atol=2e-4)
    # probabilities are calibrated on out-of-fold scores, which are as exact as a search needs them
    np.testing.assert_allclose(other.predict_proba(features), head.predict_proba(features), atol=5e-4)


def test_no_decomposition_where_it_would_be_too_large(monkeypatch):
    monkeypatch.setattr("pipeline.heads.solvers.basis.LARGEST_DECOMPOSITION", 10)
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
