"""The optimum of logistic regression is found on standardised features, on the device that is asked for."""

from __future__ import annotations

import numpy as np
import torch
from examples import blobs, problem_of

from pipeline.heads.solvers.logistic import fit_logistic, solver_device


def test_the_solver_runs_on_the_cpu_where_it_is_asked_to():
    assert solver_device("cpu").type == "cpu"


def test_mps_has_no_double_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert solver_device("auto") == solver_device("mps") == torch.device("cpu")


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
