"""A model that was exported to ONNX, run without torch: images to answers by ONNX Runtime, Pillow and numpy alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import MAX_PIXELS
from pipeline.errors import ImageError, ModelError
from pipeline.images import decoding
from pipeline.sources import Record

SUFFIX = ".onnx"
#: What the metadata of a file says that it is.
FORMAT, FORMAT_VERSION = "pipeline-onnx", 1
#: Bytes of the largest file that is opened: one protocol buffer holds no more.
LARGEST = 2**31


class ExportedModel:
    """An ONNX file of `pipeline export`. Raises `ModelError` for any other."""

    #: It has nothing by which to tell.
    unlikeness = None

    def __init__(self, path: str | Path, *, max_pixels: int = MAX_PIXELS) -> None:
        self.path = Path(path)
        self._limits = decoding.Limits(max_pixels=max_pixels)
        try:
            if not self.path.is_file() or self.path.stat().st_size > LARGEST:
                raise OSError("it is no file that ONNX Runtime opens")
            self._session = _session(self.path.read_bytes())
        except OSError as error:
            raise ModelError(f"{self.path} cannot be opened: {error.strerror or error}") from None
        except Exception as error:  # its wrappers raise what they like, and a damaged file may be anything
            raise ModelError(f"{self.path} cannot be opened: {_first_line(error)}") from error
        self._described(self._session.get_modelmeta().custom_metadata_map)

    def _described(self, metadata: dict[str, str]) -> None:
        if metadata.get("format") != FORMAT:
            raise ModelError(f"{self.path} is no model of this program; pipeline export MODEL -o FILE.onnx makes one")
        if metadata.get("format_version") != str(FORMAT_VERSION):
            raise ModelError(
                f"{self.path} has format version {metadata.get('format_version', '')[:20]}, this program reads "
                f"{FORMAT_VERSION}; update the program or export again"
            )
        if [one.name for one in self._session.get_inputs()] != ["image"]:
            raise ModelError(f"{self.path} takes pixels of a base and not images; export it with --input image")
        try:
            self.classes: list[str] | None = json.loads(metadata["classes"])
            self._least: float | None = json.loads(metadata["set_least"])
        except (KeyError, ValueError) as error:
            raise ModelError(f"{self.path} is damaged: {error}; export it again") from None
        outputs = self._session.get_outputs()[0].shape[-1]
        if self.classes is not None and (not isinstance(self.classes, list) or len(self.classes) != outputs):
            raise ModelError(f"{self.path} is damaged: its classes are not those of its {outputs} answers")

    def answer_batches(
        self, records: Sequence[Record], *, top: int = 5, no_unknown: bool = True
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the answer to each of `records`, as `Model.answer_batches` does, one at a time; none says `unknown`."""
        for record in records:
            try:
                image = np.asarray(decoding.decode(record.image.read(self._limits.max_bytes), self._limits))
            except ImageError as error:
                yield [{"id": record.id, "error": str(error)}]
                continue
            try:
                answers = self._session.run(None, {"image": image})
            except Exception as error:  # as above
                raise ModelError(f"{self.path} cannot be run: {_first_line(error)}") from error
            yield [{"id": record.id, **self._said(answers, top)}]

    def _said(self, answers: Sequence[NDArray[Any]], top: int) -> dict[str, Any]:
        """Return the entry of the answers (1, C), or (1,) and half of an interval's width (1,)."""
        if self.classes is None:
            value, *half = (float(answer[0]) for answer in answers)
            return number(value, half[0] if half else None)
        return ranked(self.classes, answers[0][0], top, least=self._least)


def _session(graph: bytes) -> Any:
    import onnxruntime  # not on import: a folder is opened without it

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: its warnings are about its own optimisations
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def number(value: float, half: float | None) -> dict[str, Any]:
    """Return the entry of a predicted number, with the interval `half` wide to each side."""
    return {"value": value, "interval": None if half is None else [value - half, value + half]}


def ranked(
    classes: Sequence[str], scores: NDArray[np.floating[Any]], top: int, *, least: float | None
) -> dict[str, Any]:
    """Return the entry of a predicted class, with the `top` likeliest by `scores` (C,).

    Those of at least the probability `least`, or else the likeliest alone, are its prediction set; None for no set.
    """
    best = np.argsort(-scores, kind="stable")
    found = [[classes[code], float(scores[code])] for code in best[:top]]
    entry = {"label": found[0][0], "score": found[0][1], "top": found}
    if least is None:
        return entry
    return entry | {"set": [classes[code] for place, code in enumerate(best) if not place or scores[code] >= least]}
