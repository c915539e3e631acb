"""Join the parts of a feature file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.commands.results import Result
from pipeline.store.merge import join_parts


@dataclass(frozen=True)
class MergeResult(Result):
    """The merged file: its path, and the number of its parts and rows."""

    store: Path
    parts: int
    rows: int

    def summary(self) -> str:
        """Summarise in one line."""
        return f"{self.store}: {self.rows} rows of {self.parts} parts"


def merge(parts: str | Path | Sequence[str | Path], output: str | Path, *, force: bool = False) -> MergeResult:
    """Write the rows of `parts` (files, or a folder of them) to one file, each row checked on its way.

    Raises `StoreError` where parts are missing, overlap or do not belong together, `StoreDamagedError` where
    one is damaged, `OutputExistsError` where `output` is there, finished or not, and `force` is not given.
    """
    given = [parts] if isinstance(parts, str | Path) else parts
    return MergeResult(Path(output), *join_parts(given, output, force=force))
