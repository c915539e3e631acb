"""Measures against scikit-learn's, and against numbers worked out by hand."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from scipy.stats import binomtest
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
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(truth, predicted))
    assert found["roc_auc"] == pytest.approx(reference.roc_auc_score(truth, scores, multi_class="ovr"))
    one_hot = np.eye(4)[truth]
    assert found["average_precision"] == pytest.approx(reference.average_precision_score(one_hot, scores))
    assert found["log_loss"] == pytest.approx(reference.log_loss(truth, scores))
    assert found["confusion"] == reference.confusion_matrix(truth, predicted).tolist()
    precision, recall, f1, support = reference.precision_recall_fscore_support(truth, predicted)
    for code, name in enumerate(names):
        one = found["per_class"][name]
        assert (one["precision"], one["recall"], one["f1"]) == pytest.approx((precision[code], recall[code], f1[code]))
        assert one["support"] == support[code]
    assert json.loads(json.dumps(found)) == found


def test_many_classes_need_no_matrix_of_them():
    random = np.random.default_rng(0)
    truth, scores = random.integers(0, 3000, 500), random.random((500, 3000))
    scores[np.arange(500), truth] += 0.5
    predicted = scores.argmax(axis=1)
    names = [str(code) for code in range(3000)]
    tracemalloc.start()
    found = metrics.classification(truth, scores, names)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 3000 * 8 / 2
    assert "confusion" not in found
    assert found["majority"] == np.bincount(truth).max() / 500
    assert sum(one["support"] for one in found["per_class"].values()) == 500
    true, said, times = found["confused"][0]
    assert times == ((truth == int(true)) & (predicted == int(said))).sum() > 0


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
    first, _, *others = metrics.table(found).splitlines()
    assert first.startswith("accuracy 0.9933")
    assert others == ["most confused:", "  1 of class 7 called class 9", "recognized least: class 7 0.00 of 1"]


def test_tables_are_for_people(guesses):
    text = metrics.table(metrics.classification(*guesses, ("ant", "bee", "cat", "dog")))
    assert "accuracy" in text.splitlines()[0]
    assert "bee" in text
    assert metrics.table(metrics.regression(np.ones(3), np.ones(3))) == "MAE 0   RMSE 0   R2 -   (3 rows)"


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (33, 40), (150, 153), (0, 20), (20, 20), (5000, 10000)])
def test_intervals_of_shares_are_exact(hits, count):
    expected = binomtest(hits, count).proportion_ci(confidence_level=0.95, method="exact")
    assert metrics.share_interval(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_an_accuracy_comes_with_its_interval_and_the_majority():
    truth = np.array([0] * 30 + [1] * 10)
    scores = np.eye(2)[np.where(np.arange(40) < 7, 1 - truth, truth)]
    found = metrics.classification(truth, scores, ("ant", "bee"))
    assert found["accuracy_interval"] == pytest.approx([0.6722, 0.9266], abs=1e-4)
    assert found["majority"] == 0.75
    line = metrics.table(found).splitlines()[0]
    assert line.startswith("accuracy 0.8250 (95 %: 0.67 to 0.93; majority 0.75)   macro F1 0.")
    assert line.endswith("   (40 rows)")
    (caution,) = metrics.cautions(found, "held-out rows")
    assert caution == "held-out rows: the accuracy is not clearly better than always saying ant (0.7500)"


def test_a_part_without_a_class_says_so():
    found = metrics.classification(np.zeros(20, dtype=int), np.eye(2)[np.zeros(20, dtype=int)], ("common", "ra\x1bre"))
    assert (found["accuracy"], found["macro_f1"], found["absent"]) == (1.0, 1.0, ["ra\x1bre"])
    assert "macro F1 1.0000 over 1 of 2 classes   (20 rows)" in metrics.table(found)
    few, absent = metrics.cautions(found, "held-out rows")
    assert few == "held-out rows: only 20 rows; they say little of what other images would score"
    assert absent.startswith("held-out rows: no row of ra\\x1bre; ")


def test_one_row_is_one_row():
    found = metrics.classification(np.array([0]), np.eye(2)[:1], ("a", "b"))
    assert "(1 row)" in metrics.table(found)
    assert "only 1 row; it says" in metrics.cautions(found, "test rows")[0]
    assert "(1 row)" in metrics.table(metrics.regression(np.ones(1), np.ones(1)))


def test_names_from_files_are_printed_without_their_control_characters():
    found = metrics.classification(np.array([0, 1]), np.eye(2), ("\x1b]0;title\x07", "two\nlines"))
    assert metrics.table(found).isprintable() is False  # for the newlines between its own lines
    assert all(line.isprintable() for line in metrics.table(found).splitlines())
    assert len(metrics.table(found).splitlines()) == 5


def test_a_few_outlying_numbers_are_remarked():
    lengths = np.random.default_rng(0).normal(40, 10, 400)
    assert metrics.outliers(lengths, "length") == []
    lengths[[3, 70, 200]] = 9_999_999
    (remark,) = metrics.outliers(lengths, "length")
    assert remark.startswith("3 rows of 400 lie far from all others in 'length' (half are from 3")
    assert "up to 1e+07" in remark


@pytest.mark.parametrize(
    "numbers",
    [
        np.exp(np.random.default_rng(0).normal(0, 1, 400)),  # skewed
        np.array([0.0] * 399 + [1.0]),  # rare, but there are two values and no more
        np.arange(5.0),
        np.concatenate([np.full(200, 5.0), np.full(200, 300.0)]),
    ],
)
def test_what_is_merely_skewed_or_in_heaps_is_not_outlying(numbers):
    assert metrics.outliers(numbers, "length") == []


def test_copies_make_an_interval_no_narrower():
    truth, scores = np.zeros(40, dtype=int), np.eye(2)[np.array([0] * 36 + [1] * 4)]
    alone = metrics.classification(truth, scores, ("a", "b"))
    doubled = metrics.classification(
        np.tile(truth, 2), np.tile(scores, (2, 1)), ("a", "b"), groups=np.tile(np.arange(40), 2)
    )
    assert (doubled["n"], doubled["groups"]) == (80, 40)
    assert doubled["accuracy_interval"] == pytest.approx(alone["accuracy_interval"])
    assert "(80 rows, 40 of them different)" in metrics.table(doubled)


def test_errors_come_with_intervals():
    random = np.random.default_rng(0)
    truth = random.normal(50, 10, 60)
    predicted = truth + random.normal(0, 4, 60)
    found = metrics.regression(truth, predicted)
    for name in ("mae", "rmse", "r2"):
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high
    doubled = metrics.regression(np.tile(truth, 2), np.tile(predicted, 2), groups=np.tile(np.arange(60), 2))
    assert doubled["rmse_interval"] == pytest.approx(found["rmse_interval"])
    assert metrics.table(found).startswith(f"MAE {found['mae']:.4g} ({found['mae_interval'][0]:.3g} to ")
    assert metrics.regression(truth[:2], predicted[:2])["mae_interval"] is None
    assert json.loads(json.dumps(found)) == found


def test_intervals_of_many_rows_need_no_resampling(monkeypatch):
    random = np.random.default_rng(0)
    squares, ones, groups = random.chisquare(1, 1900), np.ones(1900), np.arange(1900)
    resampled = metrics.ratio_interval(squares, ones, groups)
    monkeypatch.setattr(metrics, "SETTLED", 1000)
    assert metrics.ratio_interval(squares, ones, groups) == pytest.approx(resampled, rel=0.02)


@pytest.mark.parametrize("rows", [20, 60])
def test_intervals_of_errors_cover(rows):
    random = np.random.default_rng(1)
    truth = np.array([np.sqrt(2 / np.pi), 1.0])
    covered = np.zeros(2)
    for _ in range(200):
        errors = random.normal(size=rows)
        found = metrics.regression(np.arange(float(rows)), np.arange(float(rows)) + errors)
        covered += [
            found[f"{name}_interval"][0] <= value <= found[f"{name}_interval"][1]
            for name, value in zip(("mae", "rmse"), truth, strict=True)
        ]
    assert (covered / 200 >= 0.91).all()


def test_equal_scores_are_ranked_as_scikit_learn_does():
    random = np.random.default_rng(0)
    is_it, scores = random.random(200) < 0.3, np.round(random.random(200), 1)
    expected = reference.roc_auc_score(is_it, scores), reference.average_precision_score(is_it, scores)
    assert metrics.ranking_measures(is_it, scores) == pytest.approx(expected)


def test_from_ten_classes_on_the_five_best_count():
    random = np.random.default_rng(0)
    truth, scores = random.integers(0, 12, 300), random.random((300, 12))
    found = metrics.classification(truth, scores, [str(code) for code in range(12)])
    assert found["top5_accuracy"] == pytest.approx(reference.top_k_accuracy_score(truth, scores, k=5))
    assert "top-5 accuracy 0." in metrics.table(found)
    assert "top5_accuracy" not in metrics.classification(truth % 9, scores[:, :9], [str(code) for code in range(9)])


def test_what_becomes_of_a_rare_class_is_said():
    truth = np.array([0] * 200 + [1] * 4)
    found = metrics.classification(truth, np.tile([0.9, 0.1], (204, 1)), ("common", "rare"))
    assert (found["balanced_accuracy"], found["never_predicted"], found["roc_auc"]) == (0.5, ["rare"], 0.5)
    never, few, no_better = metrics.cautions(found, "test rows")
    assert never.startswith("test rows: rare is never predicted")
    assert few == "test rows: fewer than 10 rows of rare, too few to judge by"
    assert no_better == "test rows: the accuracy is not clearly better than always saying common (0.9804)"


def test_one_class_alone_ranks_nothing():
    found = metrics.classification(np.zeros(40, dtype=int), np.eye(2)[np.zeros(40, dtype=int)], ("a", "b"))
    assert (found["roc_auc"], found["average_precision"]) == (None, None)
    assert "ROC" not in metrics.table(found)


def test_the_interval_of_few_errors_holds_what_the_largest_ones_would_make_of_it():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        errors = random.exponential(size=20) - 1  # the root of whose mean square is 1
        low, high = metrics.regression(np.arange(20.0), np.arange(20.0) + errors)["rmse_interval"]
        hits += low <= 1 <= high
    assert hits >= 90  # 76 by the bootstrap-t alone
