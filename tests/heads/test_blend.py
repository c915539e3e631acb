"""The blend says the mean of what its members say, and auto makes it of heads that are trained anyway."""

from __future__ import annotations

import numpy as np
import pytest
from examples import blobs, line, problem_of

from pipeline.config import FitSettings
from pipeline.heads import HEADS, load_head
from pipeline.heads.blend import BlendHead
from pipeline.heads.selection import choose, train_head

QUICK = FitSettings.of({"epochs": 4, "hidden": 16, "cv": 3})


def test_it_says_the_mean_probability_of_its_members():
    features, y = blobs(120, 12, 3, apart=1.5)
    head = BlendHead("classes", QUICK).fit(problem_of(features, y))
    assert list(head.members) == ["linear", "ridge", "svm", "mlp"]
    mean = np.mean([member.predict_proba(features) for member in head.members.values()], axis=0)
    np.testing.assert_allclose(np.exp(head.decision_function(features)), mean, rtol=1e-9)
    out_of_fold = [member.calibrated(member.search.scores) for member in head.members.values()]
    np.testing.assert_allclose(np.exp(head.search.scores), np.mean(out_of_fold, axis=0), rtol=1e-9)
    assert 0.5 < head.inverse_temperature < 2
    np.testing.assert_allclose(head.predict_proba(features).sum(axis=1), 1)


def test_it_says_the_mean_value_of_its_members():
    features, y = line(120, 8)
    head = BlendHead("numbers", QUICK).fit(problem_of(features, y))
    assert list(head.members) == ["ridge", "svm", "mlp", "binned"]
    mean = np.mean([member.predict(features) for member in head.members.values()], axis=0)
    np.testing.assert_allclose(head.predict(features), mean)
    assert head.interval_half_width == pytest.approx(1.645, abs=0.7)


def test_it_comes_back_from_its_folder(tmp_path):
    features, y = blobs(90, 12, 2)
    head = BlendHead("classes", QUICK).fit(problem_of(features, y))
    again = load_head(tmp_path, {"name": "blend", **head.save(tmp_path)})
    np.testing.assert_allclose(again.predict_proba(features), head.predict_proba(features), rtol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear", "mlp", "ridge", "svm"]


def test_it_is_made_of_heads_that_are_trained_already():
    features, y = blobs(120, 12, 3, apart=1.5)
    problem = problem_of(features, y)
    heads = {name: HEADS[name]("classes", QUICK).fit(problem) for name in ("linear", "ridge", "svm", "mlp", "knn")}
    made = BlendHead("classes", QUICK).fit_from(heads, problem)
    # Trained twice, as far as the solvers go: BLAS may round otherwise where an array begins elsewhere in memory.
    again = BlendHead("classes", QUICK).fit(problem)
    np.testing.assert_allclose(made.predict_proba(features), again.predict_proba(features), rtol=1e-4, atol=1e-6)


def test_too_few_rows_to_calibrate():
    features = np.eye(2, 6, dtype=np.float32)
    head = BlendHead("classes", QUICK).fit(problem_of(features, np.array([0, 1])))
    assert head.search.scores is None
    assert head.inverse_temperature == 1
    assert head.predict(features).tolist() == [0, 1]
    assert len(head.search.notices) == len(set(head.search.notices))


def test_auto_takes_the_blend_unless_another_head_is_clearly_better():
    rows = np.zeros(400)
    samples = np.random.default_rng(0).multinomial(400, np.full(400, 1 / 400), size=200)
    good, little_better, better = rows + 0.0, rows.copy(), rows + 1
    good[:360], little_better[:362] = 1, 1
    assert choose({"linear": little_better, "blend": good}, samples) == "blend"
    assert choose({"linear": better, "blend": good, "svm": better}, samples) == "linear"


def test_auto_trains_and_ranks_the_blend():
    features, y = blobs(120, 12, 3, apart=1.5)
    trained = train_head("auto", problem_of(features, y), QUICK)
    (entry,) = (entry for entry in trained.ranking if entry["head"] == "blend")
    assert entry["chosen"] == (trained.head.name == "blend")
    assert entry["interval"][0] <= entry["score"] <= entry["interval"][1]
