"""The request of a run to a feature file: a header, and the columns that are known before any image is read."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.errors import SettingsError, StoreError
from pipeline.sources import Manifest
from pipeline.store.header import Environment, Header, Part, encode_texts, escape, new_token, plain_name, target_column
from pipeline.store.layout import LayerSpec, plan_columns
from pipeline.store.rows import RowFile


@dataclass(frozen=True)
class Request:
    """A header whose columns have no place yet, and the `fixed` columns: ids, splits and targets."""

    header: Header
    fixed: dict[str, NDArray[Any]]

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        layers: Sequence[LayerSpec],
        recipe: Recipe,
        environment: Environment,
        part: Part | None,
    ) -> Self:
        """Make the request for the features of `manifest`.

        Raises `StoreError` where it is empty or an id is there twice, `SettingsError` where `part` has other rows.
        """
        ids = _unique([record.id for record in manifest.records])
        if not ids or not layers:
            raise StoreError("a feature file needs at least one image and one layer")
        part = part or Part.whole(ids)
        if part.stop - part.start != len(ids):
            raise SettingsError(f"{len(ids)} rows are not rows {part.start} to {part.stop}")
        splits = encode_texts([record.split for record in manifest.records])
        targets = manifest.targets.values()
        fixed: dict[str, NDArray[Any]] = {"id": encode_texts(ids), "split": splits}
        for target in targets:
            fixed[target_column(target.name)] = np.asarray(target.values, "<f8" if target.task == "numbers" else "<i8")
        header = Header(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            token=new_token(),
            source=escape(str(manifest.source)),
            recipe=recipe,
            environment=environment,
            part=part,
            targets={
                target_column(target.name): None if target.names is None else tuple(map(escape, target.names))
                for target in targets
            },
            columns=plan_columns(layers, fixed),
        )
        return cls(header, fixed)

    @classmethod
    def like(cls, header: Header, fixed: dict[str, NDArray[Any]]) -> Self:
        """Make the request for a file with the layers of `header` and the rows of `fixed`."""
        layers = [
            LayerSpec(plain_name(name), column.shape[1:], "float32" if column.dtype == "<f4" else "float16")
            for name, column in header.columns.items()
            if name in header.layers
        ]
        columns = plan_columns(layers, fixed)
        return cls(header.model_copy(update={"columns": columns, "token": new_token()}), fixed)

    def is_met_by(self, file: RowFile) -> bool:
        """Return True where `file` has the same ids, splits, targets, layers and part: only its rows may differ."""
        mine, theirs = self.header, file.header
        if (theirs.source, theirs.part, theirs.targets) != (mine.source, mine.part, mine.targets):
            return False
        if _shapes(theirs) != _shapes(mine):
            return False
        return all(file.column(name).tobytes() == values.tobytes() for name, values in self.fixed.items())


def _unique(ids: list[str]) -> list[str]:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise StoreError(f"the id {name!r} stands for two images; ids must differ")
        seen.add(name)
    return ids


def _shapes(header: Header) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (column.dtype, column.shape) for name, column in header.columns.items()}
