"""One hidden layer with ReLU on standardised features, for classes and numbers.

Steps are taken in coordinates in which one learning rate fits any number of features, and which are never more than
the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.contract import Head, Problem, Search
from pipeline.heads.tensors import Tensors, write_tensors

if TYPE_CHECKING:
    from pipeline.heads.solvers.minibatch import Plan

#: What is tried: the strongest pays where most of the target is noise, the weakest where next to nothing is.
DECAYS = (1.0, 10.0, 40.0)
EPOCHS = 40
#: Steps an epoch that the batch size aims at, within its limits.
STEPS, SMALLEST_BATCH, LARGEST_BATCH = 8, 8, 512
#: Where nothing can be held back to find better.
DEFAULT: dict[str, Any] = {"epochs": 20, "decay": DECAYS[0]}
_NAMES = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")


class MlpHead(Head):
    """256 hidden units trained by RMSProp, as the length tutorial does; epochs by cross-validation."""

    name = "mlp"
    cost = 20.0
    layers: tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]

    def train(self, problem: Problem, folds: NDArray[np.int64] | None) -> Search:
        """Train all folds and decays side by side, then all rows with the best decay for the best epochs."""
        from pipeline.heads.solvers.coordinates import Coordinates  # torch, which answers do without
        from pipeline.heads.solvers.minibatch import Lesson, search_epochs, train_on_all

        standard = problem.standard()
        offset, unit = 0.0, 1.0
        if problem.classes is None:
            offset, unit = float(problem.y.mean()), float(problem.y.std())
        targets = (
            problem.row_y if problem.classes else (problem.row_y - offset) / (unit or 1.0)
        )  # where all are equal, the offset is all there is to say
        coordinates = Coordinates(problem.rows, standard)
        plan = self._plan(problem.rows.shape[0])
        search = Search(chosen={**DEFAULT, "epochs": min(DEFAULT["epochs"], plan.epochs)})
        if folds is not None:
            lesson = Lesson.of(problem, coordinates.of_folds(np.repeat(folds, problem.views)), targets)
            search = search_epochs(plan, problem, lesson, folds, offset=offset, unit=unit)
        lesson = Lesson.of(problem, coordinates.of_all(), targets)
        inner, inner_bias, outer, outer_bias = train_on_all(plan, lesson, search.chosen)
        hidden, hidden_bias = standard.fold(coordinates.standard_weights(inner).T, inner_bias)
        layers = (hidden, hidden_bias, outer.T * unit, outer_bias * unit + offset)
        self.place(Tensors.trained(dict(zip(_NAMES, layers, strict=True))))
        return search

    def place(self, tensors: Tensors) -> None:
        """Take both layers, trained or loaded; biases are in double precision, as those of affine heads."""
        hidden = tensors.take(_NAMES[0], (None, None), np.float32)
        hidden_bias = tensors.take(_NAMES[1], (len(hidden),), np.float64)
        output = tensors.take(_NAMES[2], (1 if self.task == "numbers" else None, len(hidden)), np.float32)
        self.layers = hidden, hidden_bias, output, tensors.take(_NAMES[3], (len(output),), np.float64)

    @property
    def dimensions(self) -> int:
        """Features of a row."""
        return int(self.layers[0].shape[1])

    @property
    def outputs(self) -> int:
        """Classes, or 1."""
        return len(self.layers[3])

    def _plan(self, rows: int) -> Plan:
        from pipeline.heads.solvers.minibatch import Plan

        settings = self.settings
        return Plan(
            hidden=settings.hidden,
            optimizer=settings.optimizer or "rmsprop",
            lr=settings.lr,
            momentum=settings.momentum,
            drop_every=0,
            epochs=settings.epochs or EPOCHS,
            batch_size=settings.batch_size or int(np.clip(rows // STEPS, SMALLEST_BATCH, LARGEST_BATCH)),
            decays=DECAYS,
            seed=settings.seed,
        )

    def _decide(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logits (n, C), or values (n,)."""
        hidden, hidden_bias, output, output_bias = (layer.astype(np.float64) for layer in self.layers)
        units = np.maximum(features.astype(np.float64) @ hidden.T + hidden_bias, 0)
        out = np.asarray(units @ output.T + output_bias)
        return out[:, 0] if self.task == "numbers" else out

    def save(self, folder: Path) -> dict[str, Any]:
        """Both layers in head.safetensors."""
        write_tensors(folder, dict(zip(_NAMES, self.layers, strict=True)))
        return self.config()

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """Open what `save` wrote."""
        head = cls.restore(config)
        head.place(Tensors.read(folder))
        return head
