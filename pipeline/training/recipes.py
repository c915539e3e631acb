"""The two recipes of fine-tuning: from what was left out of the settings to numbers, in one place.

    settings, what the recipe reads of data and base -> hyperparameters, in which nothing is left out

What a setting says wins over the recipe. `tutorial` is the tutorials' own; `default` starts from a fitted head (LP-FT,
https://arxiv.org/abs/2202.10054), moves the last blocks by little and those before by less, and takes the head back
where it is not beaten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config import FinetuneSettings
from pipeline.text import plural

#: Blocks that the default recipe trains at most: one before them would move at less than an eighth of the last's rate.
BLOCKS = 6
#: Rows from which labels are smoothed: with fewer, a calibrated start is worth more.
SMOOTHED = 1000
#: Sides of the input of which a batch has its full size.
SIDE = 224
#: Passes of a network that begins at random for each of one that was trained before.
FROM_SCRATCH = 4
#: Epochs of whose weights the mean is a candidate.
AVERAGED = 3


class Hyperparameters(FinetuneSettings):
    """Settings of a training in which the recipe has filled in what was left out; `step` None is a cosine."""

    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"]
    lr: float
    layer_decay: float
    warmup: float
    weight_decay: float
    label_smoothing: float
    freeze_norm: bool
    beat_head: bool

    @property
    def kept_epochs(self) -> int:
        """Best epochs whose weights are kept: one, or those that are averaged where the head is to be beaten."""
        return AVERAGED if self.beat_head else 1

    def line(self, blocks: int) -> str:
        """Say them in one line; `blocks` are those of the base."""
        name = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}[self.optimizer]
        rate = f"{name} {self.lr:.2g}" + f", times {self.layer_decay:g} a block" * (self.layer_decay < 1)
        drops = f"times {self.gamma:g} every {plural(self.step, 'epoch')}" if self.step else ""
        warm = f"rising over {100 * self.warmup:g} % of the steps" if self.warmup else ""
        extras = [
            f"weight decay {self.weight_decay:g}" * (self.weight_decay > 0),
            f"label smoothing {self.label_smoothing:g}" * (self.label_smoothing > 0),
            "batch norm as in evaluation" * self.freeze_norm,
        ]
        parts = [
            f"{plural(self.epochs, 'epoch')} of {self.batch_size} images a step",
            f"training {', '.join(self.train)}" + f" of {blocks} blocks" * self.train[0].startswith("last:"),
            rate,
            warm,
            "falling by a cosine" if self.step is None else drops,
            *extras,
        ]
        return f"{self.recipe} recipe: {', '.join(filter(None, parts))}"


@dataclass(frozen=True)
class Case:
    """The facts that a recipe reads: training rows, the longer side of the input, blocks of the base, how it begins.

    `fresh` is a base of random weights, `fitted` a start from the head of a model folder.
    """

    rows: int
    side: int = SIDE
    blocks: int = 1
    fresh: bool = False
    fitted: bool = False
    smoothable: bool = True


def resolve(settings: FinetuneSettings, case: Case) -> Hyperparameters:
    """Fill in what `settings` leave out.

    >>> found = resolve(FinetuneSettings.of({"lr": 0.002}), Case(rows=200, blocks=9))
    >>> found.epochs, found.batch_size, found.train, found.lr
    (16, 16, ('last:6',), 0.002)
    """
    chosen = settings.model_dump(exclude_unset=True)
    given = {name: value for name, value in chosen.items() if value is not None and value != ()}
    recipe = _tutorial(case) if settings.recipe == "tutorial" else _default(case, settings)
    return Hyperparameters.of({**recipe, **given})


def _tutorial(case: Case) -> dict[str, Any]:
    """PyTorch's "Transfer Learning for Computer Vision"; a fitted head is near its best, and large steps undo that."""
    return {
        "train": ("all",),
        "epochs": 25,
        "batch_size": 4,
        "optimizer": "sgd",
        "lr": 0.0001 if case.fitted else 0.001,
        "layer_decay": 1.0,
        "warmup": 0.0,
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
        "step": 7,
        "freeze_norm": False,
        "beat_head": False,
    }


def _default(case: Case, settings: FinetuneSettings) -> dict[str, Any]:
    batch = batch_size(case)
    rate = _rate(case, settings.batch_size or batch) * (10 if settings.optimizer == "sgd" else 1)
    return {
        "train": _trained(case),
        "epochs": _epochs(case),
        "batch_size": batch,
        "optimizer": "adamw",
        "lr": rate,
        "layer_decay": 1.0 if case.fresh else 0.7,
        "warmup": 0.1,
        "weight_decay": 0.05,
        "label_smoothing": 0.1 if case.rows >= SMOOTHED and case.smoothable else 0.0,
        "step": None,
        "freeze_norm": not case.fresh,
        "beat_head": case.fitted or not case.fresh,
    }


def _trained(case: Case) -> tuple[str, ...]:
    """Train the last blocks, never the first, whose edges and colours serve all pictures; all that begins at random."""
    if case.fresh or case.blocks < 2:
        return ("all",)
    return (f"last:{min(case.blocks - 1, BLOCKS)}",)


def _epochs(case: Case) -> int:
    """Fewer for more rows, although not as many fewer: the steps grow with the 3/4 power of the rows."""
    few: float = 60 / max(case.rows, 1) ** 0.25
    return round(max(3.0, min(25.0, few)) * (FROM_SCRATCH if case.fresh else 1))


def batch_size(case: Case) -> int:
    """About ten steps an epoch, by 4 to 32 images; fewer of large ones, since a step has to fit into memory."""
    most = 32 * min(1.0, (SIDE / case.side) ** 2)
    size = 4
    while 2 * size <= min(most, case.rows / 10):
        size *= 2
    return size


def _rate(case: Case, batch: int) -> float:
    """Grow with the root of the batch, as the noise of a step falls."""
    return float((1e-3 if case.fresh else 1e-4) * (batch / 16) ** 0.5)
