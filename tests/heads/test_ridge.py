"""The path of penalties equals scikit-learn's RidgeCV and RidgeClassifierCV, error by error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import blobs, line
from sklearn.linear_model import RidgeClassifierCV, RidgeCV

from pipeline.errors import HeadError
from pipeline.heads import HEADS, problem_of
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
    squares = np.square(torch.cat([part for _, part in ours.left_out(PENALTIES)]).numpy())
    np.testing.assert_allclose(squares, reference.cv_results_.reshape(squares.shape), rtol=1e-6, atol=1e-9)
    errors = ours.errors(PENALTIES)
    assert PENALTIES[int(errors.argmin())] == reference.alpha_
    weight, bias = ours.coefficients(reference.alpha_)
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
    ours = head.decision(features)
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
        weight, bias = part.coefficients(5.0)
        assert said[row] == pytest.approx(float((features[row] @ weight.T + bias)[0]), rel=1e-9)


def test_streamed_rows_give_the_same_head():
    features, y = blobs(900, 32, 3)
    problem = problem_of(features, y)
    head = HEADS["ridge"]("classes").fit(problem)
    streamed = StreamedRows(lambda which: features[which], np.arange(900), 32)
    other = HEADS["ridge"]("classes").fit(type(problem)(streamed, y, problem.weights, problem.groups, 3))
    np.testing.assert_allclose(other.weight, head.weight, rtol=1e-6, atol=1e-9)
    assert other.search.chosen == head.search.chosen


def test_no_decomposition_beyond_what_is_feasible(monkeypatch):
    monkeypatch.setattr("pipeline.heads.ridge.LARGEST_DECOMPOSITION", 10)
    with pytest.raises(HeadError, match="--head linear"):
        HEADS["ridge"]("classes").fit(problem_of(*blobs(40, 20, 2)))
