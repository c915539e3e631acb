"""One list of images as parts that actors on several machines make, each part an ordinary feature file.

    list -> parts --one at a time, with its own rows alone--> actors --published files, reports--> all parts are there

The store alone says what is right: a part is published by rename, or not there; one that is there already costs an
actor a look at its images; one that somebody else holds, or may be at, is made beside and then takes the name.
"""

from __future__ import annotations

import contextlib
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline import files
from pipeline.config import ExtractSettings, Recipe
from pipeline.engines.ray import Attempt, Node, Share, Team, Worker, connected
from pipeline.errors import EngineError, ImageError, OutputExistsError
from pipeline.images.decoding import Limits
from pipeline.images.loading import refuse_too_many_bad
from pipeline.progress import Bar
from pipeline.sources import ImageRef, Manifest, Record
from pipeline.store.header import Part, escape
from pipeline.store.layout import LayerSpec
from pipeline.store.parts import Asked, PartFolder
from pipeline.store.reader import FeatureStore
from pipeline.store.reuse import partial_path
from pipeline.store.writer import waiting_rows
from pipeline.text import plural

#: Rows of a part: minutes on a few cores. A list has at most so many parts, which one folder can hold.
PART_ROWS, MOST_PARTS = 10_000, 10_000
#: A short list is cut into so many parts for each actor, unless they would have fewer rows than this.
PARTS_AN_ACTOR, FEWEST_ROWS = 2, 64
#: Images by which a node shows that it sees the same files.
WITNESSES = 16


@dataclass(frozen=True)
class Order:
    """One part: its rows, the file to make, and others that may have some of them.

    `attempt` says whether somebody else may be making it, and whether it ended actors before.
    """

    manifest: Manifest
    part: Part
    path: Path
    beside: tuple[Path, ...]
    attempt: Attempt

    @contextlib.contextmanager
    def made_beside(self) -> Iterator[tuple[Path, tuple[Path, ...]]]:
        """Yield another path to make the file at, and all files that may have rows of it; then give it its name."""
        path = self.path.parent / f".{secrets.token_hex(4)}" / self.path.name
        yield path, (*self.beside, self.path, partial_path(self.path))
        files.rename(path, self.path)
        path.parent.rmdir()


@dataclass
class Report:
    """The outcome of a part: its rows, the reasons of bad ones by their ids, counts, and seconds by stage.

    `unseen` are images whose files this node cannot read, `harmful` says what those did that ended actors.
    """

    rows: int
    bad: dict[str, str]
    computed: int
    reused: int
    seconds: dict[str, float]
    engine: str
    device: str
    layers: dict[str, tuple[int, ...]]
    unseen: list[ImageRef] = field(default_factory=list)
    harmful: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Witness:
    """Files that every node has to see: one in the folder of parts, and some images, by their sizes and times."""

    token: Path
    images: tuple[tuple[ImageRef, tuple[int, int]], ...]

    @classmethod
    @contextlib.contextmanager
    def of(cls, manifest: Manifest, folder: Path) -> Iterator[Witness]:
        """Choose images and write the file, which is removed again."""
        token = folder / f".seen-{secrets.token_hex(8)}"
        for left in folder.glob(".seen-*"):  # by a run that was killed; the folder is ours alone
            left.unlink()
        token.touch()
        try:
            yield cls.by(token, manifest)
        finally:
            token.unlink(missing_ok=True)

    @classmethod
    def by(cls, token: Path, manifest: Manifest) -> Witness:
        """Choose images, and take a file that is there."""
        records = manifest.records[:: max(1, len(manifest) // WITNESSES)][:WITNESSES]
        return cls(token, tuple((one.image, found) for one in records if (found := _state(one.image))))

    def check(self) -> None:
        """Raise `EngineError` where this machine does not see all of it."""
        if not self.token.exists():
            raise EngineError(f"it does not see the {self.token.parent} of the others; -o has to be shared storage")
        for image, state in self.images:
            if (found := _state(image)) != state:
                other = "another version of" if found else "no"
                raise EngineError(f"it has {other} {image.where}; every node has to see the same files, times too")


def _state(image: ImageRef) -> tuple[int, int] | None:
    try:
        return image.stat()
    except ImageError:
        return None


@dataclass(frozen=True)
class Measured:
    """The measurement of one actor: `seconds` an image, how many of the sample were bad, and the layers."""

    seconds: float
    bad: int
    layers: list[LayerSpec]


@dataclass(frozen=True)
class Estimate:
    """The expectation of a run: its parts, the rows to be computed, and `seconds` for each of those on all `nodes`."""

    parts: int
    pending: int
    seconds: float
    bad: int
    layers: list[LayerSpec]
    nodes: list[Node]


@dataclass
class Spread:
    """A list that is extracted on a cluster into the parts of `folder`; `reports` and `nodes` say what was done."""

    manifest: Manifest
    recipe: Recipe
    settings: ExtractSettings
    folder: Path
    force: bool = False
    also: Path | None = None
    reports: dict[int, Report] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    dropped: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    _done: int = 0
    _began: tuple[float, int] | None = None

    def run(self, make: Callable[[Share, Witness], Callable[[], Worker[Order, Report]]], bar: Bar) -> None:
        """Make all parts by workers that `make` makes. Raises what one raises, and what nodes refuse.

        The folder is locked meanwhile: two commands would only do the same work twice.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputExistsError(f"{self.folder} is a file; --on makes a folder of parts, or one file with --merge")
        share = self._share()
        with contextlib.ExitStack() as held:
            held.enter_context(files.made_parents(self.folder / "part"))
            held.enter_context(files.lock(self.folder))
            ray = held.enter_context(connected(str(self.settings.on)))
            witness = held.enter_context(Witness.of(self.manifest, self.folder))
            team: Team[int] = Team(
                ray,
                lambda share: make(share, witness),
                share,
                say=bar.say,
                stands_still_after=self.settings.image_seconds,
            )
            plan = self._plan(team.room)
            self._make(team, plan, bar)
            self.nodes = list(team.nodes.values())
            self._finish(plan)

    def _share(self) -> Share:
        return Share(None if self.settings.workers == "auto" else self.settings.workers, self.settings.device)

    def rehearse(
        self,
        make: Callable[[Share, Witness], Callable[[], Worker[Sequence[Record], Measured]]],
        sample: Sequence[Record],
        say: Callable[[str], None],
    ) -> Estimate:
        """Measure `sample` on the nodes at hand, by all actors at once; nothing is written. Raises as `run` does."""
        there = next(path for path in self.folder.parents if path.exists())
        witness = Witness.by(there, self.manifest)
        found: dict[Node, list[Measured]] = {}
        with connected(str(self.settings.on)) as ray:
            team: Team[int] = Team(ray, lambda share: make(share, witness), self._share(), say=say)
            plan = self._plan(team.room)
            tasks = range(max(1, team.room))
            for _, one, node in team.run(tasks, lambda _, attempt: sample, look=lambda: None):
                found.setdefault(node, []).append(one)
            nodes = [node for node in team.nodes.values() if node.actors and node.refused is None]
        everyone = [one for some in found.values() for one in some]
        rate = sum(node.actors / _mean(found.get(node, everyone)) for node in nodes)
        layers = everyone[0].layers
        pending = sum(self._pending(plan, number, layers) for number in range(1, plan.of + 1))
        return Estimate(plan.of, pending, 1 / rate, everyone[0].bad, layers, nodes)

    def _pending(self, plan: PartFolder, number: int, layers: Sequence[LayerSpec]) -> int:
        """Count rows of a part to be computed; those of earlier parts of other sizes may be kept beside."""
        path = plan.part(number)
        start, stop = plan.range(number, len(self.manifest))
        if not path.exists() and not partial_path(path).exists():
            return stop - start
        order = self._order(plan, number, Attempt(contested=False, with_care=False))
        return len(
            waiting_rows(
                path,
                manifest=order.manifest,
                layers=layers,
                recipe=self.recipe,
                part=order.part,
                rehash=self.settings.rehash,
            )
        )

    def _plan(self, actors: int) -> PartFolder:
        ids = [record.id for record in self.manifest.records]
        self._whole = Part.whole(ids)
        asked = Asked(self._whole, escape(str(self.manifest.source)), self.recipe, forced=self.force)
        count = part_count(len(ids), self.settings.part_rows, actors)
        return PartFolder.plan(self.folder, asked, ids, parts=count, also=self.also)

    def _make(self, team: Team[int], plan: PartFolder, bar: Bar) -> None:
        numbers = range(1, plan.of + 1)
        for number, report, node in team.run(
            numbers, lambda number, attempt: self._order(plan, number, attempt), look=lambda: self._look(team, bar)
        ):
            path = plan.part(number)
            if (unseen := next(filter(is_readable, report.unseen), None)) is not None:
                withdraw(path)
                team.refuse(node, number, EngineError(f"it does not see {unseen.where}, which is there"))
                continue
            for line in report.harmful:
                bar.say(line)
            self.reports[number] = report
            self._done += report.rows
            self.bad |= report.bad
            with withdrawing(path):
                refuse_too_many_bad(
                    self.bad, len(self.manifest), self.settings.max_bad, self.manifest.source, kept="what was computed"
                )

    def _order(self, plan: PartFolder, number: int, attempt: Attempt) -> Order:
        start, stop = plan.range(number, len(self.manifest))
        rows = self.manifest.rows(start, stop)
        part = self._whole.model_copy(update={"start": start, "stop": stop})
        beside = plan.near([record.id for record in rows.records])
        return Order(rows, part, plan.part(number), beside, attempt)

    def _look(self, team: Team[int], bar: Bar) -> None:
        """Show progress: rows of parts that are done, and of those at hand."""
        at_hand = team.progress
        done = self._done + sum(rows for rows, *_ in at_hand)
        bad = len(self.bad) + sum(count for _, count, *_ in at_hand)
        rate = self._rate(done, at_work=bool(team.at_work))
        bar.reach(min(1.0, done / len(self.manifest)), f"{plural(team.at_work, 'actor')} at work, {bad} bad{rate}")

    def _rate(self, done: int, *, at_work: bool) -> str:
        """Return the rows a second since the first actor was at work; rows that were there by then do not count."""
        now = time.monotonic()
        if self._began is None:
            self._began = (now, done) if at_work and done else None
            return ""
        then, before = self._began
        return f", {(done - before) / (now - then):.1f}/s"

    def _finish(self, plan: PartFolder) -> None:
        with withdrawing(plan.part(plan.of)):
            self.manifest.require_unchanged()
        unwanted = {name: digest for one in plan.earlier for name, digest in one.unwanted.items()}
        plan.clear()
        if unwanted:
            with FeatureStore.open(self.folder) as store:
                kept = {digest.tobytes() for digest in store.sha256}
            self.dropped = sum(digest not in kept for digest in unwanted.values())


def _mean(found: Sequence[Measured]) -> float:
    """Return mean seconds of an image; never none, for a sample without images."""
    return max(1e-9, statistics.fmean(one.seconds for one in found))


def is_readable(image: ImageRef) -> bool:
    """Return True where this machine can read the bytes of an image."""
    try:
        image.read(Limits().max_bytes)
    except ImageError:
        return False
    return True


def part_count(total: int, rows: int | Literal["auto"], actors: int) -> int:
    """Return how many parts a list of `total` rows is cut into, for so many actors; `rows` a part, or "auto".

    >>> part_count(1_000_000, "auto", 8), part_count(1000, "auto", 4), part_count(100, 30, 4)
    (100, 8, 4)
    """
    if rows != "auto":
        return -(-total // max(rows, -(-total // MOST_PARTS)))
    few = min(PARTS_AN_ACTOR * actors, -(-total // FEWEST_ROWS))
    return min(MOST_PARTS, max(-(-total // PART_ROWS), few, 1))


def withdraw(path: Path) -> None:
    """Take the name from a part, so that its folder is no store; a later run goes on from what it has."""
    with contextlib.suppress(FileNotFoundError):
        files.rename(path, partial_path(path))


@contextlib.contextmanager
def withdrawing(path: Path) -> Iterator[None]:
    """Withdraw a part where the block raises."""
    try:
        yield
    except BaseException:
        withdraw(path)
        raise
