"""The line between a fitted head's network and the tuned one, and which point of it is kept.

    alpha 0: the frozen base with its fitted head        alpha 1: the tuned network, of one epoch or the mean of some

Weights in between often answer better than both ends (WiSE-FT, Wortsman et al., 2022, https://arxiv.org/abs/2109.01903),
and so does the mean of several epochs (a greedy soup, Wortsman et al., 2022, https://arxiv.org/abs/2203.05482).
The point of the smallest loss on the rows that judge is kept where a paired interval puts it above the head there;
where not, the head is. The gain that is told is of other rows, where there are such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, lerp

from pipeline.metrics import paired_interval
from pipeline.text import plural
from pipeline.training.batches import Batch
from pipeline.training.loop import Trainer
from pipeline.training.network import State, restore

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
    compared, kept or not, and its end the mean of the weights after `epochs`, chosen
    among `tried` weights beside those of the epochs. `looks` at the same rows chose it; 0 where the rows chose nothing.
    `time_ratio` is the time of the epochs over that of one pass of the frozen network
    over their rows, which is what a head on it costs.
    """

    gain: float
    low: float
    high: float
    rows: int
    time_ratio: float
    kept: Kept
    alpha: float
    epochs: tuple[int, ...]
    split: str
    looks: int
    tried: int
    is_accuracy: bool

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, and what is kept."""
        names = ("gain", "low", "high", "rows", "time_ratio", "kept", "alpha", "epochs", "split", "looks")
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
        end = "it" if len(self.epochs) == 1 else f"the mean of {len(self.epochs)} epochs"
        where = f", {100 * self.alpha:.0f} % of the way from the head to {end}" if self.kept == "line" else ""
        return f"fine-tuning gains {gained}{where}, {time}{caution}"


def settle(
    trainer: Trainer,
    head: State,
    tuned: Mapping[int, State],
    *,
    val: Part,
    judged: Part,
    looks: int,
    time_ratio: float,
    scale: float,
    seed: int,
) -> Verdict:
    """Give the trainer's network the weights that are worth keeping, and say what they gain.

    `head` is the snapshot of the network as it came from the fitted head, `tuned` those after some epochs, which `val`
    chose by `looks` at it; `judged` are the rows that the gain is measured on: others, or the same. `scale` is the unit
    of numbers.
    """
    network = trainer.network
    epochs, end = soup(trainer, tuned, val)
    tried = len(tuned) - 1 + len(ALPHAS)
    alpha, gaps = _best_point(trainer, head, end, val)
    low, _ = paired_interval(gaps, val.groups, seed=seed)
    candidate = between(head, end, alpha)
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
        epochs=epochs,
        split=judged.name,
        looks=looks + tried if judged.name == val.name else 0,
        tried=tried,
        is_accuracy=not targets.is_floating_point(),
    )


def soup(trainer: Trainer, tuned: Mapping[int, State], val: Part) -> tuple[tuple[int, ...], State]:
    """Average the weights after the epochs, the best one first, as long as each makes the loss on `val` smaller.

    Return the numbers of these epochs, and the mean. The trainer's network has other weights afterwards.
    """
    (first, mean), *rest = tuned.items()
    epochs = [first]
    loss = _losses(trainer, mean, val).mean()
    for number, state in rest:
        wider = between(mean, state, 1 / (len(epochs) + 1))
        other = _losses(trainer, wider, val).mean()
        if other < loss:
            epochs, mean, loss = [*epochs, number], wider, other
    return tuple(epochs), mean


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
    before = _losses(trainer, head, val)
    losses = {alpha: _losses(trainer, between(head, tuned, alpha), val) for alpha in ALPHAS}
    best = min(ALPHAS, key=lambda alpha: float(losses[alpha].mean()))
    return best, before - losses[best]


def _losses(trainer: Trainer, state: State, val: Part) -> NDArray[np.float64]:
    """Compute the loss of each row with these weights, which the network keeps."""
    restore(trainer.network, state)
    return np.asarray(trainer.goal.losses(*trainer.outputs(val.batches())).numpy())


def _quality(outputs: Tensor, targets: Tensor, scale: float) -> NDArray[np.float64]:
    """Compute what is better where it is larger (N,): right or not, or the negative absolute error."""
    if targets.is_floating_point():
        return np.asarray(-(outputs[:, 0].double() - targets.double()).abs().numpy() * scale)
    return np.asarray((outputs.argmax(dim=1) == targets).double().numpy())
