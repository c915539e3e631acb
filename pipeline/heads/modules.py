"""Heads as torch modules that give the same raw scores, to become part of a graph.

Arithmetic is in double precision, as in the heads themselves; what is compared are the answers, before a graph is
written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import HeadError
from pipeline.heads.affine import AffineHead
from pipeline.heads.binned import BinnedHead
from pipeline.heads.blend import SMALLEST, BlendHead
from pipeline.heads.calibration import ABSENT
from pipeline.heads.contract import WIDEST, Head
from pipeline.heads.knn import DOUBT, KnnHead
from pipeline.heads.machines import KernelMachine, LinearMachine, RestMachine
from pipeline.heads.mlp import MlpHead
from pipeline.heads.power import Power
from pipeline.heads.svm import SvmHead

#: Length that is taken for one of nothing.
TINY = 1e-38
#: What makes the raw scores (B, C), or values (B,), of features (B, D).
Scores = Callable[[Tensor], Tensor]


class HeadModule(nn.Module):
    """Answers of a head to features float (B, D), as doubles.

    They are probabilities (B, C), or values (B,), and with them half of the width (B,) of their intervals where the
    head has any: `names` says which.
    """

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.names = ["probabilities" if head.task == "classes" else "value"]
        self._answers = [answers_of(head)]
        if head.interval_half_width is not None:
            self.names.append("half_width")
            self._answers.append(_half_widths(head, head.interval_half_width))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Answer for a batch."""
        return tuple(answers(features) for answers in self._answers)


def answers_of(head: Head) -> Scores:
    """Return what gives the calibrated answers of `head`; raises `HeadError` for one that has no such form."""
    scores = _scores_of(head)
    if head.task == "numbers":
        return scores
    return lambda features: torch.softmax(scores(features) * head.inverse_temperature, dim=1)


def _scores_of(head: Head) -> Scores:
    for kind, make in _MAKERS:
        if isinstance(head, kind):
            scores = make(head)
            return scores if head.power is None else _after(_power(head.power), scores)
    raise HeadError(f"head {head.name!r} cannot be exported; linear, ridge, svm, mlp, knn, binned and blend can")


def _half_widths(head: Head, usual: float) -> Scores:
    if head.spread is None:
        return lambda features: torch.full_like(features[:, 0], usual, dtype=torch.float64)
    logarithms, most = _scores_of(head.spread), math.log(WIDEST)
    return lambda features: usual * torch.exp(torch.clamp(logarithms(features), -most, most))


def _after(first: Scores, then: Scores) -> Scores:
    return lambda features: then(first(features))


def _power(power: Power) -> Scores:
    """Return what `Power.apply` does, in single precision."""

    def apply(features: Tensor) -> Tensor:
        roots = torch.sign(features) * torch.sqrt(torch.abs(features.float()))
        layers = torch.split(roots, list(power.widths), dim=1)
        lengths = [torch.sqrt(_squares(layer.double())) for layer in layers]
        units = [torch.where(length > 0, length, torch.ones_like(length)).float() for length in lengths]
        return torch.cat([layer / unit for layer, unit in zip(layers, units, strict=True)], dim=1)

    return apply


def _affine(head: AffineHead) -> Scores:
    weight, bias = _double(head.weight.T), _double(head.bias)
    return lambda features: _column(features.double() @ weight + bias, head)


def _mlp(head: MlpHead) -> Scores:
    hidden, hidden_bias, output, bias = (_double(layer.T) for layer in head.layers)
    return lambda features: _column(torch.relu(features.double() @ hidden + hidden_bias) @ output + bias, head)


def _binned(head: BinnedHead) -> Scores:
    shares, values = answers_of(head.classifier), _double(head.values)
    return lambda features: shares(features) @ values


def _blend(head: BlendHead) -> Scores:
    members = [answers_of(member) for member in head.members.values()]

    def scores(features: Tensor) -> Tensor:
        mean = torch.stack([answers(features) for answers in members]).mean(dim=0)
        return mean if head.task == "numbers" else torch.log(torch.clamp(mean, min=SMALLEST))

    return scores


def _svm(head: SvmHead) -> Scores:
    machine = _machine(head.machine)
    standard = _standard(head.standard.mean, head.standard.scale)
    known, classes = head.known, head.classes

    def scores(features: Tensor) -> Tensor:
        found = machine(standard(features))
        if classes is None:
            return found[:, 0] * head.unit + head.offset
        if found.shape[1] == 1:
            found = torch.cat([-found, found], dim=1)
        # A class without an example has a column of its own, of scores that are never the best.
        places = {int(code): place for place, code in enumerate(known)}
        absent = torch.full_like(found[:, :1], ABSENT)
        columns = [found[:, places[c] : places[c] + 1] if c in places else absent for c in range(classes)]
        return found if len(known) == classes else torch.cat(columns, dim=1)

    return scores


def _machine(machine: LinearMachine | RestMachine | KernelMachine) -> Scores:
    """Return what gives (B, K) of standardised features."""
    if isinstance(machine, LinearMachine):
        weight, intercept = _double(machine.weight.T), _double(machine.intercept)
        return lambda features: features.double() @ weight + intercept
    if isinstance(machine, KernelMachine) and len(machine.counts) > 2:
        raise HeadError("a head svm of version 0.1.0 with several classes cannot be exported; train it again")
    vectors, gamma = _double(machine.vectors), machine.gamma
    coefficients, intercept = _double(machine.coefficients.T), _double(machine.intercept)

    def scores(features: Tensor) -> Tensor:
        kernel = features.double() @ vectors.T
        if gamma is not None:
            kernel = torch.exp(-gamma * (_squares(features.double()) + _squares(vectors).T - 2 * kernel).clamp(min=0))
        return kernel @ coefficients + intercept

    return scores


def _knn(head: KnnHead) -> Scores:
    standard = _standard(head.standard.mean, head.standard.scale)
    rows, weights, setting = _double(head.rows), _double(head.row_weights), head.setting
    squares = _squares(rows).T
    lengths = squares.sqrt().clamp(min=TINY)
    targets, classes = torch.from_numpy(np.asarray(head.targets)), head.classes

    def scores(features: Tensor) -> Tensor:
        asked = standard(features).double()
        products = asked @ rows.T
        if setting["metric"] == "cosine":
            distances = 1 - products / (_squares(asked).sqrt().clamp(min=TINY) * lengths)
        else:
            distances = (_squares(asked) + squares - 2 * products).clamp(min=0).sqrt()
        nearest, places = torch.topk(distances, setting["n_neighbors"], dim=1, largest=False)
        voices = weights[places]
        if setting["weights"] != "uniform":
            voices = voices / nearest.clamp(min=1e-9)
        voices = voices / voices.sum(dim=1, keepdim=True)
        if classes is None:
            return (voices * targets[places]).sum(dim=1)
        votes = torch.nn.functional.one_hot(targets[places], classes).double()
        shares = (votes * voices[..., None]).sum(dim=1)
        return torch.log((1 - DOUBT) * shares + DOUBT / classes)

    return scores


def _standard(mean: NDArray[np.float64], scale: NDArray[np.float64]) -> Scores:
    """Return the division of `Standard.divide`, in single precision."""
    shift, unit = torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(scale.astype(np.float32))
    return lambda features: (features.float() - shift) / unit


def _squares(rows: Tensor) -> Tensor:
    return (rows * rows).sum(dim=1, keepdim=True)


def _double(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))


def _column(scores: Tensor, head: Head) -> Tensor:
    return scores[:, 0] if head.task == "numbers" else scores


#: How the scores of each kind are made.
_MAKERS: tuple[tuple[type[Head], Callable[[Any], Scores]], ...] = (
    (AffineHead, _affine),
    (MlpHead, _mlp),
    (BinnedHead, _binned),
    (BlendHead, _blend),
    (SvmHead, _svm),
    (KnnHead, _knn),
)
