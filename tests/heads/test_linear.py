"""Logistic regression as a head: what it refuses, where it computes, and one penalty for copies of rows."""

from __future__ import annotations

import numpy as np
import pytest
from examples import blobs, line, problem_of

from pipeline.config import FitSettings
from pipeline.errors import HeadError
from pipeline.heads import LinearHead
from pipeline.heads.solvers.logistic import PENALTIES


def test_numbers_are_for_another_head():
    with pytest.raises(HeadError, match="take --head regressor or ridge for numbers"):
        LinearHead("numbers", FitSettings.of({})).fit(problem_of(*line(30, 4)))


def test_penalties_are_tried_from_strong_to_weak_until_none_is_better():
    head = LinearHead("classes", FitSettings.of({})).fit(problem_of(*blobs(200, 12, 3)))
    tried = [entry["C"] for entry in head.search.table]
    assert tried == sorted(tried)
    assert 3 < len(tried) <= len(PENALTIES)
    assert head.search.chosen["C"] in tried


def test_too_few_rows_take_the_default_penalty():
    features, y = blobs(3, 4, 3)
    head = LinearHead("classes", FitSettings.of({})).fit(problem_of(features, np.arange(3)))
    assert head.search.chosen == {"C": pytest.approx(1 / 0.3)}
    assert len(y) == 3
