"""Images that a model was trained on, by the digests of their content: rows.safetensors in its folder.

The first 16 bytes of each sha256, each once and in order: enough to tell images apart, half of the room.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError

FILE = "rows.safetensors"
KEPT = 16


@dataclass(frozen=True, eq=False)
class Seen:
    """The contents that were trained on, as sorted keys (n,) of `KEPT` bytes."""

    keys: NDArray[np.void]

    @classmethod
    def of(cls, contents: NDArray[np.uint8]) -> Self:
        """Take those with the sha256 `contents` (n, 32)."""
        return cls(np.unique(_keys(contents)))

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

        save_file({"trained": self.keys.view(np.uint8).reshape(-1, KEPT)}, folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read what `write` wrote, None where an older version wrote nothing; raises `ModelError` for damage."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = folder / FILE
        if not path.is_file():
            return None
        try:
            digests = load_file(path)["trained"]
            if digests.dtype != np.uint8 or digests.shape[1:] != (KEPT,):
                raise ValueError(f"digests of shape {digests.shape} and type {digests.dtype}")
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError, MemoryError) as error:
            raise ModelError(f"{path} cannot be read: {error}; train the head again") from None
        return cls(np.sort(_keys(digests)))


def _keys(digests: NDArray[np.uint8]) -> NDArray[np.void]:
    return np.ascontiguousarray(digests[:, :KEPT]).view(f"V{KEPT}").ravel()
