"""Heads as torch modules give the answers of the heads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from examples import blobs, line, problem_of

from pipeline.config import FitSettings
from pipeline.errors import HeadError
from pipeline.heads import HEADS, Head
from pipeline.heads.modules import HeadModule
from pipeline.heads.spread import fit_interval
from pipeline.heads.svm import SvmHead

QUICK: dict[str, dict[str, Any]] = {"mlp": {"hidden": 8, "epochs": 3}, "blend": {"hidden": 8, "epochs": 3}}


def fitted(name: str, task: str, *, classes: int = 3, missing: bool = False) -> tuple[Head, np.ndarray[Any, Any]]:
    """A small head, and rows that it was not trained on."""
    if task == "classes":
        features, y = blobs(90, 12, classes)
        problem = problem_of(features[:60], y[:60] * 2 if missing else y[:60], classes=6 if missing else None)
    else:
        features, y = line(90, 12)
        problem = problem_of(features[:60], y[:60])
    head = HEADS[name](problem.task, FitSettings.of({"head": name, **QUICK.get(name, {})}))
    return head.fit(problem), features[60:]


@pytest.mark.parametrize("task", ["classes", "numbers"])
@pytest.mark.parametrize("name", list(HEADS))
def test_the_answers_are_those_of_the_head(name: str, task: str) -> None:
    if task not in HEADS[name].learns:
        pytest.skip(f"{name} does not learn {task}")
    head, rows = fitted(name, task)
    with torch.inference_mode():
        found, *halves = (answer.numpy() for answer in HeadModule(head)(torch.from_numpy(rows)))
    if task == "numbers":
        assert np.allclose(halves[0], head.half_widths(rows), rtol=1e-5)
    # The kernel and the products of knn are sums in another order.
    assert np.allclose(found, head.predict_proba(rows), rtol=1e-5, atol=1e-6)


def test_a_power_of_features_comes_first() -> None:
    features, y = blobs(60, 12, 3)
    features[0] = 0
    problem = problem_of(features, y, widths=(5, 7))
    head = HEADS["linear"]("classes", FitSettings.of({"power": "sqrt"})).fit(problem)
    assert head.power is not None
    with torch.inference_mode():
        found = HeadModule(head)(torch.from_numpy(features))[0].numpy()
    assert np.allclose(found, head.predict_proba(features), rtol=1e-4, atol=1e-6)


def test_intervals_are_wider_where_errors_are() -> None:
    random = np.random.default_rng(1)
    features = random.normal(size=(400, 4)).astype(np.float32)
    y = features[:, 1] + np.exp(features[:, 0]) * random.normal(size=400)
    head = HEADS["ridge"]("numbers", FitSettings.of({})).fit(problem_of(features, y))
    fit_interval(head, problem_of(features, y))
    assert head.spread is not None
    with torch.inference_mode():
        _, halves = HeadModule(head)(torch.from_numpy(features))
    assert np.allclose(halves.numpy(), head.half_widths(features), rtol=1e-5)
    assert np.ptp(halves.numpy()) > 0


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize(("classes", "missing"), [(2, False), (3, True)])
def test_every_machine(kernel: str, classes: int, missing: bool) -> None:
    features, y = blobs(80, 6, classes)
    problem = problem_of(features, y * 2 if missing else y, classes=6 if missing else None)
    head = SvmHead("classes", FitSettings.of({"head": "svm", "kernel": kernel})).fit(problem)
    with torch.inference_mode():
        found = HeadModule(head)(torch.from_numpy(features))[0].numpy()
    assert np.allclose(found, head.predict_proba(features), rtol=1e-5, atol=1e-6)


def test_a_head_of_another_kind_is_refused() -> None:
    with pytest.raises(HeadError, match="head 'strange' cannot be exported"):
        HeadModule(cast("Head", SimpleNamespace(name="strange", task="classes")))
