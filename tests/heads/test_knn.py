"""Neighbours vote by their weight."""

from __future__ import annotations

import numpy as np
import pytest
from examples import line, problem_of

from pipeline.config import FitSettings
from pipeline.heads import HEADS
from pipeline.heads.knn import KnnHead

SETTINGS = FitSettings.of({})


@pytest.mark.parametrize("task", ["classes", "numbers"])
def test_a_row_of_weight_two_votes_as_two_rows(task):
    """Of an odd number of neighbours, each present twice, all votes are doubled; so they are by weight."""
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 4)).astype(np.float32)
    y = random.integers(0, 2, 40) if task == "classes" else random.normal(size=40)
    weights = random.integers(1, 4, 40)
    copies = np.repeat(np.arange(40), weights)
    head = KnnHead(task, SETTINGS).fit(problem_of(features, y, sample_weight=weights))
    head.setting["n_neighbors"] = 40
    weighted = head.decision_function(features[:5])
    head.rows, head.targets, head.row_weights = head.rows[copies], head.targets[copies], np.ones(len(copies))
    head.setting["n_neighbors"] = len(copies)
    np.testing.assert_allclose(head.decision_function(features[:5]), weighted, rtol=1e-6)


def test_the_search_counts_weights_too():
    """Every second row is wrong and weighs next to nothing."""
    features, y = line(400, 4)
    wrong = np.arange(400) % 2 == 0
    noisy = np.where(wrong, y + 30, y)
    trust = np.where(wrong, 0.001, 1.0)
    weighted = HEADS["knn"]("numbers", SETTINGS).fit(problem_of(features, noisy, sample_weight=trust))
    plain = HEADS["knn"]("numbers", SETTINGS).fit(problem_of(features, noisy))
    assert np.abs(weighted.search.scores - y)[~wrong].mean() < 3
    assert np.abs(plain.search.scores - y)[~wrong].mean() > 8
    assert weighted.search.notices == []
