"""A path of penalties is searched until it gets no better, and the chosen fit is the optimum for all rows."""

from __future__ import annotations

import numpy as np
import pytest
from examples import blobs, problem_of
from sklearn.linear_model import LogisticRegression

from pipeline.heads.calibration import softmax
from pipeline.heads.solvers.basis import make_basis
from pipeline.heads.solvers.losses import LogLoss
from pipeline.heads.solvers.path import PATIENCE, Path, fit_all, search_paths

STRENGTHS = [float(value) for value in np.logspace(-4, 3, 12)]


@pytest.fixture(scope="module")
def problem():
    return problem_of(*blobs(240, 8, 3))


@pytest.fixture(scope="module")
def basis(problem):
    return make_basis(problem.rows, problem.standard())


def test_the_search_ends_where_weaker_penalties_are_no_better(problem, basis):
    folds = np.arange(240) % 4
    found = search_paths(problem, [Path(basis, STRENGTHS, {"kind": "plain"})], folds, loss=LogLoss(), total=12)
    tried = [entry["C"] for entry in found.search.table]
    assert tried == STRENGTHS[: len(tried)]
    losses = [entry["loss"] for entry in found.search.table]
    assert len(tried) == 12 or len(tried) - 1 - int(np.argmin(losses)) == PATIENCE
    assert found.search.chosen["kind"] == "plain"
    assert found.search.chosen["C"] in tried


def test_no_penalty_at_all_is_a_mistake_of_the_caller(problem):
    with pytest.raises(ValueError, match="no penalty"):
        search_paths(problem, [], np.arange(240) % 4, loss=LogLoss(), total=0)


def test_the_fit_of_all_rows_is_scikit_learns(problem, basis):
    weight, bias = fit_all(problem, basis, 0.1, loss=LogLoss())
    features = problem.standard().apply(problem.rows.array()).astype(np.float64)
    reference = LogisticRegression(C=0.1, tol=1e-10, max_iter=5000).fit(features, problem.y)
    np.testing.assert_allclose(
        softmax(features @ weight.T + bias),
        reference.predict_proba(features),
        atol=1e-4,
    )
