"""The heads, one file each: small models on cached features. A new one is a file and its name in `config.HEADS`.

Head x is the class XHead in x.py, to which `HEADS` maps its name; `load_head` opens what a head's `save` wrote. See
`contract.py` for what a head is.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.config import HEADS as NAMES
from pipeline.errors import ModelError, SettingsError
from pipeline.heads.contract import Head, Problem, Search, Task
from pipeline.heads.linear import LinearHead
from pipeline.registry import Registry

#: Where in a model folder the head is that tells the spread of another one's errors.
SPREAD = "spread"

HEADS: Registry[type[Head]] = Registry("head")
for _name in NAMES:
    HEADS.add(_name, getattr(import_module(f"pipeline.heads.{_name}"), f"{_name.capitalize()}Head"))

__all__ = ["HEADS", "SPREAD", "Head", "LinearHead", "Problem", "Search", "Task", "load_head"]


def save_head(head: Head, folder: Path) -> dict[str, Any]:
    """Write `head` into `folder`, with what tells the spread of its errors; what is returned goes to `load_head`."""
    described = {"name": head.name, **head.save(folder)}
    if head.spread is not None:
        (folder / SPREAD).mkdir()
        described["spread"] = head.spread.save(folder / SPREAD)
    return described


def load_head(folder: Path, config: Mapping[str, Any]) -> Head:
    """Open the head whose `save` wrote into `folder` and gave `config`, with its `name`. Raises `ModelError`."""
    try:
        head = HEADS[str(config.get("name"))].load(folder, config)
        if (spread := config.get("spread")) is not None:
            head.spread = HEADS["ridge"].load(folder / SPREAD, spread)
            if (head.task, head.spread.task, head.spread.dimensions) != ("numbers", "numbers", head.dimensions):
                raise ValueError("the spread of its errors is told from other features")
        return head
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, SettingsError) as error:
        raise ModelError(f"{folder}: the description of its head is damaged: {error}") from None
