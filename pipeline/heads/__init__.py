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

HEADS: Registry[type[Head]] = Registry("head")
for _name in NAMES:
    HEADS.add(_name, getattr(import_module(f"pipeline.heads.{_name}"), f"{_name.capitalize()}Head"))

__all__ = ["HEADS", "Head", "LinearHead", "Problem", "Search", "Task", "load_head"]


def load_head(folder: Path, config: Mapping[str, Any]) -> Head:
    """The head whose `save` wrote into `folder` and gave `config`, with its `name`. Raises `ModelError`."""
    try:
        return HEADS[str(config.get("name"))].load(folder, config)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, SettingsError) as error:
        raise ModelError(f"{folder}: the description of its head is damaged: {error}") from None
