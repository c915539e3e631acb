"""Heads are compared on rows that no search has seen, and the scores of the comparison can be believed."""

from __future__ import annotations

import numpy as np
import pytest
from examples import blobs, line, problem_of
from sklearn.linear_model import Ridge

from pipeline.config import FitSettings
from pipeline.errors import HeadError, SettingsError
from pipeline.heads import HEADS
from pipeline.heads.rows import ArrayRows, StreamedRows
from pipeline.heads.selection import (
    NESTED,
    SEARCHED,
    _qualities,
    choose,
    rank,
    standings,
    table_text,
    task_of,
    train_head,
)
from pipeline.heads.standard import Standard
from pipeline.metrics import accuracy_interval

QUICK = FitSettings.of({"epochs": 4, "hidden": 16, "cv": 3})


@pytest.mark.parametrize("contest", [False, True])
def test_auto_ranks_all_heads_on_the_same_rows(contest):
    features, y = blobs(240, 20, 3, apart=1.5)
    settings = QUICK.model_copy(update={"head": "auto", "contest": contest})
    trained = train_head("auto", problem_of(features, y), settings)
    names = [entry["head"] for entry in trained.ranking]
    assert sorted(names) == ["auto"] * contest + ["blend", "knn", "linear", "mlp", "ridge", "svm"]
    assert [entry["head"] for entry in trained.ranking if entry["chosen"]] == [trained.head.name]
    assert trained.compared_by == (NESTED if contest else SEARCHED)
    heads = trained.ranking[: len(names) - contest]
    assert heads == sorted(heads, key=lambda entry: -entry["score"])
    for entry in trained.ranking:
        assert entry["interval"][0] <= entry["score"] <= entry["interval"][1]
    fresh, truth = blobs(2000, 20, 3, apart=1.5)
    assert (trained.head.predict(fresh[240:]) == truth[240:]).mean() > 0.8
    assert "accuracy" in table_text(trained.ranking, numbers=False)


def counted(monkeypatch):
    """Names of the heads that are trained, in their order."""
    times = []
    for name in HEADS:
        train = HEADS[name].train
        monkeypatch.setattr(
            HEADS[name], "train", lambda head, *given, name=name, train=train: times.append(name) or train(head, *given)
        )
    return times


@pytest.mark.parametrize("contest", [False, True])
def test_auto_trains_nothing_twice_on_the_same_rows(contest, monkeypatch):
    times = counted(monkeypatch)
    settings = QUICK.model_copy(update={"head": "auto", "contest": contest, "power": "none"})
    trained = train_head("auto", problem_of(*blobs(120, 20, 3, apart=1.5)), settings)
    assert times == ["linear", "ridge", "knn", "svm", "mlp"] * (4 if contest else 1)
    assert trained.head.name == "blend"


def test_what_no_time_is_left_for_is_left_out_and_said(monkeypatch):
    """The clock jumps once the svm has said how far it is: what is trained by then is what there is."""
    now = [0.0]
    monkeypatch.setattr("pipeline.heads.selection.time.monotonic", lambda: now[0])

    def watch(share, what):
        if what.startswith("svm, penalty 3"):
            now[0] = 61.0

    problem = problem_of(*blobs(120, 20, 3, apart=1.5))
    settings = QUICK.model_copy(update={"head": "auto", "minutes": 1.0})
    trained = train_head("auto", problem, settings, watch=watch)
    assert sorted(entry["head"] for entry in trained.ranking) == ["blend", "knn", "linear", "ridge"]
    assert list(trained.head.members) == ["linear", "ridge"]
    assert trained.notices[0] == "svm, mlp not tried: 1.0 minutes were over; raise --minutes"


def test_a_contest_that_is_not_over_in_time_leaves_the_heads_that_are_trained(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pipeline.heads.selection.time.monotonic", lambda: now[0])

    def watch(share, what):
        if what.startswith("outer fold 2"):
            now[0] = 61.0

    settings = QUICK.model_copy(update={"head": "auto", "minutes": 1.0, "contest": True})
    trained = train_head("auto", problem_of(*blobs(120, 20, 3, apart=1.5)), settings, watch=watch)
    assert trained.compared_by == SEARCHED
    assert trained.head.name == "blend"
    assert any("the contest was not over within 1.0 minutes" in notice for notice in trained.notices)


def test_no_time_at_all_is_told():
    settings = FitSettings.of({"head": "auto", "minutes": 1e-9})
    with pytest.raises(HeadError, match="no head was trained within 1e-09 minutes; raise --minutes"):
        train_head("auto", problem_of(*blobs(60, 5, 2)), settings)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "linear", "contest": True}, "contest is for head=auto"),
        ({"head": "regressor", "contest": True}, "contest is for head=auto"),
        ({"head": "svm", "minutes": 3}, "minutes is for head=auto and regressor"),
    ],
)
def test_what_only_a_choice_among_heads_can_do_is_refused_of_one(options, said):
    with pytest.raises(SettingsError, match=said):
        FitSettings.of(options)


def test_regressor_takes_the_better_kind():
    features, y = line(160, 10)
    trained = train_head("regressor", problem_of(features, y), QUICK)
    assert sorted(entry["head"] for entry in trained.ranking) == ["binned", "mlp", "ridge", "svm"]
    assert trained.compared_by == "cross-validation of the searched settings"
    assert trained.head.name == "ridge"
    assert 0.8 < trained.ranking[0]["score"] < 1.4  # the noise has a standard deviation of 1
    assert trained.head.interval_half_width == pytest.approx(1.645, abs=0.5)


def test_a_head_without_scores_is_taken_for_one_that_says_the_mean():
    """For numbers zero would be no error at all."""
    features, y = line(60, 5)
    qualities = _qualities(problem_of(features, y), None)
    np.testing.assert_allclose(qualities, -np.square(y - y.mean()))
    assert not _qualities(problem_of(*blobs(60, 5, 2)), None).any()


def test_regressor_compares_ridge_on_the_same_folds_as_the_others():
    features, y = line(90, 40, noise=3)
    problem = problem_of(features, y)
    trained = train_head("regressor", problem, QUICK)
    (entry,) = (entry for entry in trained.ranking if entry["head"] == "ridge")
    alpha = HEADS["ridge"]("numbers", QUICK).fit(problem).search.chosen["alpha"]
    folds = problem.folds(QUICK.cv, QUICK.seed)
    said = np.empty(len(y))
    for fold in np.unique(folds):
        outside, inside = features[folds != fold], features[folds == fold]
        standard = Standard.of(ArrayRows(outside))
        fitted = Ridge(alpha=alpha).fit(standard.apply(outside), y[folds != fold])
        said[folds == fold] = fitted.predict(standard.apply(inside))
    assert entry["score"] == pytest.approx(np.sqrt(np.square(said - y).mean()), rel=1e-5)


def test_regressor_ranks_by_the_scores_of_the_searches_and_trains_nothing_twice(monkeypatch):
    features, y = line(160, 10)
    y = y + 9 * np.abs(features[:, 2])
    times = counted(monkeypatch)
    settings = QUICK.model_copy(update={"power": "none"})  # the search of which is one of ridge
    trained = train_head("regressor", problem_of(features, y), settings)
    assert times == ["ridge", "binned", "svm", "mlp"]
    assert trained.head.name == "svm"
    rmse = np.sqrt(np.square(trained.head.search.scores - y).mean())
    assert trained.ranking[0]["head"] == "svm"
    assert trained.ranking[0]["score"] == pytest.approx(rmse)
    fresh, truth = line(2000, 10)
    truth = truth + 9 * np.abs(fresh[:, 2])
    assert np.square(trained.head.predict(fresh[160:]) - truth[160:]).mean() < 0.5 * truth.var()


def test_nested_scores_of_pure_chance_are_chance():
    """Whoever reports the score that it selected by would look better than chance here."""
    random = np.random.default_rng(5)
    features, y = random.normal(size=(200, 300)).astype(np.float32), np.arange(200) % 2
    problem = problem_of(features, y)
    ranking = rank(("linear", "ridge", "knn", "svm"), problem, problem.folds(4, 0), QUICK)
    assert 0.38 <= np.mean([entry["score"] for entry in ranking]) <= 0.62
    assert ranking[-1]["interval"][0] <= 0.5 <= ranking[-1]["interval"][1] + 0.03


def test_the_simplest_of_equals_is_chosen_and_the_best_of_unequals():
    random = np.random.default_rng(0)
    samples = random.multinomial(500, np.full(500, 1 / 500), size=500)
    right = (np.arange(500) % 10 > 0).astype(float)
    same, worse = right.copy(), right.copy()
    same[:6] = [1, 0, 1, 0, 0, 1]
    worse[::5] = 0
    assert choose({"svm": right, "linear": same, "knn": worse}, samples) == "linear"
    assert choose({"svm": right, "linear": worse}, samples) == "svm"


def test_only_streaming_heads_compete_over_streamed_rows():
    features, y = blobs(300, 12, 3)
    problem = problem_of(features, y)
    streamed = StreamedRows(lambda which: features[which], np.arange(300), 12)
    trained = train_head("auto", type(problem)(streamed, y, problem.weights, problem.groups, 3), QUICK)
    assert sorted(entry["head"] for entry in trained.ranking) == ["linear", "ridge"]
    assert "raise --memory" in trained.notices[0]


def test_too_few_rows_to_compare():
    with pytest.raises(HeadError, match="name one with --head"):
        train_head("auto", problem_of(*blobs(3, 5, 3)), QUICK)


def test_unknown_heads_and_tasks():
    assert task_of("regressor") == "numbers"
    assert task_of("linear") == "classes"
    assert task_of("svm") is None
    with pytest.raises(SettingsError, match="did you mean 'ridge'"):
        task_of("rigde")


@pytest.mark.parametrize("name", ["svm", "mlp", "linear", "blend", "auto", "regressor"])
def test_whoever_waits_hears_what_is_searched_and_how_far_it_is(name):
    features, y = line(60, 6) if name == "regressor" else blobs(60, 6, 2, apart=2.0)
    heard: list[tuple[float, str]] = []
    settings = FitSettings.of({"epochs": 2, "hidden": 4, "cv": 2, "jobs": 1})
    train_head(name, problem_of(features, y), settings, watch=lambda share, what: heard.append((share, what)))
    shares = [share for share, _ in heard]
    assert len(shares) > 2
    assert 0 <= min(shares) <= max(shares) < 1.0001
    assert max(shares) > 0.3
    if name not in ("regressor", "auto", "blend"):
        assert all(what.startswith(name) for _, what in heard)
    if name == "auto":
        starts = [what for _, what in heard if what.count(",") == 0]
        assert starts == ["linear", "ridge", "knn", "svm", "mlp"]
    if name != "regressor":  # whose trials of ranges each go from nothing to all of it
        assert min(np.diff(shares)) > -1e-9


def test_a_head_that_is_right_on_every_row_is_not_said_to_be_perfect():
    problem = problem_of(*blobs(20, 5, 2))
    (entry,) = standings(problem, {"linear": np.eye(2)[problem.y]}, 13)
    assert entry["score"] == 1
    assert entry["interval"] == pytest.approx([0.8316, 1.0], abs=1e-4)


def test_the_ranking_weighs_rows_as_the_heads_do():
    """One head knows the rare class, one says the common one always: balanced weights prefer the first."""
    y = np.array([0] * 90 + [1] * 10)
    weights = np.where(y == 1, 5.0, 5 / 9)
    problem = problem_of(np.zeros((100, 2)), y, sample_weight=weights)
    knows, common = np.where(np.arange(100) % 3, y, 1), np.zeros(100, dtype=int)
    scores = {"linear": np.eye(2)[knows] * 0.8 + 0.1, "knn": np.eye(2)[common] * 0.8 + 0.1}
    ranking = {entry["head"]: entry for entry in standings(problem, scores, 13)}
    assert ranking["linear"]["chosen"]
    assert ranking["knn"]["score"] == pytest.approx(0.5)
    assert ranking["linear"]["score"] == pytest.approx((np.mean(knows[:90] == 0) + 1) / 2)
    low, high = ranking["linear"]["interval"]
    assert high - low > 0.25  # ten rows decide half of it
    plain = standings(problem_of(np.zeros((100, 2)), y), scores, 13)
    assert [entry["head"] for entry in plain if entry["chosen"]] == ["knn"]


def test_probabilities_out_of_fold_are_of_searches_that_saw_nothing_of_the_fold():
    features, y = blobs(60, 16, 3)
    problem, settings = problem_of(features, y), FitSettings.of({"power": "none"})
    head = train_head("linear", problem, settings).head
    folds = problem.folds(settings.cv, settings.seed)
    inside, outside = np.flatnonzero(folds != 2), np.flatnonzero(folds == 2)
    one = HEADS["linear"]("classes", settings).fit(problem.take(inside))
    np.testing.assert_array_equal(head.search.nested[outside], one.predict_proba(features[outside]))
    for name in ("ridge", "knn", "svm"):
        assert train_head(name, problem, settings).head.search.nested is not None
    quick = FitSettings.of({"power": "none", "epochs": 1, "hidden": 4})
    assert train_head("mlp", problem, quick).head.search.nested is None
    many = problem_of(*blobs(402, 4, 2))
    assert train_head("linear", many, settings).head.search.nested is None


def test_shuffled_labels_out_of_fold_are_told_by_chance():
    holds = 0
    for seed in range(30):
        features, _ = blobs(60, 64, 2, seed=seed)
        shuffled = np.random.default_rng([seed, 1]).permutation(np.arange(60) % 2)
        found = train_head(
            "ridge", problem_of(features, shuffled), FitSettings.of({"power": "none"})
        ).head.search.nested
        low, high = accuracy_interval((found.argmax(axis=1) == shuffled).astype(float), np.arange(60))
        holds += low <= 0.5 <= high
    assert holds >= 27
