"""From a head's name to a trained head: one head, or the best of several, ranked without flattery.

Every head is trained once, all on the same folds, and they are compared by the out-of-fold scores of their best
settings: which flatters each of them a little, since the settings were chosen by these. With --contest the comparison
is nested (Varma and Simon, 2006): in each outer fold every head searches its settings on the other folds alone and is
scored on rows that its search never saw. The row "auto" then scores the whole procedure: in each outer fold the head
that was chosen inside, on the rows outside. That takes six times the work, and seldom changes the choice.

The winner of auto is the first in `PREFERRED` that is not clearly worse than the best: one whose paired interval
reaches it. On few rows the order of accuracies is mostly chance, and to follow it costs more than it gains: the blend,
which does not choose, comes first, and after it the simple heads. That of regressor has the least squared error.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FitSettings
from pipeline.errors import HeadError
from pipeline.heads import HEADS
from pipeline.heads.blend import MEMBERS, BlendHead
from pipeline.heads.contract import Head, Problem, Task
from pipeline.heads.criterion import losses_of, row_losses
from pipeline.heads.linear import LinearHead
from pipeline.heads.ridge import RidgeHead
from pipeline.heads.rows import ArrayRows
from pipeline.metrics import accuracy_interval, ratio_interval
from pipeline.progress import Course, Watch, unwatched
from pipeline.registry import refuse_unknown

#: Names that stand for a choice among heads, and the task each of them takes (None: either).
CHOOSERS: dict[str, Task | None] = {"regressor": "numbers", "auto": None}
#: Before all others the mean of several heads, then from simple to complex.
PREFERRED = ("blend", "linear", "ridge", "knn", "svm", "mlp")
#: What regressor chooses among; auto takes all that learn the task.
REGRESSORS = ("ridge", "svm", "mlp", "binned")
PROCEDURE = "auto"
#: How the heads of a ranking were compared.
NESTED, SEARCHED = "nested cross-validation", "cross-validation of the searched settings"
RESAMPLES = 2000
#: Images that tell whether a power of features pays, and standard errors beyond which it does.
ENOUGH_IMAGES, CLEAR = 2000, 2.0


@dataclass
class Trained:
    """A head, trained and calibrated, and how the heads that it was chosen from compare."""

    head: Head
    ranking: list[dict[str, Any]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    compared_by: str = ""


def task_of(name: str) -> Task | None:
    """Return the only task of head `name`, or None where it takes both. Raises `SettingsError` for a stranger."""
    if name in CHOOSERS:
        return CHOOSERS[name]
    refuse_unknown("head", name, [*HEADS, *CHOOSERS])
    learns = HEADS[name].learns
    return learns[0] if len(learns) == 1 else None


def train_head(name: str, problem: Problem, settings: FitSettings, *, watch: Watch = unwatched) -> Trained:
    """Train the head called `name`, or the best one where the name is regressor or auto; `watch` hears how far."""
    if name not in CHOOSERS:
        folds = problem.folds(settings.cv, settings.seed)
        course = Course(watch, HEADS[name].cost)
        settings, trained = with_power(problem, folds, settings, course, names=(name,))
        head = trained.get(name) or _fit(name, problem, settings, course)
        if folds is not None and problem.known(folds).all() and _nests(head, problem):
            head.search.nested = nested_probabilities(head, problem, folds)
        return Trained(head, notices=head.search.notices)
    names, notices = candidates(name, problem)
    folds = problem.folds(settings.cv, settings.seed)
    if folds is None:
        raise HeadError(f"{name} compares heads by cross-validation and there are too few rows; name one with --head")
    each = sum(HEADS[one].cost for one in names if one != BlendHead.name)
    course = Course(_Limit(settings.minutes, watch), each * (int(folds.max()) + 2 if settings.contest else 1))
    try:
        powered, trained = with_power(problem, folds, settings, course, names=names)
        heads, late = _train_all(names, problem, folds, powered, trained, course)
    except _TimeIsUpError:
        heads, late = {}, names
    if not heads:
        raise HeadError(f"no head was trained within {settings.minutes} minutes; raise --minutes")
    if late:
        notices.append(f"{', '.join(late)} not tried: {settings.minutes} minutes were over; raise --minutes")
    ranking = _compared(heads, problem, folds, settings.seed, prefer=PREFERRED if name == "auto" else ())
    compared_by = SEARCHED
    if settings.contest:
        try:
            ranking, compared_by = rank(list(heads), problem, folds, settings, course), NESTED
        except _TimeIsUpError:
            notices.append(f"the contest was not over within {settings.minutes} minutes; the ranking is without it")
    winner = heads[next(entry["head"] for entry in ranking if entry["chosen"])]
    return Trained(winner, ranking, [*notices, *winner.search.notices], compared_by)


def _nests(head: Head, problem: Problem) -> bool:
    """Whether the head can be searched once more for each fold in next to no time."""
    return problem.task == "classes" and problem.rows.shape[0] <= head.nests and head.settings.solver != "sgd"


def nested_probabilities(head: Head, problem: Problem, folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return what heads like `head` say of the images (n, C) of each fold, searched without it."""
    found = np.full((len(problem.y), int(problem.classes or 0)), np.nan)
    for fold in range(int(folds.max()) + 1):
        inside, outside = problem.take(np.flatnonzero(folds != fold)), np.flatnonzero(folds == fold)
        one = type(head)(problem.task, head.settings).fit(replace(inside, watch=unwatched))
        found[outside] = one.calibrated(one.decision_function_of(problem, outside, score_views=problem.score_views))
    return found


class _TimeIsUpError(Exception):
    """The limit of time is over: raised where a search tells how far it is, which ends it."""


class _Limit:
    """A `watch` that ends the work which tells it of its progress once some `minutes` are over; never for None."""

    def __init__(self, minutes: float | None, watch: Watch) -> None:
        self._end = time.monotonic() + 60 * (np.inf if minutes is None else minutes)
        self._watch = watch

    def __call__(self, share: float, what: str) -> None:
        if time.monotonic() > self._end:
            raise _TimeIsUpError
        self._watch(share, what)


def _train_all(
    names: Sequence[str],
    problem: Problem,
    folds: NDArray[np.int64] | None,
    settings: FitSettings,
    trained: Mapping[str, Head],
    course: Course,
    on: str = "",
) -> tuple[dict[str, Head], list[str]]:
    """Train heads in the order of their cost, but those that are, and the blend; also return those that were late."""
    heads: dict[str, Head] = {}
    late = []
    for name in sorted(set(names) - {BlendHead.name}, key=lambda name: (HEADS[name].cost, name)):
        try:
            heads[name] = trained.get(name) or _fit(name, problem, settings, course, folds=folds, on=on)
        except _TimeIsUpError:
            late.append(name)
    if BlendHead.name in names and len(heads.keys() & MEMBERS.keys()) > 1:
        heads[BlendHead.name] = BlendHead(problem.task, settings).fit_from(heads, problem)
    return heads, late


def _compared(
    heads: Mapping[str, Head], problem: Problem, folds: NDArray[np.int64], seed: int, *, prefer: Sequence[str]
) -> list[dict[str, Any]]:
    """Rank heads by the out-of-fold scores of their best settings: no search is nested in another."""
    # Folds for all: rows that are left out one by one are told by more of the others, which would not be fair.
    scores = {name: head.calibrated(np.asarray(head.fold_scores(problem, folds))) for name, head in heads.items()}
    known = np.flatnonzero(problem.known(folds))
    return standings(problem.take(known), {name: said[known] for name, said in scores.items()}, seed, prefer=prefer)


def with_power(
    problem: Problem,
    folds: NDArray[np.int64] | None,
    settings: FitSettings,
    course: Course | None = None,
    *,
    names: Sequence[str] = (),
    on: str = "",
) -> tuple[FitSettings, dict[str, Head]]:
    """Return settings whose power is chosen, where it is auto, and the heads that were trained with them to choose it.

    The root is taken if a linear model of it has less out-of-fold loss, row by row, by more than chance, on the rows of
    `problem` alone. Linear models tell for all heads: what they gain by it the others gain too. Of many images some are
    enough to see a gain that is worth having. Where that trains one of the `names`, it is a piece of the `course`.
    """
    if settings.power != "auto":
        return settings, {}
    plain, root = (settings.model_copy(update={"power": power}) for power in ("none", "sqrt"))
    if folds is None or settings.solver == "sgd":
        return plain, {}
    few = len(problem.y) <= ENOUGH_IMAGES
    if not few:
        some = np.random.default_rng(settings.seed).permutation(len(problem.y))[:ENOUGH_IMAGES]
        problem, found = problem.take(np.sort(some)), None
        found = problem.folds(settings.cv, settings.seed)
        if found is None:
            return plain, {}
        folds = found
    known = problem.known(folds)
    kind = LinearHead if problem.task == "classes" else RidgeHead
    watch: Watch = unwatched
    if course is not None and few and kind.name in names:
        watch = course.next(f"{on}{kind.name}", kind.cost)
    halves = Course(watch, 2.0)
    heads = [
        kind(problem.task, one).fit(replace(problem, watch=halves.next(f"power {one.power}", 1.0)), folds)
        for one in (plain, root)
    ]
    losses = [row_losses(problem, np.asarray(head.fold_scores(problem, folds)), known) for head in heads]
    pays = _clearly_more(losses[0] - losses[1], problem.groups[known])
    return (root if pays else plain), ({kind.name: heads[pays]} if few else {})


def _clearly_more(gain: NDArray[np.float64], groups: NDArray[np.int64]) -> bool:
    """Whether the mean of what each row gains is above zero by more than chance, where rows of a group are one."""
    _, of_row = np.unique(groups, return_inverse=True)
    each = np.bincount(of_row, weights=gain) / np.bincount(of_row)
    return len(each) > 1 and bool(each.mean() > CLEAR * each.std(ddof=1) / len(each) ** 0.5)


def _fit(
    name: str,
    problem: Problem,
    settings: FitSettings,
    course: Course,
    *,
    folds: NDArray[np.int64] | None = None,
    on: str = "",
) -> Head:
    """Train the head `name`, `on` what the watcher is told, as the next piece of the `course`."""
    watched = replace(problem, watch=course.next(f"{on}{name}", HEADS[name].cost))
    return HEADS[name](problem.task, settings).fit(watched, folds)


def candidates(name: str, problem: Problem) -> tuple[list[str], list[str]]:
    """Return the heads to compare, and notices about those that are not."""
    asked = REGRESSORS if name == "regressor" else tuple(HEADS)
    learning = [one for one in asked if problem.task in HEADS[one].learns]
    if isinstance(problem.rows, ArrayRows):
        return learning, []
    streaming = [one for one in learning if HEADS[one].streams]
    left_out = ", ".join(sorted(set(learning) - set(streaming)))
    return streaming, [f"{left_out} not tried: the features are over the memory budget; raise --memory"]


def rank(
    names: Sequence[str],
    problem: Problem,
    folds: NDArray[np.int64],
    settings: FitSettings,
    course: Course | None = None,
) -> list[dict[str, Any]]:
    """Heads from best to worst with nested scores, and the procedure of choosing among them.

    An entry has head, chosen, score (accuracy or RMSE), its 95 % interval, loss, and how far its accuracy or mean
    squared error is behind the best head's, with the paired interval.
    """
    contest = Contest(names, problem, folds, settings, course or Course(unwatched, 1.0))
    for fold in range(int(folds.max()) + 1):
        contest.play(fold)
    played = np.flatnonzero(contest.played)
    if len(played) < len(contest.played):
        problem = problem.take(played)
    scores = {name: said[played] for name, said in contest.scores.items()}
    return standings(problem, scores, settings.seed)


class Contest:
    """Out-of-fold scores of several heads on the same outer folds."""

    def __init__(
        self,
        names: Sequence[str],
        problem: Problem,
        folds: NDArray[np.int64],
        settings: FitSettings,
        course: Course,
    ) -> None:
        self._course = course
        self._names = names
        self._problem = problem
        self._folds = folds
        self._settings = settings
        shape = (len(problem.y),) if problem.classes is None else (len(problem.y), problem.classes)
        self.scores = {name: np.full(shape, np.nan) for name in (*names, PROCEDURE)}
        self.played = np.zeros(len(problem.y), dtype=bool)

    def play(self, fold: int) -> None:
        """Train every head on the other folds and score it on `fold`; nothing where those are all of one class."""
        problem = self._problem
        inside = problem.take(np.flatnonzero(self._folds != fold))
        if problem.classes is not None and (inside.y == inside.y[0]).all():
            return
        self.played |= self._folds == fold
        outside = np.flatnonzero(self._folds == fold)
        folds = inside.folds(self._settings.cv, self._settings.seed)
        place = f"outer fold {fold + 1} of {int(self._folds.max()) + 1}, "
        settings, trained = with_power(inside, folds, self._settings, self._course, names=self._names, on=place)
        heads, late = _train_all(self._names, inside, folds, settings, trained, self._course, place)
        if late:
            raise _TimeIsUpError
        for name, head in heads.items():
            scores = head.decision_function_of(problem, outside, score_views=problem.score_views)
            self.scores[name][outside] = head.calibrated(scores)
        inner = {name: _qualities(inside, head.search.scores) for name, head in heads.items()}
        chosen = choose(inner, _resampled(inside.groups, self._settings.seed))
        self.scores[PROCEDURE][outside] = self.scores[chosen][outside]


def standings(
    problem: Problem, scores: dict[str, NDArray[np.float64]], seed: int, *, prefer: Sequence[str] = PREFERRED
) -> list[dict[str, Any]]:
    """Entries, best first, of what has out-of-fold `scores`; intervals by resampling rows, equal contents together."""
    qualities = {name: _qualities(problem, said) for name, said in scores.items()}
    samples = _resampled(problem.groups, seed)
    loss = {
        name: float(np.average(losses_of(problem.y, said), weights=problem.weights)) for name, said in scores.items()
    }
    heads = sorted(scores.keys() - {PROCEDURE}, key=lambda name: (-qualities[name].mean(), loss[name], name))
    chosen = choose({name: qualities[name] for name in heads}, samples, prefer)
    entries = []
    for name in (*heads, *(scores.keys() & {PROCEDURE})):
        behind = qualities[heads[0]] - qualities[name]
        entries.append(
            {
                "head": name,
                "chosen": name == chosen,
                "score": _shown(problem, float(qualities[name].mean())),
                "interval": _score_interval(problem, qualities[name], samples),
                "loss": loss[name],
                "behind_best": float(behind.mean()),
                "behind_interval": list(_interval(samples, behind)),
            }
        )
    return entries


def _score_interval(problem: Problem, quality: NDArray[np.float64], samples: NDArray[np.int64]) -> list[float]:
    """Return the 95 % interval of an accuracy, or of an RMSE, from the `quality` (n,) of each image."""
    if problem.classes is not None:
        return list(accuracy_interval(quality, problem.groups, problem.weights))
    squares: Sequence[float] | None = ratio_interval(-quality, problem.weights, problem.groups, power=2)
    if squares is None:  # too few rows for more than their own spread
        squares = sorted(-bound for bound in _interval(samples, quality))
    return [max(bound, 0.0) ** 0.5 for bound in squares]


def _shown(problem: Problem, quality: float) -> float:
    """Accuracy, or RMSE in the target's unit."""
    return quality if problem.classes is not None else max(-quality, 0.0) ** 0.5


def choose(
    qualities: dict[str, NDArray[np.float64]], samples: NDArray[np.int64], prefer: Sequence[str] = PREFERRED
) -> str:
    """Return the first of `prefer` that is not clearly worse than the best by quality (n,) of rows; else the best."""
    best = max(qualities, key=lambda name: float(qualities[name].mean()))
    for name in prefer:
        if name in qualities and _interval(samples, qualities[best] - qualities[name])[0] <= 0:
            return name
    return best


def _qualities(problem: Problem, scores: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Of each image (n,): its weight where it is right, else 0; or its weight times the negative squared error.

    Images without scores are wrong, or told by the mean.
    """
    if problem.classes is None:
        mean = np.average(problem.y, weights=problem.weights)
        said = np.full(len(problem.y), mean) if scores is None else np.where(np.isnan(scores), mean, scores)
        return np.asarray(-np.square(said - problem.y) * problem.weights)
    if scores is None:
        return np.zeros(len(problem.y))
    scored = ~np.isnan(scores).any(axis=1)
    right = np.nan_to_num(scores, nan=-np.inf).argmax(axis=1) == problem.y
    return np.asarray((right & scored) * problem.weights)


def _resampled(groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """How often each row counts in each bootstrap sample of groups, (samples, n)."""
    _, of_row = np.unique(groups, return_inverse=True)
    count = int(of_row.max()) + 1
    generator = np.random.default_rng(seed)
    samples = min(RESAMPLES, max(200, 20_000_000 // count))
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=samples)
    return np.asarray(drawn[:, of_row])


def _interval(samples: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the central 95 % of the mean of `values` over bootstrap samples."""
    low, high = np.quantile(samples @ values / samples.sum(axis=1), (0.025, 0.975))
    return float(low), float(high)


def table_text(ranking: Sequence[dict[str, Any]], *, numbers: bool) -> str:
    """Format the ranking for a person."""
    measured = "RMSE" if numbers else "accuracy"
    lines = [f"  {'head':<8} {measured:>9}   95 % interval     behind the best (paired 95 %)"]
    for entry in ranking:
        low, high = entry["interval"]
        low_gap, high_gap = entry["behind_interval"]
        unit = "in squared error" if numbers else ""
        mark = "*" if entry["chosen"] else " "
        lines.append(
            f"{mark} {entry['head']:<8} {entry['score']:9.4g}   {low:.4g} to {high:.4g}"
            f"   {entry['behind_best']:.4g} ({low_gap:.4g} to {high_gap:.4g}) {unit}".rstrip()
        )
    if any(entry["head"] == PROCEDURE for entry in ranking):
        lines.append("  (auto: whichever head is chosen without the rows that are scored, so the choice is scored too)")
    return "\n".join(lines)
