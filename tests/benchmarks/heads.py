"""Heads beside scikit-learn on the same arrays, as ratios of times taken one after the other.

python tests/benchmarks/heads.py linear     10 penalties x 5 folds, against ONE LogisticRegression fit
python tests/benchmarks/heads.py ridge      50 penalties with leave-one-out, against RidgeCV / RidgeClassifierCV
python tests/benchmarks/heads.py sizes      every head at 400 to 50,000 rows beside one fit of scikit-learn:
                                            processor time, memory, loss
python tests/benchmarks/heads.py auto       auto on 5,000 rows, and with --contest: processor time and what is chosen
python tests/benchmarks/heads.py gains --store F.h5 ...     svm beside linear, and --power auto beside none, on the
                                            same repeated folds; intervals over images (no store: digits)
python tests/benchmarks/heads.py stream     a store of 1.6 GB under 1 GB of memory, and in memory (2 GB of disk)

With --cpu both sides have one thread and what is compared is processor time, which other work on the machine does not
change much.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.special import logsumexp
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "heads"))

from examples import problem_of

from pipeline.config import FitSettings
from pipeline.heads import HEADS
from pipeline.heads.ridge import Decomposition, Target, _path, _targets
from pipeline.heads.rows import ArrayRows
from pipeline.heads.selection import train_head
from pipeline.heads.solvers.basis import make_basis
from pipeline.heads.solvers.descent import Batch
from pipeline.heads.solvers.logistic import PENALTIES
from pipeline.heads.solvers.losses import LogLoss
from pipeline.heads.solvers.path import SEARCH_TOLERANCE, search_paths
from pipeline.heads.solvers.path import Path as PenaltyPath
from pipeline.heads.standard import Standard
from pipeline.metrics import log_losses
from pipeline.splits import make_folds
from pipeline.store import FeatureStore


def features(
    rows: int, dimensions: int, classes: int, *, scaled: bool, seed: int = 0
) -> tuple[NDArray[np.float32], Any]:
    """Overlapping clouds after a ReLU, as cached features are, or standardised, which makes a solver's work easy."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, 64))
    y = random.integers(0, classes, rows)
    hidden = centres[y] + random.normal(size=(rows, 64)) * 1.5
    raw = np.maximum(
        hidden @ random.normal(size=(64, dimensions)) / 8 + 0.3 * random.normal(size=(rows, dimensions)), 0
    )
    raw = raw.astype(np.float32)
    return ((raw - raw.mean(axis=0)) / raw.std(axis=0) if scaled else raw), y


clock = time.perf_counter


def one_thread() -> None:
    """Measure processor time on one thread from here on."""
    global clock
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = "1"  # torch's, where it is imported later
    threadpool_limits(1)
    clock = time.process_time


def timed(work: Callable[[], Any], *, least_of: int = 1) -> tuple[float, Any]:
    """Seconds of the fastest run, and what it gave."""
    best, result = np.inf, None
    for _ in range(least_of):
        started = clock()
        result = work()
        best = min(best, clock() - started)
    return best, result


def linear(shapes: list[tuple[int, int, int]]) -> None:
    """The whole grid of folds and penalties, decomposition included, against one fit at default settings."""
    from sklearn.linear_model import LogisticRegression

    print("| rows x dimensions, classes | 10 penalties x 5 folds | ONE LogisticRegression() | ratio | its excess |")
    print("|---|---|---|---|---|")
    for (rows, dimensions, classes), scaled in product(shapes, (False, True)):
        X, y = features(rows, dimensions, classes, scaled=scaled)

        def grid(X: Any = X, y: Any = y) -> Any:
            problem = problem_of(X, y)
            basis = make_basis(problem.rows, Standard.of(problem.rows))
            folds = problem.folds(5, 13)
            assert folds is not None
            strengths = [1 / (value * len(y)) for value in PENALTIES]
            path = PenaltyPath(basis, strengths)
            return search_paths(problem, [path], folds, loss=LogLoss(), total=len(strengths), patience=None)

        ours, found = timed(grid)
        one, fitted = timed(lambda X=X, y=y: LogisticRegression().fit(X, y))
        steps = sum(row["iterations"] for row in found.search.table)
        above = excess(X, y, fitted) if scaled else "-"
        print(
            f"| {rows:,} x {dimensions:,}, {classes}{', standardised' if scaled else ''} | {ours:.1f} s, {steps} steps "
            f"| {one:.1f} s, {fitted.n_iter_[0]} steps | {ours / one:.2f} | {above} |",
            flush=True,
        )


def excess(X: NDArray[np.float32], y: Any, fitted: Any) -> str:
    """How far scikit-learn's fit is above the objective of ours at C = 1, ours as exact as those of the search."""
    problem = problem_of(X, y)
    basis = make_basis(problem.rows, Standard.of(problem.rows))
    batch = Batch(basis, y, np.ones((len(y), 1)), int(y.max()) + 1, loss=LogLoss())
    fits = batch.solve(1.0, batch.start(), tolerance=SEARCH_TOLERANCE)
    weights = fits.weights[0].T
    ours = objective(X, y, basis.standard_weights(weights[:-1]).T, weights[-1])
    return f"{objective(X, y, fitted.coef_, fitted.intercept_) / ours - 1:+.1%}"


def objective(X: NDArray[np.float32], y: Any, weight: NDArray[Any], bias: NDArray[Any]) -> float:
    """Log loss of all rows plus half the squared weights."""
    logits = X.astype(np.float64) @ weight.T.astype(np.float64) + bias
    return float((logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]).sum() + np.square(weight).sum() / 2)


def ridge(shapes: list[tuple[int, int, int]]) -> None:
    """The path, its leave-one-out errors and the best coefficients, against scikit-learn at the same penalties.

    One class stands for numbers: the sum of some features, and noise.
    """
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV

    print("| rows x dimensions, targets | ours | scikit-learn | times faster | same errors |\n|---|---|---|---|---|")
    for rows, dimensions, classes in shapes:
        X, y = features(rows, dimensions, classes, scaled=True)
        penalties = _path(rows, dimensions)
        if classes == 1:
            y = X[:, :20].sum(axis=1) + np.random.default_rng(1).normal(size=rows) * 3

        def path(X: Any = X, y: Any = y, penalties: list[float] = penalties, classes: int = classes) -> Any:
            target = Target(_targets(y, classes if classes > 1 else None), np.ones(len(y)))
            whole = Decomposition(ArrayRows(X), None, target)
            errors = whole.errors(penalties)
            (weight,), _ = whole.coefficients([penalties[int(errors.argmin())]])
            return errors, weight

        again = 5 if rows * dimensions < 2_000_000 else 2
        ours, (errors, weight) = timed(path, least_of=again)
        model = (RidgeClassifierCV if classes > 1 else RidgeCV)(alphas=penalties, store_cv_results=True)
        theirs, fitted = timed(lambda X=X, y=y, model=model: model.fit(X.astype(np.float64), y), least_of=again)
        reference = fitted.cv_results_.reshape(-1, len(penalties)).mean(axis=0)
        far = np.abs(errors / reference - 1).max()
        off = np.abs(weight - np.atleast_2d(fitted.coef_)).max() / np.abs(fitted.coef_).max()
        print(
            f"| {rows:,} x {dimensions:,}, {classes} | {ours:.3f} s | {theirs:.3f} s | {theirs / ours:.2f} "
            f"| {far:.0e}, coefficients {off:.0e} |",
            flush=True,
        )


#: A small process that starts another: what a process holds before it becomes another counts as the other's.
LAUNCHER = """
import os, sys
silent = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
child = os.posix_spawn(sys.executable, sys.argv[1:], os.environ, file_actions=[silent])
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def stream(rows: int, dimensions: int) -> None:
    """`pipeline fit-head` with 1 GB on a store that is larger, and the same with all in memory."""
    from stores import write_store

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        store = write_store(folder / "large.h5", rows=rows, dimensions=dimensions, classes=10)
        print(f"{rows:,} x {dimensions:,}, a store of {store.stat().st_size / 1e9:.2f} GB\n")
        print("| head | --memory 1 | --memory 20 | coefficients | same settings | same predictions |")
        print("|---|---|---|---|---|---|", flush=True)
        for head in ("ridge", "linear"):
            told = {memory: fit_apart(store, folder / f"{head}-{memory}", head, memory) for memory in (1, 20)}
            print(f"| {head} | {told[1]} | {told[20]} | {compared(folder, head)} |", flush=True)


def fit_apart(store: Path, model: Path, head: str, memory: int) -> str:
    """One `pipeline fit-head` in a process of its own: its time and its largest resident set."""
    command = ["-m", "pipeline", "fit-head", str(store), "-o", str(model), "--head", head, "--memory", str(memory)]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True
    )
    return f"{time.perf_counter() - started:.0f} s, {int(done.stdout) / 1e9:.2f} GB"


def compared(folder: Path, head: str) -> str:
    """Streamed against in memory: largest difference of weights beside the largest weight, settings, predictions."""
    models = [folder / f"{head}-{memory}" for memory in (1, 20)]
    streamed, whole = (load_file(model / "head.safetensors")["weight"] for model in models)
    chosen = [json.loads((model / "model.json").read_text())["chosen"] for model in models]
    labels = []
    for model in models:
        with (model / "predictions.csv").open(newline="") as file:
            labels.append(np.array([row["label"] for row in csv.DictReader(file)]))
    off = np.abs(streamed - whole).max() / np.abs(whole).max()
    return f"{off:.0e} apart | {chosen[0] == chosen[1]} {chosen[0]} | {(labels[0] == labels[1]).mean():.2%}"


#: Heads that are measured; squared error is the loss of binned, which is of numbers.
SIZED = ("linear", "ridge", "svm", "knn", "binned", "mlp", "blend")
TIME_LIMIT = 400


def sizes(shapes: list[tuple[int, int, int]]) -> None:
    """Whole searches, and scikit-learn's fits, each in a process of its own, whose memory is then its own."""
    print("| rows x dimensions, classes | head | CPU s | GB | chosen | loss of fresh rows |")
    print("|---|---|---|---|---|---|", flush=True)
    for shape, head in product(shapes, (one for name in SIZED for one in (name, f"scikit-learn {name}"))):
        command = [sys.executable, __file__, "size", "--head", head, "--cpu", *_shape_options(shape)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=TIME_LIMIT)
            print(done.stdout, end="", flush=True)
        except subprocess.TimeoutExpired:
            print(
                f"| {shape[0]:,} x {shape[1]:,}, {shape[2]} | {head} | stopped after {TIME_LIMIT} s | | | |", flush=True
            )


def _shape_options(shape: tuple[int, int, int]) -> list[str]:
    names = ("--rows", "--dimensions", "--classes")
    return [word for name, value in zip(names, shape, strict=True) for word in (name, str(value))]


def size(name: str, shape: tuple[int, int, int]) -> None:
    """One search of the head `name`, or one fit of what scikit-learn has in its place."""
    rows, dimensions, classes = shape
    X, y = features(rows + 2000, dimensions, classes, scaled=False)
    if numbers := name.endswith("binned"):
        y = X[:, :20].sum(axis=1, dtype=np.float64) + np.random.default_rng(1).normal(size=len(X)) * 3
    if name.startswith("scikit-learn"):
        machine = reference(name.removeprefix("scikit-learn "), rows)
        if machine is None:
            return
        taken, head = timed(lambda: machine.fit(X[:rows], y[:rows]))
        detail = type(machine).__name__
    else:
        problem = problem_of(X[:rows], y[:rows])
        taken, head = timed(lambda: HEADS[name](problem.task, FitSettings.of({"jobs": 1})).fit(problem))
        detail = str(head.search.chosen)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if numbers:
        loss = np.square(np.asarray(head.predict(X[rows:])).reshape(-1) - y[rows:]).mean()
    elif hasattr(head, "predict_proba"):
        loss = log_losses(head.predict_proba(X[rows:])[np.arange(2000), y[rows:]]).mean()
    else:
        loss = np.nan
    chosen = f"{name} | {taken:.1f} | {memory:.2f} | {detail}"
    print(f"| {rows:,} x {dimensions:,}, {classes} | {chosen} | {loss:.4f} |")


def reference(name: str, rows: int) -> Any:
    """Return the estimator of scikit-learn with default settings; None for a blend, which it has not."""
    from sklearn import linear_model, neighbors, neural_network, svm

    return {
        "linear": linear_model.LogisticRegression(),
        "ridge": linear_model.RidgeClassifier(),
        "svm": svm.SVC() if rows <= 5000 else svm.LinearSVC(),
        "knn": neighbors.KNeighborsClassifier(),
        "binned": linear_model.Ridge(),
        "mlp": neural_network.MLPClassifier(256),
    }.get(name)


def auto(shapes: list[tuple[int, int, int]]) -> None:
    """The default comparison of heads, and the nested contest."""
    print("| rows x dimensions, classes | contest | CPU s | chosen | log loss of fresh rows |\n|---|---|---|---|---|")
    for rows, dimensions, classes in shapes:
        X, y = features(rows + 2000, dimensions, classes, scaled=False)
        problem = problem_of(X[:rows], y[:rows])
        for contest in (False, True):
            settings = FitSettings.of({"head": "auto", "contest": contest, "jobs": 1})
            taken, trained = timed(lambda problem=problem, settings=settings: train_head("auto", problem, settings))
            loss = log_losses(trained.head.predict_proba(X[rows:])[np.arange(2000), y[rows:]]).mean()
            chosen = f"{contest} | {taken:.1f} | {trained.head.name}"
            print(f"| {rows:,} x {dimensions:,}, {classes} | {chosen} | {loss:.4f} |", flush=True)


#: Heads and their --power that are compared, the second of each pair with the first.
PAIRS = (
    (("linear", "none"), ("svm", "none")),
    *(((name, "none"), (name, "auto")) for name in ("linear", "ridge", "svm")),
)
REPEATS = 3


def gains(stores: list[Path]) -> None:
    """Accuracy and log loss on the rows of repeated folds, the same for all, and paired intervals over images."""
    print("| data | compared | accuracy | gain (95 %) | log loss | gain (95 %) | root taken |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in map(str, stores or ["digits"]):
        X, y = stored(Path(name)) if stores else small_digits()
        known: dict[tuple[str, str], tuple[NDArray[Any], int]] = {}
        for pair in PAIRS:
            for one in pair:
                if one not in known:
                    known[one] = judged(*one, X, y)
            (before, _), (after, roots) = (known[one] for one in pair)
            names = " -> ".join(map(" ".join, pair))
            right, loss = (after[0] - before[0], after[1] - before[1])
            print(
                f"| {name} | {names} | {after[0].mean():.4f} | {interval(100 * right)} | {after[1].mean():.4f} "
                f"| {interval(loss)} | {roots} of {5 * REPEATS} |",
                flush=True,
            )


def judged(head: str, power: str, X: NDArray[np.float32], y: Any) -> tuple[NDArray[Any], int]:
    """How often each image is told right, and its mean log loss, (2, n); and how often the root was taken."""
    classes, roots = int(y.max()) + 1, 0
    found = np.zeros((2, len(y)))
    for seed in range(REPEATS):
        for fold in np.unique(folds := make_folds(y, np.arange(len(y)), folds=5, seed=seed)):
            inside, outside = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            problem = problem_of(X[inside], y[inside], classes=classes)
            trained = train_head(head, problem, FitSettings.of({"head": head, "jobs": 1, "power": power})).head
            roots += "power" in trained.search.chosen
            chances = trained.predict_proba(X[outside])
            found[0, outside] += (chances.argmax(axis=1) == y[outside]) / REPEATS
            found[1, outside] += log_losses(chances[np.arange(len(outside)), y[outside]]) / REPEATS
    return found, roots


def interval(values: NDArray[np.float64]) -> str:
    """Mean and percentile interval over images."""
    drawn = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
    return f"{values.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def stored(store: Path) -> tuple[NDArray[np.float32], Any]:
    """Features and class codes of a store."""
    with FeatureStore.open(store) as opened:
        rows = opened.select(target="class")
        layer = next(iter(opened.layers))
        return opened.features(layer, rows).reshape(len(rows), -1), opened.targets["class"].values[rows]


def small_digits() -> tuple[NDArray[np.float32], Any]:
    """600 of scikit-learn's digits."""
    X, y = load_digits(return_X_y=True)
    return X[:600].astype(np.float32), y[:600].astype(np.int64)


SIZES = [(400, 512, 10), (5_000, 512, 10), (50_000, 512, 10)]
LINEAR = [(20_000, 512, 100), (50_000, 2_048, 10)]
RIDGE = [
    (200, 2_048, 10),
    (512, 512, 10),
    (512, 512, 1),
    (600, 512, 1),
    (1_000, 2_048, 10),
    (1_024, 1_024, 10),
    (2_000, 2_048, 10),
    (2_000, 2_048, 1),
    (3_000, 2_048, 1),
    (3_000, 2_048, 10),
    (5_000, 512, 1),
    (5_000, 2_048, 10),
    (20_000, 512, 1),
    (20_000, 512, 100),
]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["linear", "ridge", "stream", "sizes", "size", "auto", "gains"])
    parser.add_argument("--head", default="svm")
    parser.add_argument("--store", type=Path, nargs="*", default=[])
    parser.add_argument("--rows", type=int, help="one shape instead of the usual ones")
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--cpu", action="store_true", help="processor time on one thread")
    given = parser.parse_args()
    if given.cpu:
        one_thread()
    only = [(given.rows, given.dimensions, given.classes)] if given.rows else None
    warnings.simplefilter("ignore")
    if given.what == "linear":
        linear(only or LINEAR)
    elif given.what == "ridge":
        ridge(only or RIDGE)
    elif given.what == "sizes":
        sizes(only or SIZES)
    elif given.what == "size":
        size(given.head, (given.rows, given.dimensions, given.classes))
    elif given.what == "auto":
        auto(only or [(5_000, 512, 10)])
    elif given.what == "gains":
        gains(given.store)
    else:
        stream(given.rows or 200_000, 2_048)
