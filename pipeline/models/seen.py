"""Images that a model was trained on, by the digests of their content: rows.safetensors in its folder.

The first 16 bytes of each sha256, each once and in order: enough to tell images apart, half of the room.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError

FILE = "rows.safetensors"
KEPT = 16
#: Numbers of scores that are kept at most: 16 MB.
MOST_SCORES = 2**22


@dataclass(frozen=True, eq=False)
class Seen:
    """The contents that were trained on, as sorted keys (n,) of `KEPT` bytes.

    `tested` are those held out for the last word, which chose nothing either. `scores` (m, C) are class probabilities
    of training rows by models that did not train on them, and `codes` (m,) their classes.
    """

    keys: NDArray[np.void]
    scores: NDArray[np.float32] | None = None
    codes: NDArray[np.int64] | None = None
    tested: NDArray[np.void] | None = None

    @classmethod
    def of(
        cls,
        contents: NDArray[np.uint8],
        scores: NDArray[np.floating] | None = None,
        codes: NDArray[np.int64] | None = None,
        *,
        tested: NDArray[np.uint8] | None = None,
    ) -> Self:
        """Take those with the sha256 `contents` (n, 32), and `tested` (m, 32) that were held out for the last word."""
        held_out = None if tested is None or not len(tested) else np.unique(_keys(tested))
        if scores is None or codes is None or scores.size > MOST_SCORES:
            return cls(np.unique(_keys(contents)), tested=held_out)
        return cls(np.unique(_keys(contents)), scores.astype(np.float32), codes, held_out)

    def among(self, contents: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return the mask (n,) of the sha256 `contents` (n, 32) that were trained on."""
        return _among(self.keys, contents)

    def among_tested(self, contents: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return the mask (n,) of the sha256 `contents` (n, 32) that were held out for the last word."""
        return _among(_keys(np.zeros((0, 32), np.uint8)) if self.tested is None else self.tested, contents)

    def write(self, folder: Path) -> None:
        """Write rows.safetensors."""
        from safetensors.numpy import save_file

        tensors: dict[str, NDArray[Any]] = {"trained": self.keys.view(np.uint8).reshape(-1, KEPT)}
        if self.scores is not None and self.codes is not None:
            tensors |= {"scores": self.scores, "codes": self.codes}
        if self.tested is not None:
            tensors["tested"] = self.tested.view(np.uint8).reshape(-1, KEPT)
        save_file(tensors, folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read what `write` wrote, None where an older version wrote nothing; raises `ModelError` for damage."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = folder / FILE
        if not path.is_file():
            return None
        try:
            found = load_file(path)
            keys = _read_keys(found["trained"])
            tested = _read_keys(found["tested"]) if "tested" in found else None
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError, MemoryError) as error:
            raise ModelError(f"{path} cannot be read: {error}; train the head again") from None
        scores, codes = found.get("scores"), found.get("codes")
        if scores is None or codes is None:
            return cls(keys, tested=tested)
        if scores.ndim != 2 or codes.shape != scores.shape[:1] or not np.isfinite(scores).all():
            raise ModelError(f"{path} cannot be read: its scores do not fit its codes; train the head again")
        return cls(keys, scores, codes, tested)


def _read_keys(digests: NDArray[Any]) -> NDArray[np.void]:
    if digests.dtype != np.uint8 or digests.shape[1:] != (KEPT,):
        raise ValueError(f"digests of shape {digests.shape} and type {digests.dtype}")
    return np.sort(_keys(digests))


def _among(keys: NDArray[np.void], contents: NDArray[np.uint8]) -> NDArray[np.bool_]:
    asked = _keys(contents)
    if not len(keys):
        return np.zeros(len(asked), dtype=bool)
    places = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.asarray(keys[places] == asked)


def _keys(digests: NDArray[np.uint8]) -> NDArray[np.void]:
    return np.ascontiguousarray(digests[:, :KEPT]).view(f"V{KEPT}").ravel()
