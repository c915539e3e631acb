"""Losses against their formulas, and slopes against torch's derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.heads.solvers.losses import LogLoss, SquaredHinge

SCORES = np.random.default_rng(0).normal(size=(2, 3, 8))
TARGET = np.arange(8) % 3


@pytest.mark.parametrize("kind", [LogLoss, SquaredHinge])
@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_losses_and_slopes_are_those_that_torch_derives(kind, array):
    scores = torch.tensor(SCORES, requires_grad=True)
    expected = _losses(kind, scores, torch.from_numpy(TARGET).expand(2, 8))
    (slopes,) = torch.autograd.grad(expected.sum(), scores)
    loss, slope = kind().evaluate(array(SCORES), array(TARGET))
    np.testing.assert_allclose(loss, expected.detach())
    np.testing.assert_allclose(slope, slopes, atol=1e-12)


def _losses(kind, scores, target):
    if kind is LogLoss:
        return torch.nn.functional.cross_entropy(scores, target, reduction="none")
    sign = torch.nn.functional.one_hot(target, 3).movedim(-1, 1) * 2 - 1
    return torch.relu(1 - sign * scores).square().sum(dim=1)


def test_a_probability_that_underflows_still_has_a_loss():
    loss, _ = LogLoss().evaluate(np.array([[[0.0], [400.0]]]), np.array([0]))
    assert loss.item() == pytest.approx(400)


def test_two_classes_are_pulled_as_one_vector_is():
    assert (LogLoss().pull(2), LogLoss().pull(3), SquaredHinge().pull(2)) == (2.0, 1.0, 1.0)
