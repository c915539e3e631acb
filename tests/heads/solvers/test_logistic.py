"""The optimum of logistic regression is found on standardised features."""

from __future__ import annotations

import numpy as np
from examples import blobs, problem_of

from pipeline.heads.solvers.logistic import fit_logistic


def test_at_the_optimum_the_gradient_is_the_penalty():
    problem = problem_of(*blobs(90, 6, 3))
    standard = problem.standard()
    weight, bias, search = fit_logistic(problem, standard, problem.folds(5, 13))
    features = standard.apply(problem.rows.array()).astype(np.float64)
    logits = features @ weight.T + bias
    chances = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    off = chances - (problem.y[:, None] == np.arange(3))
    np.testing.assert_allclose(off.T @ features, -weight / search.chosen["C"], atol=2e-3)
    np.testing.assert_allclose(off.sum(axis=0), 0, atol=2e-3)
