"""The path of penalties equals scikit-learn's RidgeCV and RidgeClassifierCV, error by error."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from examples import blobs, line, problem_of
from sklearn.linear_model import Ridge, RidgeClassifierCV, RidgeCV

from pipeline.errors import HeadError
from pipeline.heads import HEADS
from pipeline.heads.ridge import Decomposition, Target
from pipeline.heads.rows import ArrayRows, StreamedRows
from pipeline.heads.standard import Standard

PENALTIES = [0.01, 1.0, 100.0, 1e4]


@pytest.mark.parametrize(("rows", "dimensions", "targets"), [(300, 50, 1), (60, 200, 3), (100, 100, 2), (900, 64, 5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_leave_one_out_equals_ridge_cv(rows, dimensions, targets, weighted):
    random = np.random.default_rng(0)
    features = random.normal(size=(rows, dimensions)).astype(np.float32)
    values = features[:, :targets] * 2 + random.normal(size=(rows, targets)) + 3
    weights = random.uniform(0.5, 2, rows) if weighted else np.ones(rows)
    ours = Decomposition(ArrayRows(features), None, Target(values, weights))
    reference = RidgeCV(alphas=PENALTIES, store_cv_results=True)
    reference.fit(features.astype(np.float64), values, sample_weight=weights)
    said = np.stack([ours.predictions(penalty) for penalty in PENALTIES], axis=2)
    squares = weights[:, None, None] * np.square(values[:, :, None] - said)
    np.testing.assert_allclose(squares, reference.cv_results_.reshape(squares.shape), rtol=1e-6, atol=1e-9)
    errors = ours.errors(PENALTIES)
    np.testing.assert_allclose(errors, squares.mean(axis=(0, 1)), rtol=1e-9)
    assert PENALTIES[int(errors.argmin())] == reference.alpha_
    (weight,), (bias,) = ours.coefficients([reference.alpha_])
    np.testing.assert_allclose(weight, np.atleast_2d(reference.coef_), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(bias, reference.intercept_, rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 6])
def test_classes_equal_ridge_classifier_cv(classes):
    features, y = blobs(400, 30, classes)
    head = HEADS["ridge"]("classes").fit(problem_of(features, y))
    scaled = Standard.of(ArrayRows(features)).apply(features).astype(np.float64)
    penalties = [entry["alpha"] for entry in head.search.table]
    reference = RidgeClassifierCV(alphas=penalties, store_cv_results=True).fit(scaled, y)
    assert head.search.chosen["alpha"] == reference.alpha_
    errors = [entry["squared_error"] for entry in head.search.table]
    np.testing.assert_allclose(errors, reference.cv_results_.mean(axis=(0, 1)), rtol=1e-6)
    decision = reference.decision_function(scaled)
    ours = head.decision_function(features)
    np.testing.assert_allclose(ours[:, 1] if classes == 2 else ours, decision, atol=1e-4)
    assert (head.predict(features) == reference.predict(scaled)).all()


def test_leave_one_out_is_what_refitting_without_the_row_says():
    features, y = line(40, 6)
    values = y[:, None]
    whole = Decomposition(ArrayRows(features), None, Target(values, np.ones(40)))
    said = whole.predictions(5.0)[:, 0]
    for row in (0, 17, 39):
        rest = np.arange(40) != row
        part = Decomposition(ArrayRows(features[rest]), None, Target(values[rest], np.ones(39)))
        (weight,), (bias,) = part.coefficients([5.0])
        assert said[row] == pytest.approx(float((features[row] @ weight.T + bias)[0]), rel=1e-9)


@pytest.mark.parametrize(("head", "apart"), [("ridge", 1e-6), ("linear", 1e-3)])
@pytest.mark.parametrize("views", [1, 3])
def test_streamed_rows_give_the_same_head(monkeypatch, head, apart, views):
    """With weights, and so few rows a block that images with views lie across its end."""
    monkeypatch.setattr("pipeline.heads.rows.BLOCK_FLOATS", 200 * 32)
    features, y = blobs(450 * views, 32, 3)
    y = y[::views]
    features += np.eye(3, 32, dtype=np.float32)[np.repeat(y, views)]
    weights = np.random.default_rng(0).uniform(0.5, 2, 450)
    held = problem_of(features.reshape(450, views, 32), y, sample_weight=weights, score_views="mean")
    streamed = replace(held, rows=StreamedRows(lambda which: features[which], np.arange(450 * views), 32))
    one, other = (HEADS[head]("classes").fit(problem) for problem in (held, streamed))
    assert other.search.chosen == one.search.chosen
    assert np.abs(other.weight - one.weight).max() < apart * np.abs(one.weight).max()
    np.testing.assert_allclose(other.search.scores, one.search.scores, atol=0.03 if head == "linear" else 1e-6)
    assert (other.predict(features) == one.predict(features)).all()


@pytest.mark.parametrize("numbers", [False, True])
def test_views_are_held_out_together(numbers):
    """The chosen penalty and the scores are those of folds that are fitted one by one."""
    features, y = (line if numbers else partial(blobs, classes=3))(360, 20)
    values = y[::3] if numbers else y[::3].astype(np.int64)
    problem = problem_of(features.reshape(120, 3, 20), values)
    head = HEADS["ridge"](problem.task).fit(problem)
    folds = problem.folds(5, 13)
    targets = values[:, None] if numbers else np.where(values[:, None] == np.arange(3), 1.0, -1.0)
    errors = np.zeros(len(head.search.table))
    for fold in range(5):
        train, rest = features.reshape(120, 3, 20)[folds != fold].reshape(-1, 20), features[::3][folds == fold]
        scaled = Standard.of(ArrayRows(train))
        for place, entry in enumerate(head.search.table):
            # a view has a third of the weight of its image, which is as much as a penalty three times as strong
            model = Ridge(alpha=3 * entry["alpha"])
            model.fit(scaled.apply(train).astype(np.float64), np.repeat(targets[folds != fold], 3, axis=0))
            said = model.predict(scaled.apply(rest).astype(np.float64)).reshape(len(rest), -1)
            errors[place] += np.square(said - targets[folds == fold]).mean(axis=1).sum() / 120
            if entry["alpha"] == head.search.chosen["alpha"]:
                found = head.search.scores[folds == fold].reshape(said.shape)
                np.testing.assert_allclose(found, said, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose([entry["squared_error"] for entry in head.search.table], errors, rtol=1e-6)


def test_no_decomposition_beyond_what_is_feasible(monkeypatch):
    monkeypatch.setattr("pipeline.heads.ridge.LARGEST_DECOMPOSITION", 10)
    with pytest.raises(HeadError, match="--head linear"):
        HEADS["ridge"]("classes").fit(problem_of(*blobs(40, 20, 2)))
