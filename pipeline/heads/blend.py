"""Several heads asked together: the mean of their probabilities, or of their values.

On few rows it is mostly chance which head is the best, and a choice among them is worse than any of them is expected to
be. Their mean needs no choice, and its probabilities are better than those of each (Caruana et al., 2004, who weigh the
members; on few rows the weights are chance again).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.heads.binned import BinnedHead
from pipeline.heads.contract import Head, Problem, Search
from pipeline.heads.linear import LinearHead
from pipeline.heads.mlp import MlpHead
from pipeline.heads.power import Power
from pipeline.heads.ridge import RidgeHead
from pipeline.heads.svm import SvmHead
from pipeline.progress import Course

MEMBERS: dict[str, type[Head]] = {kind.name: kind for kind in (LinearHead, RidgeHead, SvmHead, MlpHead, BinnedHead)}
SMALLEST = 1e-12


class BlendHead(Head):
    """The mean of linear (of numbers: binned), ridge, svm and mlp, each with its own search and calibration."""

    name = "blend"
    cost = sum(kind.cost for kind in MEMBERS.values() if kind is not LinearHead)  # of numbers, the dearer
    members: dict[str, Head]

    def train(self, problem: Problem, folds: NDArray[np.int64] | None) -> Search:
        """Train every member on the same folds."""
        kinds = [kind for kind in MEMBERS.values() if problem.task in kind.learns]
        course = Course(problem.watch, sum(kind.cost for kind in kinds))
        members: dict[str, Head] = {}
        for kind in kinds:
            watched = replace(problem, watch=course.next(kind.name, kind.cost))
            members[kind.name] = kind(problem.task, self.settings).fit(watched, folds)
        return self._take(members)

    def fit_from(self, heads: Mapping[str, Head], problem: Problem) -> Self:
        """As `fit`, of `heads` that were trained on `problem`; those that are no members are not asked."""
        self.search = self._take({name: heads[name] for name in MEMBERS if name in heads})
        self._calibrate(problem)
        return self

    def _take(self, members: dict[str, Head]) -> Search:
        self.members = members
        found = [head.calibrated(head.search.scores) for head in members.values() if head.search.scores is not None]
        return Search(
            table=[{"head": name, **head.search.chosen} for name, head in members.items()],
            chosen={"members": ", ".join(members)} | ({"power": "sqrt"} if self.settings.power == "sqrt" else {}),
            scores=self._mean(found) if len(found) == len(members) else None,
            notices=list(dict.fromkeys(notice for head in members.values() for notice in head.search.notices)),
        )

    def _own_power(self, problem: Problem) -> Power | None:
        """None: each member transforms what it is asked."""
        return None

    def _decide(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Log of the mean probability (n, C), or the mean value (n,), of features (n, D) or (n, V, D)."""
        return self._mean([head.calibrated(head.decision_function(features)) for head in self.members.values()])

    _decide_views = _decide  # each member takes the mean over views in its own way, as its out-of-fold scores do

    def _mean(self, answers: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        mean = np.mean(answers, axis=0)
        return np.asarray(mean if self.task == "numbers" else np.log(np.maximum(mean, SMALLEST)))

    def save(self, folder: Path) -> dict[str, Any]:
        """Each member in a folder of its name."""
        kept = []
        for name, head in self.members.items():
            (folder / name).mkdir()
            kept.append({"name": name, **head.save(folder / name)})
        return self.config() | {"members": kept}

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """Open what `save` wrote."""
        head = cls.restore(config)
        head.members = {one["name"]: MEMBERS[one["name"]].load(folder / one["name"], one) for one in config["members"]}
        shapes = {(member.task, member.dimensions, member.outputs) for member in head.members.values()}
        if [task for task, *_ in shapes] != [head.task]:
            raise ModelError(f"{folder}: the heads of the blend do not fit each other; train it again")
        return head

    @property
    def dimensions(self) -> int:
        """Features of a row."""
        return next(iter(self.members.values())).dimensions

    @property
    def outputs(self) -> int:
        """Classes, or 1."""
        return next(iter(self.members.values())).outputs
