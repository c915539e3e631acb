"""A trained model as one file for other programs: ONNX, from the pixels of an image to its answer."""

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


@dataclass(frozen=True)
class ExportResult(Result):
    """A file that was written, on how many images its answers were compared, and by how much they differ at most."""

    file: Path
    checked: int
    largest_difference: float

    def summary(self) -> str:
        """Return a line."""
        return f"{self.file}: answers as the model does, within {self.largest_difference:.2g} on {self.checked} images"


@takes(RerunSettings)
def export(
    model: str | Path,
    output: str | Path,
    *,
    input: Literal["image", "pixels"] = "image",
    force: bool = False,
    **options: Unpack[RerunOptions],
) -> ExportResult:
    """Write the model folder `model` as the ONNX file `output`, which needs nothing else.

    Its input is an RGB image of any size, uint8 (H, W, 3), or with `input` pixels a batch uint8 (B, height, width, 3)
    that was resized already. The answers are compared with those of the model before anything is written. Raises
    `ModelError` where the model cannot be expressed so, `OutputExistsError` where `output` is there and not `force`.
    """
    output = Path(output)
    refuse_nul(output)
    if output.suffix != ".onnx":
        raise SettingsError(f"{output} is no name of an ONNX file; give one that ends in .onnx")
    if output.exists() and not force:
        raise OutputExistsError(f"{output} exists already; give --force to replace it, or another -o")
    loaded = load_model(model, **options)
    from pipeline.models.onnx import CHECKED, export_model

    content, difference = export_model(loaded, takes=input)
    with made_parents(output), atomic_write(output) as file:
        file.write(content)
    return ExportResult(output, len(CHECKED), difference)
