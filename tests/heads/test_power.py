"""The root of features is taken where training rows say that it is clearly better, and kept with the head."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from examples import blobs, line, problem_of

from pipeline.config import FitSettings
from pipeline.errors import ModelError
from pipeline.heads import HEADS, load_head
from pipeline.heads.power import Power
from pipeline.heads.rows import StreamedRows
from pipeline.heads.selection import train_head, with_power

QUICK = FitSettings.of({"epochs": 4, "hidden": 16, "cv": 3})
PAIRS = [(name, task) for name in HEADS for task in HEADS[name].learns]


def contrasts(rows, *, seed=0):
    """Pictures of all contrasts, and features that a few activations outweigh."""
    features, y = blobs(rows, 24, 3, seed=seed, apart=0.8)
    gain = np.exp(1.5 * np.random.default_rng(seed).normal(size=(rows, 1)))
    return (features**2 * gain).astype(np.float32), y


def test_rows_of_each_layer_are_roots_of_length_one():
    features = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    features[2, :3] = 0
    out = Power((3, 4)).apply(features)
    root = np.sign(features) * np.sqrt(np.abs(features))
    wanted = np.concatenate(
        [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-30) for part in (root[:, :3], root[:, 3:])],
        axis=1,
    )
    np.testing.assert_allclose(out, wanted, rtol=1e-6)
    assert (out[2, :3] == 0).all()
    np.testing.assert_array_equal(Power((3, 4)).apply(features.reshape(5, 1, 7))[:, 0], out)
    assert np.isfinite(Power((7,)).apply(np.full((1, 7), 3e38, np.float32))).all()


def test_it_is_taken_where_it_is_clearly_better_and_then_is():
    features, y = contrasts(900)
    train, test = slice(0, 300), slice(300, None)
    problem = problem_of(features[train], y[train])
    auto, plain = (train_head("linear", problem, FitSettings.of({"power": power})).head for power in ("auto", "none"))
    assert auto.search.chosen["power"] == "sqrt"
    assert "power" not in plain.search.chosen
    rows = np.arange(600)
    losses = [-np.log(head.predict_proba(features[test])[rows, y[test]]).mean() for head in (auto, plain)]
    assert losses[0] < 0.9 * losses[1]


@pytest.mark.parametrize("seed", range(3))
def test_features_are_left_as_they_are_where_they_are_fine(seed):
    problem = problem_of(*blobs(200, 24, 3, seed=seed))
    folds = problem.folds(5, 13)
    assert with_power(problem, folds, FitSettings.of({}))[0].power == "none"
    numbers = problem_of(*line(200, 10, seed=seed))
    assert with_power(numbers, numbers.folds(5, 13), FitSettings.of({}))[0].power == "none"


def test_copies_are_no_evidence():
    """The more often the same rows are seen, the surer whoever counts them would be."""
    features, y = contrasts(24)
    few = problem_of(features, y)
    many = problem_of(np.tile(features, (40, 1)), np.tile(y, 40), groups=np.tile(np.arange(24), 40))
    settings = FitSettings.of({"cv": 3})
    assert with_power(few, few.folds(3, 13), settings)[0].power == "none"
    assert with_power(many, many.folds(3, 13), settings)[0].power == "none"


@pytest.mark.parametrize(("name", "data"), [("linear", lambda: contrasts(300)), ("ridge", lambda: line(90, 24))])
def test_the_model_that_told_is_the_head_and_is_not_trained_again(name, data, monkeypatch):
    """It is the very head that is trained with the power that is named."""
    problem = problem_of(*data())
    trained = []
    train = HEADS[name].train
    monkeypatch.setattr(HEADS[name], "nests", 0)
    monkeypatch.setattr(HEADS[name], "train", lambda self, *given: trained.append(1) or train(self, *given))
    told = train_head(name, problem, FitSettings.of({"head": name})).head
    assert len(trained) == 2
    power = told.search.chosen.get("power", "none")
    named = train_head(name, problem, FitSettings.of({"head": name, "power": power})).head
    np.testing.assert_array_equal(told.weight, named.weight)
    assert told.search.chosen == named.search.chosen


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_every_head_keeps_it(name, task, tmp_path):
    features, y = contrasts(90) if task == "classes" else line(90, 24)
    settings = QUICK.model_copy(update={"power": "sqrt"})
    head = HEADS[name](task, settings).fit(problem_of(features, y, widths=(10, 14)))
    assert head.search.chosen["power"] == "sqrt"
    again = load_head(tmp_path, json.loads(json.dumps({"name": name, **head.save(tmp_path)})))
    np.testing.assert_array_equal(again.predict_proba(features), head.predict_proba(features))
    plain = HEADS[name](task, QUICK).fit(problem_of(Power((10, 14)).apply(features), y, widths=(10, 14)))
    np.testing.assert_allclose(
        head.predict_proba(features), plain.predict_proba(Power((10, 14)).apply(features)), rtol=1e-4, atol=1e-6
    )
    views = np.stack([features[:40], features[40:80]], axis=1)
    assert head.predict_proba(views).shape == head.predict_proba(features[:40]).shape


@pytest.mark.parametrize("name", ["linear", "ridge"])
def test_rows_that_are_streamed_are_transformed_as_they_pass(name):
    features, y = contrasts(400)
    settings = FitSettings.of({"power": "sqrt"})
    problem = problem_of(features, y)
    streamed = replace(problem, rows=StreamedRows(lambda which: features[which], np.arange(400), 24))
    heads = [HEADS[name]("classes", settings).fit(one) for one in (problem, streamed)]
    np.testing.assert_allclose(heads[0].weight, heads[1].weight, atol=2e-3 * np.abs(heads[0].weight).max())


@pytest.mark.parametrize(
    "power",
    [
        None,
        1,
        "sqrt",
        [],
        {},
        {"kind": "log", "widths": [24]},
        {"kind": "sqrt", "widths": [0, 24]},
        {"kind": "sqrt", "widths": [25]},
        {"kind": "sqrt", "widths": "many"},
    ],
)
def test_a_forged_power_is_refused(power, tmp_path):
    features, y = contrasts(60)
    head = HEADS["linear"]("classes", FitSettings.of({"power": "sqrt"})).fit(problem_of(features, y))
    config = {"name": "linear", **head.save(tmp_path), "power": power}
    with pytest.raises(ModelError):
        load_head(tmp_path, config).predict_proba(features)
