"""One hidden layer with ReLU on standardised features, for classes and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.affine import read_tensors, write_tensors
from pipeline.heads.contract import Head, Problem, Search
from pipeline.heads.standard import Standard
from pipeline.heads.steps import Lesson, Plan, search_epochs, train_on_all

#: What is tried; every further decay costs as much as the first.
DECAYS = (1.0,)
EPOCHS = 40
#: Steps an epoch that the batch size aims at, within its limits.
STEPS, SMALLEST_BATCH, LARGEST_BATCH = 8, 8, 512
#: Where nothing can be held back to find better.
DEFAULT: dict[str, Any] = {"epochs": 20, "decay": 1.0}
_NAMES = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")


class MlpHead(Head):
    """256 hidden units trained by RMSProp, as the length tutorial does; epochs by cross-validation."""

    name = "mlp"

    def train(self, problem: Problem, folds: NDArray[np.int64] | None) -> Search:
        """Train all folds and decays side by side, then all rows with the best decay for the best epochs."""
        standard = Standard.of(problem.rows)
        offset, unit = 0.0, 1.0
        if problem.classes is None:
            offset, unit = float(problem.y.mean()), float(problem.y.std())
        targets = problem.row_y if problem.classes else (problem.row_y - offset) / unit
        lesson = Lesson.of(problem, standard.apply(problem.rows.array()), targets)
        plan = self._plan(problem.rows.shape[0])
        if folds is None:
            search = Search(chosen={**DEFAULT, "epochs": min(DEFAULT["epochs"], plan.epochs)})
        else:
            search = search_epochs(plan, problem, lesson, folds, offset=offset, unit=unit)
        inner, inner_bias, outer, outer_bias = train_on_all(plan, lesson, search.chosen)
        hidden, hidden_bias = standard.fold(inner.T, inner_bias)
        self.layers = (
            hidden,
            hidden_bias,
            (outer.T * unit).astype(np.float32),
            (outer_bias * unit + offset).astype(np.float32),
        )
        return search

    def _plan(self, rows: int) -> Plan:
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

    def decision(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
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
        """What `save` wrote."""
        head = cls.restore(config)
        tensors = read_tensors(folder, _NAMES)
        head.layers = (tensors[_NAMES[0]], tensors[_NAMES[1]], tensors[_NAMES[2]], tensors[_NAMES[3]])
        return head
