"""Whether a regression has reached the noise in its target, beyond which no features lead.

Rows that should have the same number show by how much it varies for no reason: images of identical content (pure error,
as in a test for lack of fit), or images of a class, where the class is all that can be told of the number. The floor
is reached where the head's out-of-fold error is not clearly below that spread, row by row, and not far above it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
Values = NDArray[np.float64]

#: Name of the cells that are rows of identical content.
CONTENT = "identical content"
#: Degrees of freedom below which a spread is too uncertain to compare with.
FEWEST = 20
#: The floor counts as reached up to a root mean square error this much larger than the spread.
TOLERANCE = 0.1
#: Standard errors beyond which a difference is clear.
CLEAR = 2.0


@dataclass(frozen=True)
class Floor:
    """The spread `within` rows that should be alike, and the head's out-of-fold error on the same rows."""

    within: str
    spread: float
    rmse: float
    rows: int
    reached: bool

    def to_json(self) -> dict[str, Any]:
        """For metrics."""
        return asdict(self)

    def notice(self, target: str) -> str:
        """Say what a person should know where it is reached."""
        spread = f"the spread of {target!r} within {self.within} ({self.spread:.4g})"
        said = f"out-of-fold RMSE {self.rmse:.4g} is no better than {spread}"
        if self.within == CONTENT:
            return f"{said}: the noise floor is reached, better features will not help"
        return (
            f"{said}: {self.within} is all that these features tell; unless images show more, better ones will not help"
        )


def noise_floors(y: Values, said: Values, content: Codes, classes: Mapping[str, Codes]) -> list[Floor]:
    """Floors of out-of-fold predictions `said` (n,) of `y` (n,): within `content` (n,) and within each of `classes`.

    Class codes are -1 where unknown. Classes that say nothing of the number give no floor, nor do too few rows.
    """
    floors = []
    for within, cells in {CONTENT: content, **classes}.items():
        rows, unexplained = _squared_deviations(y, cells)
        if len(rows) - len(np.unique(cells[rows])) < FEWEST:
            continue
        overall = _squared_deviations(y[rows], np.zeros(len(rows), dtype=np.int64))[1]
        if within != CONTENT and not _clearly_less(unexplained, overall):
            continue
        errors = np.square(said[rows] - y[rows])
        spread, rmse = float(unexplained.mean() ** 0.5), float(errors.mean() ** 0.5)
        reached = not _clearly_less(errors, unexplained) and rmse <= (1 + TOLERANCE) * spread
        floors.append(Floor(within, spread, rmse, len(rows), reached))
    return floors


def _squared_deviations(y: Values, cells: Codes) -> tuple[Codes, Values]:
    """Rows that share a cell with others, and their squared deviations (k,) from it, whose mean is unbiased."""
    _, cell, count = np.unique(cells, return_inverse=True, return_counts=True)
    mean = np.bincount(cell, weights=y) / count
    rows = np.flatnonzero((cells >= 0) & (count[cell] > 1))
    shared = count[cell[rows]]
    return rows, np.square(y[rows] - mean[cell[rows]]) * shared / (shared - 1)


def _clearly_less(these: Values, than: Values) -> bool:
    """Whether the mean of `these` is below that of `than`, row by row, by more than chance."""
    gain = than - these
    return bool(gain.mean() > CLEAR * gain.std(ddof=1) / len(gain) ** 0.5)
