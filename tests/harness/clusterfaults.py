"""Extractions on a real cluster of three nodes, with faults at random moments: is any row lost, repeated or wrong?

    python tests/harness/clusterfaults.py --runs 30 --seed 13

A worker of an actor is killed, a node is removed without grace (and another one joins), the process that drives is
killed and the same command is given again, or one actor may write no more, as on a full disk. Actors log what they
compute, so that rows computed twice are counted, those of killed processes too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import raycluster
from harmful import harmful
from pictures import write_photos

from pipeline.commands.extract import Job, PartWorker, extract
from pipeline.engines.embedder import Embedded
from pipeline.engines.ray import Share
from pipeline.progress import progress
from pipeline.store import FeatureStore
from pipeline.store.spread import Spread, Witness

#: Of the extractions, so that they are cheap.
SMALL: dict[str, Any] = {"base": "squeezenet1_1", "weights": "embedded", "size": 64, "batch_size": 8}
KINDS = ("actor", "node", "driver", "disk")
#: Bytes to which files of an actor may grow whose disk is full: less than a part has, more than Ray's own log.
FULL = 1 << 16
IMAGES, PART_ROWS, PAUSE = 900, 100, 0.04
#: Seconds in which a run has to end.
PATIENCE = 300.0


# --- in the actors, and in the process that drives


class _Logged:
    """A computer that logs the ids that it gives features for, and takes `pause` seconds more for each."""

    def __init__(self, computer: Any, log: Path, pause: float) -> None:
        self._computer, self._log, self._pause = computer, log, pause

    def __getattr__(self, name: str) -> Any:
        return getattr(self._computer, name)

    def run(self, records: Sequence[Any], **options: Any) -> Iterator[Embedded]:
        ids = {record.index: record.id for record in records}
        for done in self._computer.run(records, **options):
            append(self._log, "".join(f"{ids[index]}\n" for index in done.indices))
            time.sleep(self._pause * len(done))
            yield done


class LoggedWorker(PartWorker):
    """A worker that logs its process, its node and what it computes."""

    def __init__(self, *arguments: Any, log: Path, pause: float, **options: Any) -> None:
        import ray

        super().__init__(*arguments, **options)
        self._computer: Any = _Logged(self._computer, log, pause)
        append(log.with_suffix(".pids"), f"{os.getpid()} {ray.get_runtime_context().get_node_id()}\n")


def append(log: Path, text: str) -> None:
    """Add whole lines to a file that several processes write."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def drive(source: str, output: str, on: str, log: str, pause: float = 0.0, seconds: float = 300.0) -> None:
    """Extract on the cluster, with logged workers and images that do what their names say; print counts."""
    options = {**SMALL, "on": on, "part_rows": PART_ROWS, "workers": 1, "image_seconds": seconds, "max_bad": 1.0}
    job = Job.of(source, options, output=Path(output), force=False)
    job = replace(job, manifest=harmful(job.manifest))

    def make(share: Share, witness: Witness) -> Callable[[], PartWorker]:
        settings = job.settings.model_copy(update={"device": "cpu", "workers": 1, "on": None})
        return partial(LoggedWorker, settings, job.recipe, witness, forced=False, log=Path(log), pause=pause)

    spread = Spread(job.manifest, job.recipe, job.settings, Path(output).absolute())
    with progress(len(job.manifest), "extracting", every=5.0) as bar:
        spread.run(make, bar)
    reports = spread.reports.values()
    nodes = [node.to_json() for node in spread.nodes]
    print(json.dumps({"rows": sum(one.rows for one in reports), "bad": spread.bad, "nodes": nodes}))


def driver(*arguments: object) -> subprocess.Popen[str]:
    """Start `drive` in a process of its own."""
    program = f"import clusterfaults; clusterfaults.drive(*{arguments!r})"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", program], env=raycluster.environment(), text=True, **pipes)


# --- the runs


@dataclass
class Outcome:
    """What became of one run: rows, and rows computed for each that has features."""

    faults: list[str]
    lost: int
    repeated: int
    wrong: int
    computed: float
    seconds: float
    said: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        return not (self.lost or self.repeated or self.wrong)


class Runs:
    """Runs one after the other on one cluster, which is whole again before each."""

    def __init__(self, cluster: raycluster.Nodes, desk: Path, seed: int) -> None:
        self._cluster, self._desk = cluster, desk
        self._random = random.Random(seed)
        self._nodes = [0, 1, 2]  # the cluster's numbers of those that live
        self._next = 3
        self._source = desk / "photos"
        write_photos(self._source, IMAGES)
        for number in range(0, IMAGES, 90):
            (self._source / f"{number:03}.jpg").write_bytes(b"no image %d" % number)
        extract(self._source, desk / "one.h5", **SMALL)

    def run(self, number: int) -> Outcome:
        """Extract with one to three faults, and look at what is there in the end."""
        kinds = [KINDS[number % len(KINDS)], *self._random.choices(KINDS, k=self._random.randrange(3))]
        self._output, self._log = self._desk / f"run{number}", self._desk / f"run{number}.log"
        started = time.monotonic()
        self._driver, self._said = self._start(), list[str]()
        self._wait(lambda: self._log.exists())
        for kind in kinds:
            time.sleep(self._random.uniform(0, 12 / len(kinds)))
            if self._driver.poll() is None:
                self._fault(kind)
        self._end()
        found = self._compared(kinds, time.monotonic() - started)
        self._mend()
        return found

    def _fault(self, kind: str) -> None:
        happen = {"actor": self._kill_actor, "node": self._lose_node, "driver": self._kill_driver}
        happen.get(kind, self._fill_disk)()

    def _start(self) -> subprocess.Popen[str]:
        return driver(str(self._source), str(self._output), self._cluster.on, str(self._log), PAUSE)

    def _wait(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not is_so():
            if self._driver.poll() is not None:
                raise RuntimeError(f"the process that drives ended: {self._driver.communicate()[1]}")
            if time.monotonic() > deadline:
                raise RuntimeError("nothing began")
            time.sleep(0.1)

    def _processes(self) -> list[int]:
        """Return the actors' processes that live, the newest last."""
        log = self._log.with_suffix(".pids")
        found = [int(line.split()[0]) for line in log.read_text().splitlines()] if log.exists() else []
        return [process for process in found if Path(f"/proc/{process}").exists()]

    def _kill_actor(self) -> None:
        for process in self._random.sample(self._processes(), k=min(1, len(self._processes()))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _fill_disk(self) -> None:
        for process in self._random.sample(self._processes(), k=min(1, len(self._processes()))):
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process, resource.RLIMIT_FSIZE, (FULL, resource.RLIM_INFINITY))

    def _lose_node(self) -> None:
        gone = self._random.choice(self._nodes)
        self._nodes.remove(gone)
        self._cluster.ask(f"remove {gone}")
        self._add()

    def _add(self) -> None:
        self._cluster.ask("add 1")
        self._nodes.append(self._next)
        self._next += 1

    def _kill_driver(self) -> None:
        self._driver.kill()
        self._said += self._driver.communicate()[1].splitlines()
        self._cluster.ask("settle 0")
        self._driver = self._start()

    def _end(self) -> None:
        try:
            _, said = self._driver.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            raise RuntimeError(f"no end: {self._driver.communicate()[1]}") from None
        self._said += said.splitlines()
        if self._driver.returncode:
            raise RuntimeError(f"status {self._driver.returncode}: {said}")

    def _mend(self) -> None:
        self._cluster.ask("settle 0")

    def _compared(self, faults: list[str], seconds: float) -> Outcome:
        computed = Counter(self._log.read_text().split())
        with FeatureStore.open(self._output) as found, FeatureStore.open(self._desk / "one.h5") as expected:
            ids = Counter(found.ids)
            place = {name: row for row, name in enumerate(found.ids)}
            rows = [place[name] for name in expected.ids if name in place]
            there = [row for row, name in enumerate(expected.ids) if name in place]
            wrong = found.statuses[rows] != expected.statuses[there]
            wrong |= (found.sha256[rows] != expected.sha256[there]).any(axis=1)
            mine, theirs = found.features("avgpool")[rows], expected.features("avgpool")[there]
            wrong |= ~np.isclose(mine, theirs, rtol=0, atol=1e-5, equal_nan=True).reshape(len(rows), -1).all(axis=1)
            return Outcome(
                faults,
                lost=len(set(expected.ids) - ids.keys()),
                repeated=sum(count - 1 for count in ids.values()),
                wrong=int(np.count_nonzero(wrong)),
                computed=computed.total() / int(np.count_nonzero(expected.statuses == 1)),
                seconds=seconds,
                said=[line for line in self._said if "extracting" not in line],
            )


def main() -> None:
    """Run, print each outcome, and leave with 1 where a row is not right."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=30)
    options.add_argument("--seed", type=int, default=13)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as desk, raycluster.nodes(1, 1, 1) as cluster:
        runs = Runs(cluster, Path(desk), asked.seed)
        outcomes = []
        for number in range(asked.runs):
            outcomes.append(one := runs.run(number))
            print(f"{number + 1}: {'+'.join(one.faults)}: lost {one.lost}, repeated {one.repeated}, wrong {one.wrong},")
            print(f"   computed {one.computed:.3f} x, {one.seconds:.0f} s; {' | '.join(one.said)}", flush=True)
        print(
            f"{len(outcomes)} runs: lost {sum(one.lost for one in outcomes)}, "
            f"repeated {sum(one.repeated for one in outcomes)}, wrong {sum(one.wrong for one in outcomes)}, "
            f"computed {sum(one.computed for one in outcomes) / len(outcomes):.3f} x on average"
        )
    sys.exit(not all(one.is_right for one in outcomes))


if __name__ == "__main__":
    main()
