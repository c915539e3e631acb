"""Measures against scikit-learn's, and against numbers worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as reference

from pipeline import metrics


@pytest.fixture
def guesses():
    random = np.random.default_rng(0)
    truth = random.integers(0, 4, 300)
    scores = random.dirichlet(np.ones(4), 300)
    scores[np.arange(300), truth] += 0.4
    return truth, scores / scores.sum(axis=1, keepdims=True)


def test_classification_equals_scikit_learn(guesses):
    truth, scores = guesses
    names = ("a", "b", "c", "d")
    found = metrics.classification(truth, scores, names)
    predicted = scores.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(truth, predicted))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(truth, predicted, average="macro"))
    assert found["log_loss"] == pytest.approx(reference.log_loss(truth, scores))
    assert found["confusion"] == reference.confusion_matrix(truth, predicted).tolist()
    precision, recall, f1, support = reference.precision_recall_fscore_support(truth, predicted)
    for code, name in enumerate(names):
        one = found["per_class"][name]
        assert (one["precision"], one["recall"], one["f1"]) == pytest.approx((precision[code], recall[code], f1[code]))
        assert one["support"] == support[code]
    assert json.loads(json.dumps(found)) == found


def test_regression_equals_scikit_learn():
    random = np.random.default_rng(0)
    truth = random.normal(50, 10, 200)
    predicted = truth + random.normal(0, 4, 200)
    found = metrics.regression(truth, predicted)
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(truth, predicted))
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(truth, predicted))
    assert found["r2"] == pytest.approx(reference.r2_score(truth, predicted))


def test_r2_of_a_constant_truth_is_none_and_not_infinite():
    assert metrics.regression(np.ones(3), np.array([1.0, 2.0, 3.0]))["r2"] is None


def test_calibration_error_by_hand():
    """Ten rows at 0.8, of which 6 are right, and ten at 0.6, of which 9 are: 0.5 * 0.2 + 0.5 * 0.3."""
    scores = np.array([[0.8, 0.2]] * 10 + [[0.6, 0.4]] * 10)
    truth = np.array([0] * 6 + [1] * 4 + [0] * 9 + [1])
    assert metrics.calibration_error(truth, scores) == pytest.approx(0.25)


def test_a_class_that_is_absent_does_not_lower_macro_f1():
    found = metrics.classification(np.array([0, 1]), np.eye(3)[:2], ("a", "b", "c"))
    assert found["macro_f1"] == 1
    assert found["per_class"]["c"]["support"] == 0


def test_many_classes_list_their_worst_confusions_instead_of_a_matrix():
    names = [f"class {i}" for i in range(150)]
    truth = np.arange(150)
    scores = np.eye(150)[np.where(truth == 7, 9, truth)]
    found = metrics.classification(truth, scores, names)
    assert "confusion" not in found
    assert found["confused"] == [["class 7", "class 9", 1]]


def test_tables_are_for_people(guesses):
    text = metrics.table(metrics.classification(*guesses, ("ant", "bee", "cat", "dog")))
    assert "accuracy" in text.splitlines()[0]
    assert "bee" in text
    assert metrics.table(metrics.regression(np.ones(3), np.ones(3))) == "MAE 0   RMSE 0   R2 -   (3 rows)"
