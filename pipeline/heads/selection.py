"""From a head's name to a trained head: one head, or the best of several on the same folds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.config import FitSettings
from pipeline.errors import SettingsError
from pipeline.heads import HEADS
from pipeline.heads.contract import Head, Problem, Task
from pipeline.registry import nearest

#: Names that stand for a choice among heads, and the task each of them takes (None: either).
CHOOSERS: dict[str, Task | None] = {"regressor": "numbers", "auto": None}


@dataclass
class Trained:
    """A head, trained and calibrated, and how the heads that it was chosen from compare."""

    head: Head
    ranking: list[dict[str, Any]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def task_of(name: str) -> Task | None:
    """The only task that head `name` takes, or None where it takes both. Raises `SettingsError` for a stranger."""
    if name in CHOOSERS:
        return CHOOSERS[name]
    if name not in HEADS:
        known = [*HEADS, *CHOOSERS]
        raise SettingsError(f"unknown head {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    tasks = HEADS[name].learns
    return tasks[0] if len(tasks) == 1 else None


def train_head(name: str, problem: Problem, settings: FitSettings) -> Trained:
    """Train the head called `name`, or the best one where the name is regressor or auto."""
    head = HEADS[name](problem.task, settings).fit(problem)
    return Trained(head, notices=head.search.notices)
