"""Heads of version 0.1.0 that were scikit-learn pipelines in head.skops: opened, never written.

A file is opened only if everything in it is of a type that skops trusts by itself, and only as a standardisation
followed by one of the estimators that a head of that version made. Nothing of it is ever called: what it learned is
taken out as arrays, which are checked as those of head.safetensors are.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError

FILE = "head.skops"
#: What reading a damaged or forged file may raise, of Python's exceptions.
_DAMAGED = (
    *(OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, ImportError, SyntaxError),
    *(RecursionError, MemoryError, NotImplementedError, EOFError, AssertionError, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class Estimator:
    """Content of a head.skops: the name of the estimator's class, its attributes, and the scaler's."""

    path: Path
    kind: str
    learned: Mapping[str, Any]
    scaler: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, allowed: Sequence[str]) -> Estimator:
        """Open a skops file; raises `ModelError` where it holds anything that is not on the list."""
        pipeline = _read(path)
        steps: Any = vars(pipeline).get("steps") if type(pipeline).__name__ == "Pipeline" else None
        try:
            (_, scaler), (_, machine) = steps
            kinds = type(scaler).__name__, type(machine).__name__
            found = cls(path, kinds[1], vars(machine), vars(scaler))
        except (TypeError, ValueError):
            kinds = type(pipeline).__name__, "no two steps"
        if kinds[0] != "StandardScaler" or kinds[1] not in allowed:
            raise ModelError(f"{path} holds {' and '.join(kinds)}, not a head that this program trains")
        return found


def _read(path: Path) -> Any:
    from sklearn.exceptions import InconsistentVersionWarning
    from skops import io
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        _refuse_bombs(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InconsistentVersionWarning)  # model.json names the versions
            return io.load(path, trusted=[])
    except UntrustedTypesFoundException as error:
        raise ModelError(f"{path} holds types that no head has and is not opened: {error}") from None
    except _DAMAGED as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise ModelError(f"{path} cannot be read: {said[0]}; train the head again") from None


def _refuse_bombs(path: Path) -> None:
    """Raise `ValueError` where the file would unpack to more than it holds: 0.1.0 compressed nothing."""
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("there is no such file")
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("it unpacks to more than its size")
