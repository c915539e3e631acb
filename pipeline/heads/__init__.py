"""The heads, one file each: small models on cached features. A new one is a file and a line here.

`HEADS` maps a name to a class; `load_head` opens what a head's `save` wrote. See `contract.py` for what a head is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError, SettingsError
from pipeline.heads.binned import BinnedHead
from pipeline.heads.blend import BlendHead
from pipeline.heads.contract import Head, Problem, Search, Task
from pipeline.heads.knn import KnnHead
from pipeline.heads.linear import LinearHead
from pipeline.heads.mlp import MlpHead
from pipeline.heads.ridge import RidgeHead
from pipeline.heads.svm import SvmHead
from pipeline.registry import Registry

HEADS: Registry[type[Head]] = Registry("head")
for _head in (LinearHead, SvmHead, RidgeHead, KnnHead, MlpHead, BinnedHead, BlendHead):
    HEADS.add(_head.name, _head)

__all__ = ["HEADS", "Head", "LinearHead", "Problem", "Search", "Task", "load_head"]


def load_head(folder: Path, config: Mapping[str, Any]) -> Head:
    """The head whose `save` wrote into `folder` and gave `config`, with its `name`. Raises `ModelError`."""
    try:
        return HEADS[str(config.get("name"))].load(folder, config)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, SettingsError) as error:
        raise ModelError(f"{folder}: the description of its head is damaged: {error}") from None
