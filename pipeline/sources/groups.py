"""Groups of rows that are no evidence for one another: the same content, the same patient, camera, burst or video.

Rows of a group are never on both sides of a split or of a fold, and are one observation where an interval is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SettingsError
from pipeline.registry import unknown
from pipeline.sources.manifest import Target
from pipeline.splits import Codes, group_codes
from pipeline.text import plural, shown

#: How a pattern over ids begins; anything else is the name of a column.
PATTERN = "regex:"


@dataclass(frozen=True)
class Groups:
    """The group of each row, in `codes` (n,), and in words what the rows of one have in common."""

    codes: Codes
    alike: str = "the same content"
    notices: tuple[str, ...] = ()

    def joined(self, other: Groups) -> Groups:
        """Put rows in one group that are in one of these groups or in one of the `other`."""
        alike = f"{self.alike} or {other.alike}"
        return Groups(joined(self.codes, other.codes), alike, (*self.notices, *other.notices))


def joined(first: Codes, second: Codes) -> Codes:
    """Return codes (n,) under which rows are equal that are equal in `first` or in `second`, or by way of others.

    >>> joined(np.array([0, 0, 1, 2, 3]), np.array([5, 6, 6, 7, 8])).tolist()
    [0, 0, 0, 1, 2]
    """
    labels = np.unique(first, return_inverse=True)[1].astype(np.int64)
    sides = [np.unique(codes, return_inverse=True)[1] for codes in (first, second)]
    while True:
        before = labels
        for side in sides:  # every group of either kind takes the least label among its rows
            least = np.full(len(labels), len(labels), dtype=np.int64)
            np.minimum.at(least, side, labels)
            labels = least[side]
        if (labels == before).all():
            return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def find_groups(
    asked: str | None,
    *,
    ids: Sequence[str],
    targets: Mapping[str, Target],
    contents: NDArray[np.uint8],
    rows: Codes,
) -> Groups:
    """Group `rows` by their content and by what is `asked` for: a column among `targets`, or a pattern.

    `contents` (n, 32) are those of the rows, in their order; `ids` and `targets` those of all rows. A pattern groups by
    what its parentheses catch in an id, or by all that it matches. Rows without a value, or that do not match, are in
    no group but that of their content. Raises `SettingsError` for a column that is not there, or where what is asked
    for tells no rows apart.
    """
    found = Groups(group_codes(contents))
    if asked is None:
        return found
    if asked.startswith(PATTERN):
        codes = _caught(asked.removeprefix(PATTERN), [ids[row] for row in rows.tolist()])
        alike = "the same group by its id"
    else:
        codes, alike = _values(asked, targets, rows), f"the same {shown(asked)}"
    alone = codes < 0
    count = len(np.unique(codes[~alone]))
    if count < 2:
        some = "all rows are one group" if count else "no row has a group"
        raise SettingsError(f"{some} by group={asked}; take another column or pattern, or leave it out")
    codes[alone] = len(codes) + np.arange(int(alone.sum()))
    notices = [f"{count} groups by {shown(asked)}: none is on both sides of a split or of a fold"]
    if alone.any():
        notices.append(f"{plural(int(alone.sum()), 'row')} of no group by {shown(asked)}: each is one of its own")
    return found.joined(Groups(codes, alike, tuple(notices)))


def without_group(targets: Mapping[str, Target], group: str | None, *, learned: str | None = None) -> dict[str, Target]:
    """Return the targets that may be learned: all but the column that groups.

    Raises `SettingsError` where that is the one `learned`, or the only one: a class would be in one fold alone.
    """
    rest = {name: target for name, target in targets.items() if name != group}
    if len(rest) < len(targets) and (not rest or learned == group):
        raise SettingsError(f"group={shown(group)} is the target that is learned; group by another column")
    return rest


def _values(name: str, targets: Mapping[str, Target], rows: Codes) -> Codes:
    """Return codes (n,) of the values of a column, -1 where unknown."""
    if name not in targets:
        raise SettingsError(
            f"{unknown('group', name, targets)}; name it as a target of the source too, or give {PATTERN}PATTERN"
        )
    target = targets[name].take(rows)
    codes = np.full(len(rows), -1, dtype=np.int64)
    codes[target.known] = np.unique(target.values[target.known], return_inverse=True)[1]
    return codes


def _caught(pattern: str, ids: Sequence[str]) -> Codes:
    """Return codes (n,) of what a pattern catches in each id, -1 where it does not match."""
    search = re.compile(pattern).search
    codes: dict[tuple[str | None, ...], int] = {}
    found = (search(id) for id in ids)
    keys = ((match.groups() or (match.group(),)) if match else None for match in found)
    return np.array([-1 if key is None else codes.setdefault(key, len(codes)) for key in keys], dtype=np.int64)
