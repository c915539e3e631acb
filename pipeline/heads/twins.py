"""Near-twins: pairs of images that are nearly identical in features, as re-encoded, scaled or cropped copies are.

Features are centred, layer by layer of like size, and compared by the cosine of their angle. Of different photographs a
distance of 1 is usual, whatever the base; copies at 80 % of the size, without a twentieth of the border, as JPEG of
quality 50 or mirrored were within `FARTHEST` nearly always (tests/benchmarks/twins.py). Where the features are so few
or so alike that different images come as near as that, the threshold is less: pairs drawn at random say how their
number falls with the distance, as a power of it, and by that law no more than `BY_CHANCE` of the rows have a twin. A
threshold from copies of the user's own pictures, made and embedded for it, found no more twins and no fewer strangers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import HeadError
from pipeline.heads.table import FeatureTable, Indices

#: The largest cosine distance of twins, and the share of rows that may have a neighbour as near by chance.
FARTHEST, BY_CHANCE = 0.2, 0.01
#: Rows of which all pairs say how distances are spread, and rows from which on they can.
SAMPLE, FEWEST = 600, 20
#: Shares of the pairs between which the law of small distances is read, twice: a few per cent may be twins themselves.
TAILS = ((0.01, 0.05), (0.05, 0.25))
#: Rows of a block, and rows that are linked with one another at most: their distances are held at once.
BLOCK, LARGEST = 1024, 5000
#: Rows up to which twins are looked for unasked: the work is that of all pairs.
QUICK = 10_000

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Twins:
    """Pairs (m, 2) of rows that are nearer than the cosine distance `threshold`, and their `distances` (m,)."""

    pairs: Indices
    distances: Array
    threshold: float

    @classmethod
    def among(cls, table: FeatureTable, rows: Indices, *, seed: int) -> Twins:
        """Find all near-twins among `rows`, by the plain views; in memory are no more than a few blocks of rows."""
        units = Units.of(table, rows)
        if len(rows) < FEWEST:
            return cls(np.zeros((0, 2), np.int64), np.zeros(0, np.float32), 0.0)
        some = np.random.default_rng(seed).permutation(len(rows))[:SAMPLE]
        limit = threshold(pairwise_distances(units.of_rows(np.sort(some))), len(rows))
        found = list(units.pairs_within(limit))
        near = np.concatenate([pairs for pairs, _ in found])
        return cls(rows[near], np.concatenate([distances for _, distances in found]), limit)

    def between(self, codes: Indices) -> Twins:
        """Return the pairs whose rows have different `codes` (N,)."""
        which = codes[self.pairs[:, 0]] != codes[self.pairs[:, 1]]
        return Twins(self.pairs[which], self.distances[which], self.threshold)

    def within(self, rows: Indices) -> Twins:
        """Return the pairs of which both are among `rows`."""
        which = np.isin(self.pairs, rows).all(axis=1)
        return Twins(self.pairs[which], self.distances[which], self.threshold)

    def groups(self, count: int) -> Indices:
        """Return codes (count,) of groups of twins, by complete linkage: all rows of a group are twins of one another.

        So a chain of pictures, each near the next, is not one group. Raises `HeadError` where too many are linked.
        """
        from scipy.cluster.hierarchy import fcluster, linkage
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        links = coo_array((np.ones(len(self.pairs)), (self.pairs[:, 0], self.pairs[:, 1])), shape=(count, count))
        _, linked = connected_components(links, directed=False)
        codes, new = np.arange(count), count
        order = np.argsort(linked[self.pairs[:, 0]], kind="stable")
        _, starts = np.unique(linked[self.pairs[order, 0]], return_index=True)
        for which in np.split(order, starts[1:]) if len(order) else []:
            rows, places = np.unique(self.pairs[which], return_inverse=True)
            if len(rows) > LARGEST:
                raise HeadError(
                    f"{len(rows)} images are linked by pairs that are nearly identical in features; give --group a "
                    "column or a pattern that tells what belongs together, or take --near off"
                )
            far = np.full((len(rows), len(rows)), 9.0)
            first, second = places.reshape(-1, 2).T
            far[first, second] = far[second, first] = self.distances[which]
            clusters = fcluster(linkage(far[np.triu_indices(len(rows), 1)], "complete"), self.threshold, "distance")
            codes[rows] = new + clusters
            new += len(rows) + 1
        return np.unique(codes, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class Units:
    """The plain views of `rows` of a table as vectors of length 1: less their `mean` (D,), by the `scale` (D,)."""

    table: FeatureTable
    rows: Indices
    mean: Array
    scale: Array

    @classmethod
    def of(cls, table: FeatureTable, rows: Indices) -> Units:
        """Centre by the mean, and make all layers of like size."""
        total, squares = np.zeros(table.dimensions), np.zeros(table.dimensions)
        for start in range(0, len(rows), BLOCK):
            block = table.images(rows[start : start + BLOCK])[:, 0].astype(np.float64)
            total += block.sum(axis=0)
            squares += np.square(block).sum(axis=0)
        mean = total / max(len(rows), 1)
        variance = np.maximum(squares / max(len(rows), 1) - mean**2, 0)
        ends = np.cumsum(table.widths)[:-1]
        sizes = [float(part.sum()) ** 0.5 or 1.0 for part in np.split(variance, ends)]
        scale = np.repeat([1 / size for size in sizes], table.widths)
        return cls(table, rows, mean.astype(np.float32), scale.astype(np.float32))

    def of_rows(self, which: Indices) -> Array:
        """Return the vectors (m, D) of some of the rows."""
        found = (self.table.images(self.rows[which])[:, 0] - self.mean) * self.scale
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(found / np.where(lengths > 0, lengths, 1))

    def pairs_within(self, limit: float) -> Iterator[tuple[Indices, Array]]:
        """Yield positions (m, 2) of rows within a distance of one another, and the distances (m,), block by block."""
        parts = np.split(np.arange(len(self.rows)), range(BLOCK, len(self.rows), BLOCK))
        for number, part in enumerate(parts):
            mine = self.of_rows(part)
            for other in parts[number:]:
                cosines = mine @ (mine if other is part else self.of_rows(other)).T
                # Where they are few, places in the flat array are found in a tenth of the time of np.nonzero.
                first, second = np.divmod(np.flatnonzero(cosines > 1 - limit), len(other))
                once = part[first] < other[second]
                first, second = first[once], second[once]
                pairs = np.stack([part[first], other[second]], axis=1)
                yield pairs, np.maximum(1 - cosines[first, second], 0)


def pairwise_distances(units: Array) -> Array:
    """Return the cosine distances of all pairs of vectors (m, D) of length 1."""
    return np.asarray((1 - units @ units.T)[np.triu_indices(len(units), 1)])


def threshold(distances: Array, rows: int) -> float:
    """Return the distance within which two of so many `rows` are near-twins, from the `distances` of random pairs."""
    shares: Sequence[float] = sorted({share for tail in TAILS for share in tail})
    at = dict(zip(shares, np.quantile(distances, shares).tolist(), strict=True))
    wanted = 2 * BY_CHANCE / rows  # the share of pairs that makes so many rows one of a pair
    found = [0.0]
    for low, high in TAILS:
        if 0 < at[low] < at[high]:
            power = np.log(high / low) / np.log(at[high] / at[low])
            found.append(at[low] * (wanted / low) ** (1 / power))
    return float(min(max(found), FARTHEST))
