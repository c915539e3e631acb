"""What intervals cover, before and after: accuracies, errors, prediction intervals.

python tests/benchmarks/intervals.py accuracies          # exact against resampled, on a coin of known bias
python tests/benchmarks/intervals.py errors              # bootstrap-t against resampled, five kinds of errors
python tests/benchmarks/intervals.py numbers --sets 40   # prediction intervals of ridge on six kinds of data
python tests/benchmarks/intervals.py chance --sets 40    # labels shuffled: what is said of nothing
python tests/benchmarks/intervals.py imbalance           # one class a hundred, a thousand times rarer
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

sys.path.insert(0, str(Path(__file__).parents[1] / "heads"))
from examples import blobs, problem_of

from pipeline import metrics
from pipeline.config import FitSettings
from pipeline.heads import HEADS
from pipeline.heads.calibration import interval_half_width
from pipeline.heads.selection import train_head
from pipeline.heads.spread import fit_interval

Values = NDArray[np.float64]
Random = np.random.Generator

KINDS: dict[str, Callable[[Values, Random], Values]] = {
    "normal": lambda x, random: random.normal(size=len(x)),
    "heteroscedastic": lambda x, random: random.normal(size=len(x)) * np.exp(0.8 * x[:, 0]),
    "t(2)": lambda x, random: random.standard_t(2, size=len(x)),
    "skew": lambda x, random: random.exponential(size=len(x)) - 1,
    "ties": lambda x, random: random.normal(size=len(x)),
    "lognormal": lambda x, random: np.exp(random.normal(size=len(x))),
}
SIZES = ((12, 8), (30, 8), (100, 64), (100, 100), (100, 512), (400, 64))


def main() -> None:
    """Print the table that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["accuracies", "errors", "numbers", "chance", "imbalance"])
    parser.add_argument("--sets", type=int, default=40, help="data sets a cell")
    asked = parser.parse_args()
    {"accuracies": accuracies, "errors": errors, "numbers": numbers, "chance": chance, "imbalance": imbalance}[
        asked.table
    ](asked.sets)


def accuracies(_: int) -> None:
    """Print the exact coverage of intervals of an accuracy: the sum over all counts that may be seen."""
    print(
        "| true accuracy | rows | resampled (0.1.0) | Clopper-Pearson | resampled are a point |\n|---|---|---|---|---|"
    )
    for accuracy in (0.75, 0.8, 0.9, 0.95, 0.97, 0.99, 0.998):
        for rows in (20, 50, 100, 200):
            chances = binom.pmf(np.arange(rows + 1), rows, accuracy)
            # Percentiles of resampled means are those of a binomial around what was seen.
            seen = np.arange(rows + 1) / rows
            resampled = [binom.ppf(tail, rows, seen) / rows for tail in (0.025, 0.975)]
            exact = np.array([metrics.share_interval(hits, rows) for hits in range(rows + 1)]).T
            covers = [chances[(low <= accuracy) & (accuracy <= high)].sum() for low, high in (resampled, exact)]
            point = chances[resampled[0] == resampled[1]].sum()
            print(f"| {accuracy} | {rows} | {covers[0]:.3f} | {covers[1]:.3f} | {point:.2f} |")


def errors(sets: int) -> None:
    """Print what intervals of MAE and RMSE cover."""
    random = np.random.default_rng(0)
    kinds: dict[str, Callable[[int], Values]] = {
        "normal": lambda n: random.normal(size=n),
        "laplace": lambda n: random.laplace(size=n),
        "t(4)": lambda n: random.standard_t(4, size=n),
        "exponential": lambda n: random.exponential(size=n) - 1,
        "uneven": lambda n: random.normal(size=n) * np.exp(0.7 * random.normal(size=n)),
    }
    print("| errors | rows | MAE resampled | MAE | RMSE resampled | RMSE |\n|---|---|---|---|---|---|")
    for name, draw in kinds.items():
        many = draw(2_000_000)
        true = np.abs(many).mean(), np.sqrt(np.square(many).mean())
        for rows in (20, 50, 200):
            hits = np.zeros(4)
            for _ in range(10 * sets):
                off = draw(rows)
                found = metrics.regression(np.arange(float(rows)), np.arange(float(rows)) + off)
                drawn = random.multinomial(rows, np.full(rows, 1 / rows), size=1000) / rows
                plain = [np.quantile(drawn @ np.abs(off), (0.025, 0.975))]
                plain += [np.sqrt(np.quantile(drawn @ np.square(off), (0.025, 0.975)))]
                cells = [plain[0], found["mae_interval"], plain[1], found["rmse_interval"]]
                hits += [low <= true[place // 2] <= high for place, (low, high) in enumerate(cells)]
            print(f"| {name} | {rows} | " + " | ".join(f"{share:.2f}" for share in hits / (10 * sets)) + " |")


def numbers(sets: int) -> None:
    """Print what prediction intervals of 0.9 cover: mean and worst set, and the third of the rows with most noise."""
    print("| rows x features | kind | leave-one-out (0.1.0): mean, worst, noisy third | now | spread told |")
    print("|---|---|---|---|---|")
    for rows, features in SIZES:
        for name, noise in KINDS.items():
            random = np.random.default_rng([rows, features, list(KINDS).index(name)])
            before, now, told = [], [], 0
            for _ in range(sets):
                x, y = _regression(rows, features, noise, random, rounded=name == "ties")
                fresh, truth = _regression(1500, features, noise, random, rounded=name == "ties")
                problem = problem_of(x, y)
                head = HEADS["ridge"]("numbers", FitSettings.of({})).fit(problem)
                assert head.search.scores is not None
                half = interval_half_width(head.search.scores - y, 0.9)
                off = np.abs(head.predict(fresh) - truth)
                noisy = np.argsort(fresh[:, 0])[-500:]
                fit_interval(head, problem)
                before.append(_covered(off, half, noisy))
                now.append(_covered(off, head.half_widths(fresh), noisy))
                told += head.spread is not None
            cells = [
                f"{a[:, 0].mean():.3f}, {a[:, 0].min():.2f}, {a[:, 1].mean():.2f}" for a in map(np.array, (before, now))
            ]
            print(f"| {rows} x {features} | {name} | {cells[0]} | {cells[1]} | {told / sets:.2f} |", flush=True)


def _covered(off: Values, half: Values | float | None, noisy: NDArray[np.int64]) -> tuple[float, float]:
    inside = off <= (np.inf if half is None else half)
    return float(inside.mean()), float(inside[noisy].mean())


def _regression(
    rows: int, features: int, noise: Callable[[Values, Random], Values], random: Random, *, rounded: bool
) -> tuple[NDArray[np.float32], Values]:
    x = random.normal(size=(rows, features)).astype(np.float32)
    y = x[:, :5] @ np.array([2, -1.5, 1, 0.5, -0.5]) + noise(x, random)
    return x, np.round(y) if rounded else y


def chance(sets: int) -> None:
    """Print what is said out of fold of shuffled labels of 60 rows, and how often the interval holds one half."""
    print("| head | out of fold | interval holds 0.5 | above 0.5 by its interval |\n|---|---|---|---|")
    for name in ("linear", "ridge", "knn", "svm", "mlp", "blend"):
        said, holds, above = [], 0, 0
        for seed in range(sets):
            features, _ = blobs(60, 64, 2, seed=seed)
            shuffled = np.random.default_rng([seed, 1]).permutation(np.arange(60) % 2)  # as many of each: 0.5 is chance
            settings = FitSettings.of({"power": "none"})
            head = train_head(name, problem_of(features, shuffled), settings).head
            assert head.search.scores is not None
            answers = head.calibrated(head.search.scores) if head.search.nested is None else head.search.nested
            found = metrics.classification(shuffled, answers, ("a", "b"))
            low, high = found["accuracy_interval"]
            said.append(found["accuracy"])
            holds += low <= 0.5 <= high
            above += low > 0.5
        print(f"| {name} | {np.mean(said):.3f} | {holds / sets:.2f} | {above / sets:.2f} |", flush=True)


def imbalance(sets: int) -> None:
    """Print what is said where a class is rare, with and without balanced weights, beside its true share."""
    print("| rare | weights | accuracy | balanced accuracy | ROC-AUC | mean p(rare), its share | ECE |")
    print("|---|---|---|---|---|---|---|")
    for rare in (0.01, 0.001):
        for weights in ("none", "balanced"):
            found: list[dict[str, Any]] = []
            mean = []
            for seed in range(max(sets // 10, 3)):
                x, y = _rare(2000 if rare > 0.005 else 6000, rare, seed)
                fresh, truth = _rare(20_000, rare, 1000 + seed)
                of_row = np.ones(len(y)) if weights == "none" else 1 / np.bincount(y)[y]
                head = HEADS["linear"]("classes", FitSettings.of({})).fit(problem_of(x, y, sample_weight=of_row))
                scores = head.predict_proba(fresh)
                found.append(metrics.classification(truth, scores, ("common", "rare")))
                mean.append(scores[:, 1].mean())
            keys = ("accuracy", "balanced_accuracy", "roc_auc")
            cells = [f"{np.mean([one[key] for one in found]):.4f}" for key in keys]
            ece = np.mean([one["ece"] for one in found])
            print(f"| {rare} | {weights} | {' | '.join(cells)} | {np.mean(mean):.4f}, {rare} | {ece:.3f} |", flush=True)


def _rare(rows: int, rare: float, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    y = (np.arange(rows) < max(round(rare * rows), 2)).astype(np.int64)
    x = random.normal(size=(rows, 64))
    x[:, :8] += 0.7 * y[:, None]
    return x.astype(np.float32), y


if __name__ == "__main__":
    main()
