from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import FinetuneSettings, FitSettings
from pipeline.heads import LinearHead
from pipeline.heads.contract import Problem
from pipeline.heads.rows import ArrayRows
from pipeline.heads.selection import train_head
from pipeline.sources import Target
from pipeline.splits import Split
from pipeline.training.dataset import Examples
from pipeline.training.recipes import Case, Hyperparameters, resolve
from pipeline.training.start import LARGEST_INVERSE_TEMPERATURE, fit_weights, weights_of

ROWS = 60


def settings(**given: Any) -> Hyperparameters:
    return resolve(FinetuneSettings.of(given), Case(rows=ROWS))


def examples(values: NDArray[Any], names: tuple[str, ...] | None) -> Examples:
    rows = np.arange(len(values))
    target = Target("what", values, names)
    return Examples(target, Split(rows, {"val": rows[:0]}, []), rows)


def clouds() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    codes = np.arange(ROWS) % 3 % 2
    return (rng.normal(size=(ROWS, 5)) + codes[:, None]).astype(np.float32), codes


def test_classes_start_from_the_head_that_fit_head_fits() -> None:
    features, codes = clouds()
    weight, bias = fit_weights(features, np.arange(ROWS), examples(codes, ("a", "b")), settings())
    problem = Problem(ArrayRows(features), codes, np.ones(ROWS), np.arange(ROWS), 2)
    head = train_head("linear", problem, FitSettings.of({"power": "none"})).head
    assert isinstance(head, LinearHead)
    logits = np.log(head.calibrated(head.decision_function(features)))
    own = features @ weight.T + bias
    np.testing.assert_allclose(own[:, 1] - own[:, 0], logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-4)


def test_balanced_classes_move_the_boundary_to_the_frequent_one() -> None:
    features, codes = clouds()
    of = examples(codes, ("often", "seldom"))
    plain, balanced = (
        fit_weights(features, np.arange(ROWS), of, settings(class_weight=how)) for how in ("none", "balanced")
    )
    said = [float(np.mean((features @ weight.T + bias).argmax(1))) for weight, bias in (plain, balanced)]
    assert said[1] > said[0]


def test_numbers_start_from_ridge() -> None:
    features, _ = clouds()
    values = features.astype(np.float64) @ np.arange(1.0, 6.0) + 100
    weight, bias = fit_weights(features, np.arange(ROWS), examples(values, None), settings())
    np.testing.assert_allclose(features @ weight[0] + bias, values, rtol=0.01)


@pytest.mark.parametrize(("given", "taken"), [(2.0, 2.0), (1e6, LARGEST_INVERSE_TEMPERATURE)])
def test_logits_are_calibrated_ones_but_not_without_end(given: float, taken: float) -> None:
    head = LinearHead.from_weights(np.ones((2, 3), np.float32), np.ones(2, np.float32), task="classes")
    head.inverse_temperature = given
    weight, bias = weights_of(head)
    assert (weight == taken).all()
    assert (bias == taken).all()
