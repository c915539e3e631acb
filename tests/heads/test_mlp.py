"""The hidden layer learns as much from wide features as from few, and its out-of-fold scores can be believed."""

from __future__ import annotations

import numpy as np
import pytest
from examples import line, problem_of

from pipeline.config import FitSettings
from pipeline.heads.mlp import MlpHead


def wide(rows: int, dimensions: int = 600, *, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).normal(size=(8, dimensions))
    hidden = random.normal(size=(rows, 8))
    noise = random.normal(size=(rows, dimensions))
    return np.asarray(hidden @ mixing + noise, dtype=np.float32)


def test_out_of_fold_scores_of_wide_features_are_those_of_new_rows():
    fresh, errors = wide(2000, seed=9), []
    truth = 10 * np.tanh(fresh[:, :40].mean(axis=1))
    for seed in range(2):
        features = wide(120, seed=seed)
        y = 10 * np.tanh(features[:, :40].mean(axis=1))
        head = MlpHead("numbers", FitSettings.of({"hidden": 64, "epochs": 15})).fit(problem_of(features, y))
        errors.append((np.square(head.search.scores - y).mean(), np.square(head.predict(fresh) - truth).mean()))
    out_of_fold, new = np.mean(errors, axis=0)
    assert new == pytest.approx(out_of_fold, rel=0.25)
    assert new < 0.3 * truth.var()


def test_the_decay_and_the_epochs_are_searched():
    features, y = line(100, 10)
    search = MlpHead("numbers", FitSettings.of({"hidden": 16, "epochs": 12})).fit(problem_of(features, y)).search
    assert [entry["decay"] for entry in search.table] == [1.0, 10.0, 40.0]
    best = min(search.table, key=lambda entry: entry["val_loss"])
    assert search.chosen["decay"] == best["decay"]
    assert search.chosen["epochs"] == search.best_epoch <= best["epoch"]
