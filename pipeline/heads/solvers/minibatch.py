"""Training by small steps: all folds and settings side by side as one stack of networks, the best epoch kept.

Every network of a stack sees its own rows, but all take their step in the same batched matrix products. The epoch is
chosen by rows that a network did not train on, inside the training rows; then all rows are trained on for as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.heads.contract import Problem, Search
from pipeline.heads.criterion import Best

#: Epochs without a smaller loss of any setting after which the search ends.
PATIENCE = 6
#: Share by which a loss must be smaller to count as such.
PROGRESS = 1e-3
#: What networks are worth, (K,) each, by the name of the measure.
Measures: TypeAlias = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Plan:
    """How steps are taken; `hidden` is None for a linear layer alone, `decays` are the settings to try.

    A decay is what a weight loses in each unit of learning rate (Loshchilov and Hutter, 2019).
    """

    hidden: int | None
    optimizer: str
    lr: float
    momentum: float
    drop_every: int
    epochs: int
    batch_size: int
    decays: tuple[float, ...]
    seed: int


class Stack:
    """K networks of the same shape: D features, perhaps a hidden layer with ReLU, `outputs` scores."""

    def __init__(self, plan: Plan, networks: int, dimensions: int, outputs: int) -> None:
        generator = torch.Generator().manual_seed(plan.seed)
        sizes = [dimensions, *([plan.hidden] if plan.hidden else []), outputs]
        self.weights, self.biases = [], []
        for fan_in, fan_out in pairwise(sizes):
            bound = fan_in**-0.5
            weight = (torch.rand(fan_in, fan_out, generator=generator) * 2 - 1) * bound
            self.weights.append(weight.repeat(networks, 1, 1).requires_grad_())
            self.biases.append(torch.zeros(networks, 1, fan_out, requires_grad=True))

    def __call__(self, rows: Tensor) -> Tensor:
        """Scores (K, B, outputs) of rows (K, B, D), or of the same rows (B, D) for all."""
        out = rows
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            out = torch.matmul(torch.relu(out) if place else out, weight) + bias
        return out

    def parameters(self) -> list[Tensor]:
        """All of them."""
        return [*self.weights, *self.biases]


@dataclass
class Lesson:
    """Examples of a stack: rows (n, D), or (folds, n, D) where each fold has its own, targets and weights (n,)."""

    rows: Tensor
    targets: Tensor
    weights: Tensor
    outputs: int

    @classmethod
    def of(cls, problem: Problem, rows: NDArray[np.float32], targets: NDArray[Any]) -> Lesson:
        """From a problem and its rows; numbers are given in standard deviations."""
        kind = torch.int64 if problem.classes else torch.float32
        return cls(
            torch.from_numpy(rows),
            torch.from_numpy(np.ascontiguousarray(targets)).to(kind),
            torch.from_numpy(problem.row_weights * problem.views).float(),
            problem.classes or 1,
        )

    def rows_of(self, network: int) -> Tensor:
        """Return the rows (n, D) of one network of a stack, which has the folds side by side for each setting."""
        return self.rows if self.rows.ndim == 2 else self.rows[network % len(self.rows)]

    def batch(self, which: Tensor) -> Tensor:
        """Return the rows `which` (K, B) of each network, (K, B, D)."""
        if self.rows.ndim == 2:
            return self.rows[which]
        return self.rows[(torch.arange(len(which)) % len(self.rows))[:, None], which]

    def losses(self, scores: Tensor, which: Tensor) -> Tensor:
        """Loss (K, B) of scores (K, B, outputs) of the rows `which` (K, B)."""
        targets = self.targets[which]
        if self.targets.dtype == torch.int64:
            return functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none").view(which.shape)
        return (scores[:, :, 0] - targets).square()

    def measures(self, losses: Tensor, scores: Tensor, which: Tensor) -> Measures:
        """Measure the networks in a step: mean loss (K,), of classes also the weighted share (K,) that was right."""
        found = {"loss": losses.mean(dim=1).double().numpy()}
        if self.targets.dtype == torch.int64:
            right = (scores.argmax(dim=2) == self.targets[which]) * self.weights[which]
            found["accuracy"] = (right.sum(dim=1) / self.weights[which].sum(dim=1)).double().numpy()
        return found


def train_stack(
    plan: Plan, lesson: Lesson, members: list[NDArray[np.int64]], decay: Tensor
) -> Iterator[tuple[Stack, Measures]]:
    """Yield the stack after each epoch, and the measures of its steps; network k learns from rows `members[k]`."""
    stack = Stack(plan, len(members), lesson.rows.shape[-1], lesson.outputs)
    optimizer = _optimizer(plan, stack.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, plan.drop_every or plan.epochs + 1, 0.1)
    generator = np.random.default_rng(plan.seed)
    for _ in range(plan.epochs):
        sums, count = dict[str, NDArray[np.float64]](), 0
        for which in _batches(members, plan.batch_size, generator):
            optimizer.zero_grad()
            scores = stack(lesson.batch(which))
            losses = lesson.losses(scores, which) * lesson.weights[which]
            torch.autograd.backward(losses.mean(dim=1).sum())  # networks share nothing: nor do their gradients
            optimizer.step()
            _shrink(stack, decay * schedule.get_last_lr()[0])
            measured = lesson.measures(losses.detach(), scores.detach(), which)
            sums = {name: value + sums.get(name, 0.0) for name, value in measured.items()}
            count += 1
        schedule.step()
        yield stack, {name: value / count for name, value in sums.items()}


def _shrink(stack: Stack, share: Tensor) -> None:
    if not share.any():
        return
    with torch.no_grad():
        for weight in stack.weights:
            weight.mul_(1 - share.clamp(max=1)[:, None, None])


def _batches(members: list[NDArray[np.int64]], size: int, generator: np.random.Generator) -> Iterator[Tensor]:
    """Yield an epoch of row numbers (K, B), in random order; networks with fewer rows see a few of them twice."""
    longest = max(len(one) for one in members)
    size = min(size, longest)
    steps = -(-longest // size)
    order = np.stack([np.resize(generator.permutation(one), steps * size) for one in members])
    for start in range(0, steps * size, size):
        yield torch.from_numpy(order[:, start : start + size])


def _optimizer(plan: Plan, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if plan.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=plan.lr, momentum=plan.momentum)
    if plan.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=plan.lr)
    return torch.optim.RMSprop(parameters, lr=plan.lr)


def search_epochs(
    plan: Plan, problem: Problem, lesson: Lesson, folds: NDArray[np.int64], *, offset: float = 0.0, unit: float = 1.0
) -> Search:
    """Find decay and epochs of least out-of-fold loss; `offset` and `unit` make scores numbers again."""
    row_folds = np.repeat(folds, problem.views)
    count = int(folds.max()) + 1
    members = [np.flatnonzero(row_folds != fold) for _ in plan.decays for fold in range(count)]
    decay = torch.tensor([decay for decay in plan.decays for _ in range(count)])
    curves: dict[float, list[dict[str, Any]]] = {decay: [] for decay in plan.decays}
    best = Best(problem, folds, problem.known(folds), progress=PROGRESS)
    for epoch, (stack, trained) in enumerate(train_stack(plan, lesson, members, decay), start=1):
        held = _held_out(stack, lesson, row_folds, count)
        for place, decay_value in enumerate(plan.decays):
            scores = held[place] if problem.classes else held[place][:, 0] * unit + offset
            found = best.offer({"epochs": epoch, "decay": decay_value}, problem.per_image(scores))
            mine = {name: float(one.reshape(-1, count)[place].mean()) for name, one in trained.items()}
            curves[decay_value].append(_entry(epoch, mine if problem.classes else _in_unit(mine["loss"], unit), found))
        problem.watch(epoch / plan.epochs, f"epoch {epoch} of {plan.epochs} at most")
        if epoch - best.setting["epochs"] >= PATIENCE and not plan.drop_every:
            break
    table = [{"decay": value, **min(curve, key=lambda entry: entry["val_loss"])} for value, curve in curves.items()]
    curve = curves[best.setting["decay"]]
    return Search(table, best.setting, best.scores, epochs=curve, best_epoch=best.setting["epochs"])


def _in_unit(loss: float, unit: float) -> dict[str, float]:
    """Convert the squared error of standardised numbers to that of the numbers, which held-out rows are measured by."""
    return {"loss": loss * unit**2, "rmse": loss**0.5 * unit}


def _entry(epoch: int, trained: dict[str, float], found: dict[str, float]) -> dict[str, Any]:
    parts = (("train", trained), ("val", found))
    return {"epoch": epoch, **{f"{part}_{name}": value for part, of in parts for name, value in of.items()}}


def _held_out(stack: Stack, lesson: Lesson, folds: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Scores (settings, n, outputs) of every row by the network that did not train on it."""
    settings = len(stack.weights[0]) // count
    out = np.empty((settings, len(folds), lesson.outputs))
    with torch.no_grad():
        for fold in range(count):
            held = np.flatnonzero(folds == fold)
            rows = lesson.rows_of(fold)[torch.from_numpy(held)]
            for setting in range(settings):
                out[setting, held] = _one(stack, setting * count + fold, rows).numpy()
    return out


def _one(stack: Stack, network: int, rows: Tensor) -> Tensor:
    """Scores (n, outputs) by one network of a stack."""
    out = rows
    for place, (weight, bias) in enumerate(zip(stack.weights, stack.biases, strict=True)):
        out = (torch.relu(out) if place else out) @ weight[network] + bias[network]
    return out


def train_on_all(plan: Plan, lesson: Lesson, chosen: dict[str, Any]) -> list[NDArray[np.float64]]:
    """Weight and bias of each layer, [(D, H), (H,), ...], after the chosen epochs on all rows."""
    members = [np.arange(len(lesson.targets))]
    epochs = train_stack(plan, lesson, members, torch.tensor([chosen["decay"]]))
    stack, _ = next(islice(epochs, chosen["epochs"] - 1, None))
    layers = zip(stack.weights, stack.biases, strict=True)
    return [
        np.asarray(tensor.detach().double().numpy()) for weight, bias in layers for tensor in (weight[0], bias[0, 0])
    ]
