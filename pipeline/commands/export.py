"""One file for other programs: a model as ONNX, from pixels to answer; a feature file as a Parquet table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Unpack

from pipeline.commands.results import Result
from pipeline.config import RerunSettings
from pipeline.config.options import RerunOptions
from pipeline.config.signatures import takes
from pipeline.errors import OutputExistsError, SettingsError
from pipeline.files import atomic_write, made_parents, refuse_nul
from pipeline.models.model import load_model
from pipeline.progress import progress as progress_bar
from pipeline.store import FeatureStore, is_store
from pipeline.text import plural


@dataclass(frozen=True)
class ExportResult(Result):
    """A file that was written: a `ModelExport` or a `TableExport`."""

    file: Path


@dataclass(frozen=True)
class ModelExport(ExportResult):
    """A model's file, on how many images its answers were compared, and by how much they differ at most."""

    checked: int
    largest_difference: float

    def summary(self) -> str:
        """Return a line."""
        return f"{self.file}: answers as the model does, within {self.largest_difference:.2g} on {self.checked} images"


@dataclass(frozen=True)
class TableExport(ExportResult):
    """A table, its rows, how many have a picture, and whether their neighbors were left out."""

    rows: int
    pictures: int
    without_neighbors: bool

    def summary(self) -> str:
        """Return a line."""
        left_out = "; neighbors left out, of too many rows" * self.without_neighbors
        return f"{self.file}: {plural(self.rows, 'row')}, {self.pictures:,} with a picture{left_out}"


@takes(RerunSettings)
def export(
    model: str | Path,
    output: str | Path,
    *,
    input: Literal["image", "pixels"] = "image",
    force: bool = False,
    progress: bool = False,
    **options: Unpack[RerunOptions],
) -> ExportResult:
    """Write the model folder `model` as the ONNX file `output`, which needs nothing else; or features as a table.

    Its input is an RGB image of any size, uint8 (H, W, 3), or with `input` pixels a batch uint8 (B, height, width, 3)
    that was resized already. The answers are compared with those of the model before anything is written. Where `model`
    is a feature file, `output` is a Parquet file of the columns that `pipeline.models.embeddings` tells; no option but
    `force` counts then. Raises `ModelError` where the model cannot be expressed so, `OutputExistsError` where `output`
    is there and not `force`, `StoreError` where a feature file has nothing to export.
    """
    output, of_features = Path(output), is_store(model)
    refuse_nul(output)
    kind, suffix = ("a Parquet", ".parquet") if of_features else ("an ONNX", ".onnx")
    if output.suffix != suffix:
        raise SettingsError(f"{output} is no name of {kind} file; give one that ends in {suffix}")
    if output.exists() and not force:
        raise OutputExistsError(f"{output} exists already; give --force to replace it, or another -o")
    if of_features:
        return _features(model, output, progress=progress)
    loaded = load_model(model, **options)
    from pipeline.models.onnx import CHECKED, export_model

    content, difference = export_model(loaded, takes=input)
    with made_parents(output), atomic_write(output) as file:
        file.write(content)
    return ModelExport(output, len(CHECKED), difference)


def _features(store: str | Path, output: Path, *, progress: bool) -> TableExport:
    from pipeline.models.embeddings import write_embeddings
    from pipeline.models.pictures import album_of

    with (
        FeatureStore.open(store) as opened,
        made_parents(output),
        atomic_write(output) as file,
        progress_bar(len(opened.select()), "writing", show=progress) as bar,
    ):
        written = write_embeddings(opened, file, album_of(opened), advance=bar.advance)
    return TableExport(output, written.rows, written.pictures, written.without_neighbors)
