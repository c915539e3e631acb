"""Losses against their formulas, and slopes against differences of the loss."""

from __future__ import annotations

import pytest
import torch

from pipeline.heads.solvers.losses import LogLoss, SquaredHinge

SCORES = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGET = torch.arange(8).remainder(3).expand(2, 1, 8)


def test_log_loss_is_that_of_torch():
    loss, _ = LogLoss().evaluate(SCORES, TARGET)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(SCORES, TARGET[:, 0], reduction="none"))


def test_squared_hinge_is_what_falls_short_of_the_margin():
    loss, _ = SquaredHinge().evaluate(torch.tensor([[[0.5], [-2.0], [0.0]]]), torch.tensor([[[0]]]))
    assert loss.item() == pytest.approx(0.5**2 + 0 + 1)


@pytest.mark.parametrize("kind", [LogLoss, SquaredHinge])
def test_slopes_are_those_of_the_loss(kind):
    scores = SCORES.clone().requires_grad_()
    loss, slope = kind().evaluate(scores, TARGET)
    (expected,) = torch.autograd.grad(_sum_of(kind, scores), scores)
    torch.testing.assert_close(slope.detach(), expected)
    assert loss.shape == (2, 8)


def _sum_of(kind, scores):
    """The same loss by operations that torch can derive."""
    if kind is LogLoss:
        return torch.nn.functional.cross_entropy(scores, TARGET[:, 0], reduction="sum")
    sign = torch.nn.functional.one_hot(TARGET[:, 0], 3).movedim(-1, 1) * 2 - 1
    return torch.relu(1 - sign * scores).square().sum()


def test_a_probability_that_underflows_still_has_a_loss():
    loss, _ = LogLoss().evaluate(torch.tensor([[[0.0], [400.0]]]), torch.tensor([[[0]]]))
    assert loss.item() == pytest.approx(400)


def test_two_classes_are_pulled_as_one_vector_is():
    assert (LogLoss().pull(2), LogLoss().pull(3), SquaredHinge().pull(2)) == (2.0, 1.0, 1.0)
