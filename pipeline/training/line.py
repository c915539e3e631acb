"""The line between a fitted head's network and the tuned one, and which point of it is kept.

    alpha 0: the frozen base with its fitted head        alpha 1: the tuned network

Weights in between often answer better than both ends (WiSE-FT, Wortsman et al., 2022, https://arxiv.org/abs/2109.01903).
The point of the smallest loss on the rows that judge is kept where a paired interval puts it above the head there;
where not, the head is. The gain that is told is of other rows, where there are such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, lerp
from torch.nn import functional

from pipeline.metrics import paired_interval
from pipeline.text import plural
from pipeline.training.batches import Batch
from pipeline.training.loop import Trainer
from pipeline.training.network import State, restore, snapshot

#: Points of the line that are looked at, from the head's network on.
ALPHAS = tuple(step / 10 for step in range(1, 11))

Kept = Literal["head", "line", "tuned"]


@dataclass(frozen=True)
class Part:
    """Rows to judge by: what gives their batches, and the group (N,) of each."""

    name: str
    batches: Callable[[], Iterable[Batch]]
    groups: NDArray[np.int64]


@dataclass(frozen=True)
class Verdict:
    """Gain of fine-tuning over the head on the same `rows`, with its 95 % interval, and what is kept for that.

    `gain` is of accuracy, or of the mean absolute error in the target's unit. `alpha` is the point of the line that was
    compared, kept or not. `looks` at the same rows chose it; 0 where the rows chose nothing. `time_ratio` is the time
    of the epochs over that of one pass of the frozen network over their rows, which is what a head on it costs.
    """

    gain: float
    low: float
    high: float
    rows: int
    time_ratio: float
    kept: Kept
    alpha: float
    split: str
    looks: int
    is_accuracy: bool

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, and what is kept."""
        names = ("gain", "low", "high", "rows", "time_ratio", "kept", "alpha", "split", "looks")
        return {name: getattr(self, name) for name in names}

    def summary(self) -> str:
        """Say it in a sentence."""
        shown = [f"{100 * one:+.1f}" if self.is_accuracy else f"{one:+.4g}" for one in (self.gain, self.low, self.high)]
        what = "points" if self.is_accuracy else "in mean absolute error"
        gained = (
            f"{shown[0]} {what} ({shown[1]} to {shown[2]}) over the frozen head on the same {plural(self.rows, 'row')}"
        )
        caution = f"; the figure is the best of {self.looks} looks at them" if self.looks else ""
        time = f"for {self.time_ratio:.1f} times the time"
        if self.kept == "head":
            return f"fine-tuning does not beat the head it came from: the head is kept ({gained}, {time}{caution})"
        where = f", {self.alpha:.0%} of the way from it".replace("%", " %") if self.kept == "line" else ""
        return f"fine-tuning gains {gained}{where}, {time}{caution}"


def settle(
    trainer: Trainer, head: State, *, val: Part, judged: Part, epochs: int, time_ratio: float, scale: float, seed: int
) -> Verdict:
    """Give the trainer's network, which is the tuned one, the weights that are worth keeping, and say what they gain.

    `head` is the snapshot of the network as it came from the fitted head, `val` are the rows that chose the epoch among
    `epochs`, and `judged` those that the gain is measured on: others, or the same. `scale` is the unit of numbers.
    """
    network = trainer.network
    tuned = snapshot(network)
    alpha, gaps = _best_point(trainer, head, tuned, val)
    low, _ = paired_interval(gaps, val.groups, seed=seed)
    candidate = between(head, tuned, alpha)
    restore(network, candidate)
    outputs, targets = trainer.outputs(judged.batches())
    restore(network, head)
    before, _ = trainer.outputs(judged.batches())
    gains = _quality(outputs, targets, scale) - _quality(before, targets, scale)
    kept: Kept = "head" if low <= 0 else "tuned" if alpha == 1 else "line"
    if kept != "head":
        restore(network, candidate)
    network.eval()
    gain_low, gain_high = paired_interval(gains, judged.groups, seed=seed)
    return Verdict(
        gain=float(gains.mean()),
        low=gain_low,
        high=gain_high,
        rows=len(gains),
        time_ratio=time_ratio,
        kept=kept,
        alpha=alpha,
        split=judged.name,
        looks=epochs + len(ALPHAS) if judged.name == val.name else 0,
        is_accuracy=not targets.is_floating_point(),
    )


def between(head: State, tuned: State, alpha: float) -> State:
    """Return the weights at `alpha` of the way; counters are those of the tuned network.

    >>> import torch
    >>> between({"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}, 0.25)
    {'w': tensor([1.])}
    """
    return {
        name: lerp(head[name], end, alpha) if end.is_floating_point() and alpha < 1 else end
        for name, end in tuned.items()
    }


def _best_point(trainer: Trainer, head: State, tuned: State, val: Part) -> tuple[float, NDArray[np.float64]]:
    """Return the alpha above 0 of the smallest loss, and how much smaller it is than the head's, row by row."""
    restore(trainer.network, head)
    before = _losses(*trainer.outputs(val.batches()))
    losses = {}
    for alpha in ALPHAS:
        restore(trainer.network, between(head, tuned, alpha))
        losses[alpha] = _losses(*trainer.outputs(val.batches()))
    best = min(ALPHAS, key=lambda alpha: float(losses[alpha].mean()))
    return best, before - losses[best]


def _losses(outputs: Tensor, targets: Tensor) -> NDArray[np.float64]:
    if targets.is_floating_point():
        return np.asarray((outputs[:, 0].double() - targets.double()).square().numpy())
    return np.asarray(functional.cross_entropy(outputs.double(), targets, reduction="none").numpy())


def _quality(outputs: Tensor, targets: Tensor, scale: float) -> NDArray[np.float64]:
    """Compute what is better where it is larger (N,): right or not, or the negative absolute error."""
    if targets.is_floating_point():
        return np.asarray(-(outputs[:, 0].double() - targets.double()).abs().numpy() * scale)
    return np.asarray((outputs.argmax(dim=1) == targets).double().numpy())
