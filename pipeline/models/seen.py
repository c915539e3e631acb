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

    `scores` (m, C) are class probabilities of training rows by models that did not train on them, and `codes` (m,)
    their classes.
    """

    keys: NDArray[np.void]
    scores: NDArray[np.float32] | None = None
    codes: NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        contents: NDArray[np.uint8],
        scores: NDArray[np.floating] | None = None,
        codes: NDArray[np.int64] | None = None,
    ) -> Self:
        """Take those with the sha256 `contents` (n, 32)."""
        if scores is None or codes is None or scores.size > MOST_SCORES:
            return cls(np.unique(_keys(contents)))
        return cls(np.unique(_keys(contents)), scores.astype(np.float32), codes)

    def among(self, contents: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return the mask (n,) of the sha256 `contents` (n, 32) that were trained on."""
        asked = _keys(contents)
        if not len(self.keys):
            return np.zeros(len(asked), dtype=bool)
        places = np.minimum(np.searchsorted(self.keys, asked), len(self.keys) - 1)
        return np.asarray(self.keys[places] == asked)

    def has(self, sha256: bytes) -> bool:
        """Tell whether the content with this sha256 was trained on."""
        return bool(self.among(np.frombuffer(sha256, np.uint8)[None])[0])

    def write(self, folder: Path) -> None:
        """Write rows.safetensors."""
        from safetensors.numpy import save_file

        tensors: dict[str, NDArray[Any]] = {"trained": self.keys.view(np.uint8).reshape(-1, KEPT)}
        if self.scores is not None and self.codes is not None:
            tensors |= {"scores": self.scores, "codes": self.codes}
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
            digests = found["trained"]
            if digests.dtype != np.uint8 or digests.shape[1:] != (KEPT,):
                raise ValueError(f"digests of shape {digests.shape} and type {digests.dtype}")
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError, MemoryError) as error:
            raise ModelError(f"{path} cannot be read: {error}; train the head again") from None
        scores, codes = found.get("scores"), found.get("codes")
        if scores is None or codes is None:
            return cls(np.sort(_keys(digests)))
        if scores.ndim != 2 or codes.shape != scores.shape[:1] or not np.isfinite(scores).all():
            raise ModelError(f"{path} cannot be read: its scores do not fit its codes; train the head again")
        return cls(np.sort(_keys(digests)), scores, codes)


def _keys(digests: NDArray[np.uint8]) -> NDArray[np.void]:
    return np.ascontiguousarray(digests[:, :KEPT]).view(f"V{KEPT}").ravel()
