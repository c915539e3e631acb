"""Wrong labels found: some are flipped on purpose, and it is counted how many come first by their quality.

    python tests/benchmarks/labels.py artifacts/pets.h5 --draws 20

Beside it stands what cleanlab makes of the same probabilities, where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FitSettings
from pipeline.heads import HEADS, Problem
from pipeline.heads.rows import ArrayRows
from pipeline.scores import label_quality
from pipeline.splits import group_codes
from pipeline.store import FeatureStore


def main() -> None:
    """Print the share of the flipped labels among the first ones, and what the suggested ones are worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--share", type=float, default=0.05, help="of the labels that are flipped")
    parser.add_argument("--first", type=int, default=30, help="labels that are looked at")
    asked = parser.parse_args()
    with FeatureStore.open(asked.store) as store:
        features, y = store.arrays()
        groups = group_codes(store.sha256[store.select(target="class")])
        classes = len(store.targets["class"].names or ())
    found: dict[str, list[float]] = {}
    for draw in range(asked.draws):
        flipped, labels = flip(y, classes, asked.share, seed=draw)
        problem = Problem(ArrayRows(features), labels, np.ones(len(y)), groups, classes)
        head = HEADS["linear"]("classes", FitSettings.of({})).fit(problem)
        assert head.search.scores is not None
        scores = head.calibrated(head.search.scores)
        quality, better = label_quality(labels, scores)
        first = np.argsort(quality, kind="stable")[: asked.first]
        found.setdefault("flips among the first", []).append(flipped[first].sum() / flipped.sum())
        found.setdefault("suggested: precision", []).append(flipped[better >= 0].mean() if (better >= 0).any() else 1.0)
        found.setdefault("suggested: recall", []).append((better >= 0)[flipped].mean())
        if importlib.util.find_spec("cleanlab"):
            for name, share in _cleanlab(labels, scores, flipped, asked.first).items():
                found.setdefault(name, []).append(share)
    for name, shares in found.items():
        error = np.std(shares, ddof=1) / len(shares) ** 0.5
        print(f"{name:<45} {np.mean(shares):.3f} ± {error:.3f}")


def flip(y: NDArray[np.int64], classes: int, share: float, *, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Give a `share` of the rows another class; return which, and all labels."""
    random = np.random.default_rng(seed)
    flipped = np.zeros(len(y), dtype=bool)
    flipped[random.choice(len(y), round(share * len(y)), replace=False)] = True
    return flipped, np.where(flipped, (y + random.integers(1, classes, len(y))) % classes, y)


def _cleanlab(
    labels: NDArray[np.int64], scores: NDArray[np.float64], flipped: NDArray[np.bool_], count: int
) -> dict[str, float]:
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    found = {}
    for method in ("self_confidence", "normalized_margin"):
        first = np.argsort(get_label_quality_scores(labels, scores, method=method), kind="stable")[:count]
        found[f"cleanlab {method}: flips among the first"] = float(flipped[first].sum() / flipped.sum())
    issues = find_label_issues(labels, scores)
    found["cleanlab find_label_issues: precision"] = float(flipped[issues].mean()) if issues.any() else 1.0
    found["cleanlab find_label_issues: recall"] = float(issues[flipped].mean())
    return found


if __name__ == "__main__":
    main()
