"""Images of something else, and prediction sets, measured on feature files of two kinds of pictures.

python tests/benchmarks/unknown.py strangers OWN.h5 OTHER.h5    a model of OWN asked about OTHER: area under the curve
                                                                beside that of the largest probability, shares marked,
                                                                ms an image, bytes of the file
python tests/benchmarks/unknown.py sets OWN.h5...               coverage of prediction sets over 50 random halves

Both files of `strangers` are made by the same recipe. Rows of OWN's train split (or 70 % at random) train, the others
are those that should be accepted; `--splits N` takes N random splits in place of the file's own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "heads"))

from examples import problem_of

from pipeline.config import FitSettings
from pipeline.heads import HEADS
from pipeline.heads.unlikeness import (
    FILE,
    Covariance,
    Neighbours,
    Unlikeness,
    area_between,
    kept_rows,
    unit_rows,
)
from pipeline.splits import group_codes
from pipeline.store import FeatureStore

Masks = list[NDArray[np.bool_]]


def read(path: str) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    """Features (n, D), class codes, codes of content, and splits of the rows that have features."""
    with FeatureStore.open(path) as store:
        rows = store.select(target="class")
        features = store.features(rows=rows).reshape(len(rows), -1).astype(np.float32)
        return features, store.targets["class"].values[rows], group_codes(store.sha256[rows]), store.splits[rows]


def training_masks(splits: NDArray[Any], count: int, share: float = 0.7) -> Masks:
    """The file's own training rows, or `count` random shares of all."""
    if count == 0 and (splits == "train").any():
        return [splits == "train"]
    return [np.random.default_rng(seed).random(len(splits)) < share for seed in range(max(count, 1))]


def strangers(own: str, other: str, count: int, head: str) -> None:
    """Print what is told of OTHER by a model of OWN, the mean over the splits."""
    features, y, contents, splits = read(own)
    strange = read(other)[0]
    found = [_one(features, y, contents, train, strange, head) for train in training_masks(splits, count)]
    print(f"{own} asked about {other}: {found[0]['rows']} rows, mean of {len(found)} split(s), least in brackets")
    for name in found[0]:
        values = [one[name] for one in found]
        if isinstance(values[0], str):
            print(f"  {name:<48}{', '.join(f'{word} {values.count(word)} x' for word in sorted(set(values)))}")
        else:
            print(f"  {name:<48}{np.mean(values):.4g} ({np.min(values):.4g})")


def _one(features: Any, y: Any, contents: Any, train: Any, strange: Any, head: str) -> dict[str, Any]:
    width = features.shape[1]
    kept = np.flatnonzero(train)[kept_rows(contents[train], dimensions=width, seed=13)]
    started = time.process_time()
    unlikeness = Unlikeness.of(features[kept], y[kept], [str(row) for row in kept], (width,))
    seconds = time.process_time() - started
    assert unlikeness is not None
    ours, theirs = unlikeness.of_images(features[~train])[0], unlikeness.of_images(strange)[0]
    known = HEADS[head]("classes", FitSettings.of({})).fit(problem_of(features[train], y[train]))
    doubts = [1 - known.predict_proba(rows).max(axis=1) for rows in (features[~train], strange)]
    result = {
        "rows": len(kept),
        "measure": unlikeness.measure.name,
        "AUC": area_between(ours, theirs),
        **{f"AUC of {kind.name} alone": _alone(kind, features, y, kept, train, strange) for kind in KINDS},
        "AUC of the largest probability": area_between(*doubts),
        "own held-out rows accepted": (ours <= 1).mean(),
        "strangers accepted": (theirs <= 1).mean(),
        "strangers accepted by the largest probability": (doubts[1] <= np.quantile(doubts[0], 0.95)).mean(),
        "left-out classes called unknown": np.nan if unlikeness.caught is None else unlikeness.caught,
        "seconds to learn": seconds,
        "ms an image, one by one": 1000 * _seconds(lambda: unlikeness.of_images(strange[:1]), 50),
        "ms an image, 32 at once": 1000 * _seconds(lambda: unlikeness.of_images(strange[:32]), 10) / 32,
    }
    with tempfile.TemporaryDirectory() as folder:
        unlikeness.write(Path(folder))
        return result | {"bytes of the file": (Path(folder) / FILE).stat().st_size}


KINDS = (Neighbours, Covariance)


def _alone(kind: Any, features: Any, y: Any, kept: Any, train: Any, strange: Any) -> float:
    measure = kind.fit(unit_rows(features[kept], (features.shape[1],)), y[kept])
    ours, theirs = (measure.scores(unit_rows(rows, (features.shape[1],))) for rows in (features[~train], strange))
    return area_between(ours, theirs)


def _seconds(call: Any, times: int) -> float:
    call()
    started = time.process_time()  # of the processor: other work on the machine does not change it much
    for _ in range(times):
        call()
    return (time.process_time() - started) / times


def sets(paths: list[str], count: int, head: str) -> None:
    """Print how often sets hold the truth: by the conformal rule alone, and as served, with the likeliest class."""
    print(f"{count} random halves: mean coverage ± standard deviation of the splits")
    for path in paths:
        features, y, _, _ = read(path)
        for coverage in (0.8, 0.9, 0.95):
            found = np.array([_covered(features, y, coverage, seed, head) for seed in range(count)])
            rule, served, right, size = found.mean(axis=0)
            print(
                f"  {path} {coverage:.2f}: rule {rule:.3f} ± {found[:, 0].std():.3f}, served {served:.3f}, "
                f"accuracy {right:.3f}, labels in a set {size:.2f}",
                flush=True,
            )


def _covered(features: Any, y: Any, coverage: float, seed: int, head: str) -> list[float]:
    train = np.random.default_rng(seed).permutation(len(y)) < len(y) // 2
    settings = FitSettings.of({"coverage": coverage})
    fitted = HEADS[head]("classes", settings).fit(problem_of(features[train], y[train], classes=int(y.max()) + 1))
    chances, truth = fitted.predict_proba(features[~train]), y[~train]
    given = fitted.prediction_sets(chances)
    assert given is not None
    assert fitted.least_in_set is not None
    rows = np.arange(len(truth))
    rule = (chances[rows, truth] >= fitted.least_in_set).mean()
    right = (chances.argmax(axis=1) == truth).mean()
    return [rule, given[rows, truth].mean(), right, given.sum(axis=1).mean()]


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["strangers", "sets"])
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--splits", type=int, default=None)
    parser.add_argument("--head", default="linear")
    given = parser.parse_args()
    if given.what == "sets":
        sets(given.stores, given.splits or 50, given.head)
    else:
        strangers(given.stores[0], given.stores[1], given.splits or 0, given.head)


if __name__ == "__main__":
    main()
