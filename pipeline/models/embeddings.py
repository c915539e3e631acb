"""A feature file as a Parquet table that viewers of embeddings read: a row for each image that has features.

    id, split, TARGET ...  as in the feature file; a class by its name, null where it is unknown
    image                  {bytes, path}: a JPEG of at most `THUMBNAIL` pixels a side, null where it cannot be had
    embedding              the features of the plain view as float32, all layers side by side
    x, y                   a map of them: t-SNE of up to `MAPPED` images, else the two largest principal components
    neighbors              {ids, distances}: numbers of the nearest rows of this table, and their distances, which are
                           those of near-twins; null where the features of all images would not fit into `HELD` bytes

Memory holds a block of rows at a time, and for neighbors all features.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.heads.table import FeatureTable
from pipeline.heads.twins import Units
from pipeline.images.album import Album
from pipeline.store import FeatureStore

THUMBNAIL, NEIGHBORS, MAPPED = 96, 10, 5000
HELD = 2**30
BLOCK = 1024
#: Components of which t-SNE makes a map; its own authors take as many.
COMPONENTS = 50

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Written:
    """Rows of a table, those of them that have a picture, and whether neighbors were left out."""

    rows: int
    pictures: int
    without_neighbors: bool


def write_embeddings(
    store: FeatureStore,
    file: IO[bytes],
    album: Album,
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda rows: None,
) -> Written:
    """Write the table of `store` to `file`, with the images of `album`.

    `advance` is called with the number of rows written. Raises `StoreError` where pyarrow is missing, or no image has
    features.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise StoreError(
            "a Parquet file needs pyarrow; install it with pip install 'cached-feature-pipeline[parquet]'"
        ) from None
    chosen = store.select()
    if not len(chosen):
        raise StoreError(f"{store.path} has no image with features; nothing is there to export")
    table = FeatureTable(store, tuple(store.layers))
    places = _map(table, chosen, seed)
    fits = 4 * table.dimensions * len(chosen) <= HELD
    units = Units.of(table, chosen).of_rows(np.arange(len(chosen))) if fits else None
    ids, splits = np.array(store.ids, dtype=object), store.splits.astype(object)
    pictures = 0
    schema = _schema(pa, store)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for start in range(0, len(chosen), BLOCK):
            rows = chosen[start : start + BLOCK]
            shown = [_thumbnail(album, name) for name in ids[rows]]
            pictures += sum(one is not None for one in shown)
            columns: dict[str, Any] = {"id": ids[rows].tolist(), "split": splits[rows].tolist()}
            columns |= {name: _labels(target, rows) for name, target in _targets(store)}
            columns |= {"image": shown, "embedding": list(_plain(table, rows))}
            columns |= dict(zip("xy", places[start : start + len(rows)].T, strict=True))
            columns["neighbors"] = [None] * len(rows) if units is None else list(_neighbors(units, start, len(rows)))
            writer.write_table(pa.Table.from_pydict(columns, schema=schema))
            advance(len(rows))
    return Written(len(chosen), pictures, units is None)


def _schema(pa: Any, store: FeatureStore) -> Any:
    labels = [(name, pa.float64() if target.names is None else pa.string()) for name, target in _targets(store)]
    return pa.schema(
        [
            ("id", pa.string()),
            ("split", pa.string()),
            *labels,
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("embedding", pa.list_(pa.float32())),
            ("x", pa.float32()),
            ("y", pa.float32()),
            ("neighbors", pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])),
        ]
    )


def _targets(store: FeatureStore) -> Iterator[tuple[str, Any]]:
    """Yield targets by the names of their columns, which are not those of ours."""
    ours = {"id", "split", "image", "embedding", "x", "y", "neighbors"}
    for name, target in store.targets.items():
        yield f"target {name}" if name in ours else name, target


def _labels(target: Any, rows: NDArray[np.int64]) -> list[Any]:
    values, known = target.values[rows].tolist(), target.known[rows].tolist()
    named = values if target.names is None else [target.names[value] for value in values]
    return [value if has else None for value, has in zip(named, known, strict=True)]


def _plain(table: FeatureTable, rows: NDArray[np.int64]) -> Rows:
    return table.images(rows)[:, 0]


def _thumbnail(album: Album, id: str) -> dict[str, Any] | None:
    image = album(id)
    if image is None:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return {"bytes": file.getvalue(), "path": id}


def _map(table: FeatureTable, chosen: NDArray[np.int64], seed: int) -> Rows:
    """Return two coordinates (n, 2): of up to `MAPPED` images near ones are near, of more the widest two directions."""
    from sklearn.decomposition import PCA

    some = chosen
    if len(chosen) > MAPPED:
        some = np.sort(np.random.default_rng(seed).permutation(chosen)[:MAPPED])
    sample = _plain(table, some)
    if len(sample) < 2:
        return np.zeros((len(sample), 2), np.float32)
    few = len(chosen) <= MAPPED
    count = min(COMPONENTS if few else 2, len(sample), sample.shape[1])
    fitted = PCA(count, random_state=seed).fit(sample)
    if few and len(chosen) > COMPONENTS:
        from sklearn.manifold import TSNE

        return np.asarray(TSNE(init="pca", random_state=seed).fit_transform(fitted.transform(sample)), np.float32)
    blocks = (chosen[start : start + BLOCK] for start in range(0, len(chosen), BLOCK))
    found = np.concatenate([fitted.transform(_plain(table, rows)) for rows in blocks])[:, :2]
    return np.pad(found.astype(np.float32), ((0, 0), (0, 2 - found.shape[1])))


def _neighbors(units: Rows, start: int, count: int) -> Iterator[dict[str, Any]]:
    """Yield the nearest rows, nearest first, of `count` rows from `start` on."""
    distances = 1 - units[start : start + count] @ units.T
    distances[np.arange(count), np.arange(start, start + count)] = np.inf  # nobody is a neighbor of oneself
    most = min(NEIGHBORS, len(units) - 1)
    for row in distances:
        nearest = np.argpartition(row, most)[:most] if most else np.zeros(0, np.int64)
        nearest = nearest[np.argsort(row[nearest], kind="stable")]
        yield {"ids": nearest.tolist(), "distances": np.maximum(row[nearest], 0).tolist()}
