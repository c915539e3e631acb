"""Tasks on the machines of a Ray cluster, with an actor for each GPU, or for a share of the cores of a node.

    tasks --the next one--> idle actors --results--> the process that drives, with progress once a second

Ray starts actors, and tells of their death and of nodes that come and go. A task has to be one that may run twice: that
of an actor that died is given out again, and so is one that takes far longer than others; whoever ends first wins. An
actor that gets nothing done any more is ended. A task that ended its actors is given out with care: whoever gets it has
to find out what in it is at fault. A node that refuses, since it lacks a file, has a full disk or another version of
this package, is left out, and named.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pipeline.devices import cores
from pipeline.errors import EngineError, PipelineError, SettingsError
from pipeline.text import plural
from pipeline.versions import code_digest

Task = TypeVar("Task")
Given = TypeVar("Given", contravariant=True)
Outcome = TypeVar("Outcome", covariant=True)

PREFIX = "ray"
#: A name of this machine that no other can use; Ray puts an outward one in the place of 127.0.0.1.
LOOPBACK = "127.0.0.2"
#: Cores of an actor, unless --workers says otherwise: more share one interpreter's lock.
CORES_AN_ACTOR = 8
#: Seconds between two looks at actors, progress and nodes.
LOOK_EVERY = 1.0
#: Seconds without any node that could work, after which we give up.
PATIENCE = 60.0
#: Seconds that a cluster has to take our connection.
ANSWER_WITHIN = 10.0
#: A task is done with care after so many deaths of its actors; after more of them it is given up.
CARE_AFTER, MOST_DEATHS = 2, 5
#: A task is a straggler from so many seconds on, if others take less than half of what it has taken.
STRAGGLES_AFTER = 30.0

log = logging.getLogger(__name__)


class Worker(Protocol[Given, Outcome]):
    """A function that lives in an actor."""

    def __call__(self, task: Given, /) -> Outcome:
        """Do one task; it may have been done before, or be done by another at this moment."""

    def progress(self) -> tuple[int, ...]:
        """Count what is done of the task at hand; asked by another thread. No change for long is a standstill."""


@dataclass(frozen=True)
class Attempt:
    """One giving out of a task: `contested` where another actor is at it, `with_care` where it ended actors before."""

    contested: bool
    with_care: bool


@dataclass(frozen=True)
class Share:
    """One actor's part of a node: cores, and a GPU or none. `cores` None: by the node."""

    cores: int | None
    device: str

    def actors(self, resources: Mapping[str, float]) -> list[tuple[float, int]]:
        """Return cores and GPUs of each actor that a node with these resources is cut into.

        >>> Share(None, "auto").actors({"CPU": 32, "GPU": 2})
        [(16.0, 1), (16.0, 1)]
        >>> Share(None, "cpu").actors({"CPU": 20})
        [(6.0, 0), (6.0, 0), (6.0, 0)]
        >>> Share(2, "cpu").actors({"CPU": 5}), Share(None, "cuda").actors({"CPU": 5})
        ([(2.0, 0), (2.0, 0)], [])
        """
        cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        if gpus and self.device != "cpu":
            return [(float(min(self.cores or cpus, cpus // gpus)), 1)] * gpus
        if not cpus or self.device == "cuda":
            return []
        count = -(-cpus // CORES_AN_ACTOR) if self.cores is None else max(1, cpus // self.cores)
        return [(float(min(cpus, self.cores or cpus // count)), 0)] * count


@dataclass(eq=False)
class Node:
    """One machine of the cluster, by its address, and what was done there."""

    id: str
    name: str
    actors: int = 0
    tasks: int = 0
    refused: str | None = None
    is_there: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return address, actors, tasks that it ended first, and why it was left out, if it was."""
        return {"node": self.name, "actors": self.actors, "parts": self.tasks, "refused": self.refused}

    def summary(self) -> str:
        """Summarise in one line."""
        refused = "" if self.refused is None else f"; left out: {self.refused}"
        return f"node {self.name}: {plural(self.tasks, 'part')} by {plural(self.actors, 'actor')}{refused}"


@dataclass
class Refusal:
    """An error of this package, as an actor sends it: it is a value, which Ray hands over as it is."""

    error: PipelineError


class Actor:
    """A process on some node; the worker in it is made by `start`."""

    def __init__(self) -> None:
        self._worker: Worker[Any, Any] | None = None

    def start(self, make: Callable[..., Worker[Any, Any]], code: str, folder: str) -> Refusal | None:
        """Make the worker, in the driver's folder and by the driver's code."""
        try:
            _require_same_code(code)
            _enter(folder)
            self._worker = make()
        except PipelineError as error:
            return Refusal(error)
        return None

    def run(self, task: Any) -> Any:
        """Do one task."""
        assert self._worker is not None
        try:
            return self._worker(task)
        except PipelineError as error:
            return Refusal(error)

    def progress(self) -> tuple[int, ...]:
        """Count what is done of it."""
        return self._worker.progress() if self._worker else ()


def _require_same_code(code: str) -> None:
    if code_digest() != code:
        raise EngineError("it has another version of this package; install the same one on every node")


def _enter(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        why = "every node has to see the same files"
        raise EngineError(f"it cannot enter {folder} ({error.strerror}): {why}") from None


def parse(on: str) -> str | None:
    """Return the address of ``ray:ADDRESS``, None for ``ray`` alone: this machine. Raises `SettingsError`.

    >>> parse("ray:10.0.0.1:6379")
    '10.0.0.1:6379'
    """
    kind, mark, address = on.partition(":")
    if kind != PREFIX or (mark and not address):
        raise SettingsError(f"on={on!r} is no cluster; give ray (this machine), ray:auto or ray:HOST:PORT")
    return address or None


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports its use to its maker
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what it will do some day
    try:
        import ray
    except ImportError:
        raise EngineError("--on ray needs Ray; install it with: pip install 'cached-feature-pipeline[ray]'") from None
    return ray


@contextmanager
def connected(on: str) -> Iterator[Any]:
    """Start Ray on this machine, or join the cluster that `on` names, until the block ends; yield the module.

    Raises `EngineError` where Ray is not installed, or the cluster cannot be reached.
    """
    address = parse(on)
    ray = _imported()
    if address is not None:
        _require_answer(on, os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address)
    verbose = log.isEnabledFor(logging.INFO)
    logging.getLogger("ray").setLevel(logging.INFO if verbose else logging.ERROR)
    where: dict[str, Any] = {"address": address}
    if address is None:
        where = {"address": "local", "num_cpus": cores(), "include_dashboard": False}
        os.environ.setdefault("RAY_worker_niceness", "0")  # else actors give way to all others
        if os.uname().sysname == "Linux":  # elsewhere Ray stays on the machine by itself
            where["_node_ip_address"] = LOOPBACK
    obeyed = signal.getsignal(signal.SIGTERM)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(sys.stderr if verbose else nowhere):
        # Ray tells of lost nodes on stdout, also as it shuts down, and that is for our result.
        try:
            try:
                level = logging.INFO if verbose else logging.ERROR
                ray.init(**where, log_to_driver=verbose, logging_level=level, namespace="pipeline")
            except (OSError, RuntimeError, ValueError) as error:  # a ConnectionError is an OSError
                cause = (str(error) or type(error).__name__).splitlines()[0]
                raise EngineError(f"{on}: no Ray cluster answers there ({cause}); --on ray uses this machine") from None
            _obey(obeyed)
            yield ray
        finally:
            ray.shutdown()
            _obey(obeyed)


def _require_answer(on: str, address: str) -> None:
    """Raise `EngineError` where nobody answers at HOST:PORT, for which Ray itself would wait many minutes."""
    if address == "auto":  # Ray looks for a cluster of this machine, and raises at once where there is none
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise SettingsError(f"on={on!r} is no cluster; give ray (this machine), ray:auto or ray:HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_WITHIN).close()
    except (OSError, OverflowError) as error:
        raise EngineError(f"{on}: no Ray cluster answers at {address} ({error}); --on ray uses this machine") from None


def _obey(handler: Any) -> None:
    """Put back the handler of SIGTERM, which Ray replaces."""
    with suppress(ValueError):  # not on the main thread, where Ray replaces nothing
        signal.signal(signal.SIGTERM, handler)


@dataclass(eq=False)
class _Hand(Generic[Task]):
    """An actor, as the driver sees it; `ref` is what it is asked for at present."""

    actor: Any
    node: Node
    ref: Any
    started: bool = False
    task: Task | None = None
    since: float = 0.0
    progress_ref: Any = None
    progress: tuple[int, ...] = ()
    moved: float = 0.0  # when the progress was another one


@dataclass
class _Book(Generic[Task]):
    """Tasks: those that wait, how often their actors died, and how long those took that are done."""

    waiting: deque[Task]
    left: set[Task]
    deaths: Counter[Any] = field(default_factory=Counter)
    with_care: set[Task] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)


class Team(Generic[Task]):
    """The actors of a cluster, as many as its nodes have room for, of now and of later.

    >>> with connected("ray") as ray:  # doctest: +SKIP
    ...     team = Team(ray, make, Share(None, "auto"), say=print)
    ...     for task, outcome, node in team.run(["a", "b"], lambda task, attempt: task):
    ...         print(task, outcome, node.name)
    """

    def __init__(
        self,
        ray: Any,
        make: Callable[[Share], Callable[..., Worker[Any, Any]]],
        share: Share,
        *,
        say: Callable[[str], None],
        straggles_after: float = STRAGGLES_AFTER,
        stands_still_after: float = math.inf,
    ) -> None:
        """Take the nodes of `ray`; `make` gives what makes the worker of an actor with that share of a node.

        A task is given to a second actor, or taken from its actor, after so many seconds.
        """
        self._ray = ray
        self._make = make
        self._share = share
        self._say = say
        self._straggles_after = straggles_after
        self._stands_still_after = stands_still_after
        self._code = code_digest()
        self._hands: list[_Hand[Task]] = []
        self._last_refusal: tuple[Node, PipelineError] | None = None
        self.nodes: dict[str, Node] = {}

    @property
    def room(self) -> int:
        """Actors that the nodes of this moment have room for."""
        return sum(len(self._share.actors(node["Resources"])) for node in self._ray.nodes() if node["Alive"])

    @property
    def at_work(self) -> int:
        """Actors that have a task."""
        return sum(hand.task is not None for hand in self._hands)

    @property
    def progress(self) -> list[tuple[int, ...]]:
        """Counts of each task at hand, as its actor says."""
        found = {hand.task: hand.progress for hand in self._hands if hand.task is not None and hand.progress}
        return list(found.values())

    def run(
        self, tasks: Sequence[Task], give: Callable[[Task, Attempt], Any], *, look: Callable[[], None]
    ) -> Iterator[tuple[Task, Any, Node]]:
        """Yield every task with its outcome and its node as they end; `give` makes what is sent, `look` sees progress.

        Whoever iterates may send a task again by `refuse`. Raises `EngineError` where no node can work, and where a
        task keeps ending its actors.
        """
        self._book = book = _Book(deque(tasks), set(tasks))
        able = time.monotonic()
        try:
            while book.left:
                self._hire()
                able = time.monotonic() if self._hands else able
                if time.monotonic() - able > PATIENCE:
                    raise EngineError("no node of the Ray cluster has a free core for us; ray status shows what it has")
                self._hand_out(give)
                yield from self._ended()
                self._ask()
                self._end_standstills()
                look()
        finally:
            for hand in list(self._hands):
                self._dismiss(hand)

    def refuse(self, node: Node, task: Task, error: PipelineError) -> None:
        """Leave out a node whose outcome is not right, and give `task` out again."""
        self._leave_out(node, error)
        self._book.left.add(task)
        self._book.waiting.appendleft(task)

    # --- actors come and go

    def _hire(self) -> None:
        """Start actors on nodes that have none: new ones, and those whose actors died."""
        alive = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
        self._tell_of_changes(alive)
        for key, found in alive.items():
            node = self.nodes[key]
            if node.refused is not None:
                continue
            shares = self._share.actors(found["Resources"])
            busy = sum(hand.node is node for hand in self._hands)
            wanted = min(len(shares), busy + len(self._book.left) - len(self._hands))
            for cpus, gpus in shares[busy:wanted]:
                self._hands.append(self._start(node, cpus, gpus))
            node.actors = max(node.actors, sum(hand.node is node for hand in self._hands))
        usable = any(node.refused is None for key, node in self.nodes.items() if key in alive)
        if self._last_refusal and not usable:
            node, error = self._last_refusal
            raise type(error)(f"node {node.name}: {error}")

    def _tell_of_changes(self, alive: Mapping[str, Mapping[str, Any]]) -> None:
        is_late = bool(self.nodes)
        for key, node in self.nodes.items():
            if node.is_there and key not in alive:
                node.is_there = False
                self._say(f"node {node.name} was lost; its work is given out again")
        for key in alive.keys() - self.nodes.keys():
            self.nodes[key] = Node(key, alive[key]["NodeManagerAddress"])
            if is_late:
                self._say(f"node {self.nodes[key].name} joined")

    def _start(self, node: Node, cpus: float, gpus: int) -> _Hand[Task]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = (
            self._ray.remote(Actor)
            .options(
                num_cpus=cpus,
                num_gpus=gpus,
                max_concurrency=2,  # a task, and the question how far it is
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            )
            .remote()
        )
        made = self._make(Share(max(1, int(cpus)), "cuda" if gpus else self._share.device))
        return _Hand(actor, node, actor.start.remote(made, self._code, str(Path.cwd())))

    def _dismiss(self, hand: _Hand[Task]) -> None:
        self._hands.remove(hand)
        with suppress(Exception):
            self._ray.kill(hand.actor)

    def _leave_out(self, node: Node, error: PipelineError) -> None:
        if node.refused is None:
            node.refused = str(error)
            self._last_refusal = node, error
            self._say(f"node {node.name} is left out: {error}")
        for hand in [hand for hand in self._hands if hand.node is node]:
            self._give_back(hand)
            self._dismiss(hand)

    # --- tasks go out and come back

    def _hand_out(self, give: Callable[[Task, Attempt], Any]) -> None:
        for hand in self._hands:
            if hand.started and hand.task is None:
                again = not self._book.waiting
                task = self._straggler() if again else self._book.waiting.popleft()
                if task is None:
                    return
                if again:
                    self._say(f"part {task} takes long and is given to a second actor, on node {hand.node.name}")
                hand.task, hand.progress = task, ()
                hand.since = hand.moved = time.monotonic()
                attempt = Attempt(contested=again, with_care=task in self._book.with_care)
                hand.ref = hand.actor.run.remote(give(task, attempt))

    def _straggler(self) -> Task | None:
        """Return the task that has taken longest, where it takes far longer than others and one actor alone has it."""
        held = [hand for hand in self._hands if hand.task is not None]
        counts = [hand.task for hand in held]
        alone = [hand for hand in held if counts.count(hand.task) == 1]
        if not alone or not self._book.seconds:
            return None
        slowest = min(alone, key=lambda hand: hand.since)
        limit = max(self._straggles_after, 2 * statistics.median(self._book.seconds))
        return slowest.task if time.monotonic() - slowest.since > limit else None

    def _ended(self) -> Iterator[tuple[Task, Any, Node]]:
        """Wait a little for any actor, and yield the tasks that have ended."""
        by_ref = {hand.ref: hand for hand in self._hands if hand.ref is not None}
        if not by_ref:
            time.sleep(LOOK_EVERY)
            return
        ready, _ = self._ray.wait(list(by_ref), num_returns=1, timeout=self._pause())
        for ref in ready:
            hand = by_ref[ref]
            if hand not in self._hands:  # dismissed meanwhile
                continue
            try:
                outcome = self._ray.get(ref)
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.OutOfMemoryError) as error:
                self._mourn(hand, "died", str(error))
                continue
            except self._ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None) or error
                text = (str(cause) or type(cause).__name__).strip().splitlines()[-1]
                raise EngineError(f"node {hand.node.name}: {type(cause).__name__}: {text}") from error
            if isinstance(outcome, Refusal):
                self._leave_out(hand.node, outcome.error)
            elif hand.started:
                yield self._settle(hand, outcome)
            else:
                hand.started, hand.ref = True, None

    def _pause(self) -> float:
        """Return the seconds to wait for an end: none where an actor could go on at once."""
        idle = any(hand.started and hand.task is None for hand in self._hands)
        return 0.0 if idle and self._book.waiting else LOOK_EVERY

    def _settle(self, hand: _Hand[Task], outcome: Any) -> tuple[Task, Any, Node]:
        task = hand.task
        assert task is not None
        self._book.left.discard(task)
        self._book.seconds.append(time.monotonic() - hand.since)
        hand.node.tasks += 1
        hand.task, hand.ref, hand.progress, hand.progress_ref = None, None, (), None
        for other in [other for other in self._hands if other.task == task]:
            self._dismiss(other)
        return task, outcome, hand.node

    def _mourn(self, hand: _Hand[Task], how: str, cause: str) -> None:
        """Give out again what an actor had that came to an end."""
        self._dismiss(hand)
        task, book = hand.task, self._book
        what = "before it had a part" if task is None else f"at part {task}"
        key: Any = hand.node if task is None else task
        book.deaths[key] += 1
        if book.deaths[key] >= MOST_DEATHS:
            last = (cause.strip().splitlines() or [how])[0]
            raise EngineError(
                f"node {hand.node.name}: {MOST_DEATHS} actors {how} {what}: {last}; more memory or other nodes may help"
            )
        care = ""
        if task is not None and task not in book.with_care and book.deaths[key] >= CARE_AFTER:
            book.with_care.add(task)
            care = ", and each image is tried alone before"
        self._say(f"an actor on node {hand.node.name} {how} {what}; its work is given out again{care}")
        self._give_back(hand)

    def _end_standstills(self) -> None:
        """End actors whose progress has not changed for too long; their task is done with care from now on."""
        now = time.monotonic()
        for hand in [hand for hand in self._hands if hand.task is not None]:
            if now - hand.moved > self._stands_still_after:
                assert hand.task is not None
                self._book.deaths[hand.task] = max(self._book.deaths[hand.task], CARE_AFTER - 1)
                self._mourn(hand, "stood still", f"nothing in {now - hand.moved:.0f} s")

    def _give_back(self, hand: _Hand[Task]) -> None:
        elsewhere = any(other.task == hand.task for other in self._hands if other is not hand)
        if hand.task is not None and hand.task in self._book.left and not elsewhere:
            self._book.waiting.appendleft(hand.task)
        hand.task = None

    def _ask(self) -> None:
        """Take what actors said of their progress, and ask again."""
        for hand in self._hands:
            if hand.task is None:
                continue
            if hand.progress_ref is None:
                hand.progress_ref = hand.actor.progress.remote()
            elif self._ray.wait([hand.progress_ref], timeout=0)[0]:
                with suppress(self._ray.exceptions.RayError):  # of a dead actor, which `_ended` sees
                    progress = self._ray.get(hand.progress_ref)
                    if progress != hand.progress:
                        hand.progress, hand.moved = progress, time.monotonic()
                hand.progress_ref = None
