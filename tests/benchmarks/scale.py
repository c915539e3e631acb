"""How far extraction on a cluster goes: planning, actors, overhead, heads on many parts, and 10^9 images on paper.

    python tests/benchmarks/scale.py plan [--names 10000 100000 1000000]
    python tests/benchmarks/scale.py actors [--images 1500 --actors 1 2 4]
    python tests/benchmarks/scale.py overhead [--images 2000 --rounds 3]
    python tests/benchmarks/scale.py heads [--rows 1000000 --parts 64 --memory 1]
    python tests/benchmarks/scale.py paper

`plan` lists as many names, plans their parts and hands all of them out to actors that do nothing: what is left is our
own work and Ray's. `overhead` sets --on ray beside as many processes with --part k/N, on the same cores, in turns; the
time of a long list less that of a short one leaves starts out. `heads` fits heads to a folder of parts and to one file
of the same rows. `paper` measures what it needs, and reckons. Everything stays on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/benchmarks")]

import raycluster  # noqa: E402
from pictures import write_photos  # noqa: E402

from pipeline.commands.extract import Job, PartWorker, part_maker  # noqa: E402
from pipeline.config import ExtractSettings  # noqa: E402
from pipeline.engines.ray import Share  # noqa: E402
from pipeline.store.spread import MOST_PARTS, Order, Report, Spread, Witness, part_count  # noqa: E402


def peak_mb() -> float:
    """The most memory that this process has had."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def in_process(*arguments: object) -> Any:
    """Call a function of this file in a process of its own; it prints JSON."""
    environment = {**raycluster.environment(), "PYTHONPATH": os.pathsep.join(sys.path[:3])}
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def as_nice_as_we_are() -> None:
    """Have Ray's workers run as other processes do: else they give way to everybody, which is no overhead of ours."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (it is called so)


# --- planning


class Taker:
    """The worker of an actor that takes parts, and makes nothing of them."""

    def __call__(self, order: Order) -> Report:
        peak = {"peak": peak_mb()}
        return Report(len(order.manifest), {}, 0, 0, peak, "none", "none", {})

    def progress(self) -> tuple[int, ...]:
        return ()


def make_taker(share: Share, witness: Witness) -> Callable[[], Taker]:
    """Return what makes a taker, wherever it runs."""
    return Taker


class Silence:
    """A bar that nobody sees; it keeps the time at which the first actor was at work."""

    def __init__(self) -> None:
        self.began: float | None = None

    def advance(self, count: int = 1) -> None:
        pass

    def reach(self, share: float, what: str) -> None:
        if self.began is None and not what.startswith("0 "):
            self.began = time.perf_counter()

    def say(self, line: str) -> None:
        print(line, file=sys.stderr)


class Clocked(Spread):
    """A spread that keeps when it made the first part's rows."""

    began: float | None = None

    def _order(self, *arguments: Any) -> Order:
        self.began = self.began or time.perf_counter()
        return super()._order(*arguments)


def plan_one(names: int) -> dict[str, float]:
    """List names, plan their parts, and hand them out: seconds and memory of each."""
    from cheap import recipe
    from scale import make_taker as importable

    from pipeline.sources import read_manifest

    with tempfile.TemporaryDirectory() as place:
        listed = Path(place) / "names.txt"
        with listed.open("w") as file:
            file.writelines(f"images/{number // 1000:07}/{number:010}.jpg\n" for number in range(names))
        before, started = peak_mb(), time.perf_counter()
        manifest = read_manifest(listed)
        seconds = time.perf_counter() - started
        settings = ExtractSettings.of({"on": "ray", "workers": 1})
        spread = Clocked(manifest, recipe(), settings, Path(place) / "parts")
        started = time.perf_counter()
        spread.run(importable, Silence())
        ended = time.perf_counter()
    return {
        "names": names,
        "parts": len(spread.reports),
        "list": seconds,
        "handed": ended - (spread.began or started),
        "start": (spread.began or started) - started,
        "driver": peak_mb(),
        "before": before,
        "actor": max(one.seconds["peak"] for one in spread.reports.values()),
        "rows": sum(one.rows for one in spread.reports.values()),
    }


def plan(names: Sequence[int]) -> list[dict[str, float]]:
    """Print and return a line for each number of names."""
    print("names       parts   listed   handed out   Ray's start   driver's memory   an actor's")
    found = []
    for number in names:
        found.append(one := in_process("plan-one", "--names", number))
        assert one["rows"] == number
        print(
            f"{number:<11,} {one['parts']:<7} {one['list']:6.2f} s {one['handed']:8.2f} s {one['start']:11.1f} s"
            f" {one['driver']:14.0f} MB {one['actor']:9.0f} MB",
            flush=True,
        )
    return found


# --- actors


def actors(images: int, counts: Sequence[int]) -> None:
    """Print the images a second of some numbers of actors, without their start."""
    as_nice_as_we_are()
    with tempfile.TemporaryDirectory() as place:
        write_photos(Path(place) / "photos", images)
        first = 0.0
        for count in counts:
            with raycluster.nodes(count) as cluster:
                found = in_process("actors-one", place, cluster.on, count)
            rate = images / found["seconds"]
            first = first or rate
            print(f"{count} actors: {rate:.1f} images/s, {rate / first:.2f} x of {counts[0]}", flush=True)


def actors_one(place: str, on: str, count: int) -> dict[str, float]:
    """Extract on a cluster, and return seconds from the first actor's work on."""
    output = Path(place) / f"by{count}"
    options = {"base": "squeezenet1_1", "weights": "embedded", "on": on, "workers": 1, "device": "cpu"}
    job = Job.of(f"{place}/photos", options, output=output, force=False)
    spread, clock = Spread(job.manifest, job.recipe, job.settings, output), Silence()
    spread.run(lambda share, witness: part_maker(job, share, witness, kind=PartWorker, forced=False), clock)
    assert clock.began is not None
    return {"seconds": time.perf_counter() - clock.began}


# --- overhead


@dataclass(frozen=True)
class Cost:
    """Seconds of a wall clock, and of all cores."""

    wall: float
    cpu: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall - other.wall, self.cpu - other.cpu)


def overhead(images: int, rounds: int) -> None:
    """Print the time of two actors against that of two processes with a part each, in turns."""
    as_nice_as_we_are()
    ratios = []
    with tempfile.TemporaryDirectory() as place, raycluster.nodes(2) as cluster:
        folder = Path(place)
        write_photos(folder / "short", images)
        write_photos(folder / "long", 3 * images)
        for number in range(rounds):
            actors, hand = (
                run(folder, "long", cluster) - run(folder, "short", cluster) for run in (_by_actors, _by_hand)
            )
            ratios.append((actors.wall / hand.wall, actors.cpu / hand.cpu))
            print(
                f"round {number + 1}: {2 * images} more images take two actors {actors.wall:.1f} s, {actors.cpu:.1f} s"
                f" of cores, and two processes by hand {hand.wall:.1f} s, {hand.cpu:.1f} s of cores",
                flush=True,
            )
    wall, cpu = (statistics.median(found) for found in zip(*ratios, strict=True))
    print(f"median of {rounds} rounds, start-up apart: {wall:.3f} x of the time, {cpu:.3f} x of the cores' time")


def _by_actors(folder: Path, name: str, cluster: raycluster.Nodes) -> Cost:
    """Cost of the parts, of the process that drives, and of Ray's own processes."""
    before, own = cluster.cpu_seconds(), _children()
    started = time.perf_counter()
    found = in_process("cpu-one", folder, name, cluster.on)
    wall = time.perf_counter() - started
    shutil.rmtree(folder / "by-actors")
    return Cost(wall, found["cpu"] + _children() - own + cluster.cpu_seconds() - before)


class CpuWorker(PartWorker):
    """A worker that reports the seconds of cores that its process took for a part."""

    def __call__(self, order: Order) -> Report:
        started = time.process_time()
        report = super().__call__(order)
        report.seconds["cpu"] = time.process_time() - started
        return report


def cpu_one(place: str, name: str, on: str) -> dict[str, float]:
    """Extract on a cluster, and return the seconds of cores that its actors took."""
    from scale import CpuWorker as Importable

    output = Path(place) / "by-actors"
    options = {"base": "squeezenet1_1", "weights": "embedded", "on": on, "workers": 1, "device": "cpu"}
    job = Job.of(f"{place}/{name}", options, output=output, force=False)
    spread = Spread(job.manifest, job.recipe, job.settings, output)
    spread.run(lambda share, witness: part_maker(job, share, witness, kind=Importable, forced=False), Silence())
    return {"cpu": sum(report.seconds["cpu"] for report in spread.reports.values())}


def _by_hand(folder: Path, name: str, cluster: raycluster.Nodes) -> Cost:
    outputs = [folder / f"hand{part}.h5" for part in (1, 2)]
    commands = [
        raycluster.command(name, "-o", output, "--part", f"{part}/2", "--workers", 1, "-q")
        for part, output in enumerate(outputs, 1)
    ]
    own, started, environment = _children(), time.perf_counter(), raycluster.environment()
    running = [subprocess.Popen(one, cwd=folder, env=environment, stdout=subprocess.DEVNULL) for one in commands]
    codes = [one.wait() for one in running]
    assert not any(codes)
    cost = Cost(time.perf_counter() - started, _children() - own)
    for output in outputs:
        output.unlink()
    return cost


def _children() -> float:
    """Return the seconds of cores of all processes that we started and that have ended."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


# --- heads


def heads(rows: int, parts: int, memory: float) -> None:
    """Print seconds and memory of heads on a folder of parts, and on one file of the same rows."""
    from stores import write_store

    with tempfile.TemporaryDirectory() as place:
        for name, count in ((f"parts-{parts}", parts), ("one.h5", 1)):
            write_store(Path(place) / name, rows=rows, dimensions=512, classes=5, parts=count)
            for head in ("ridge", "linear"):
                found = in_process("heads-one", Path(place) / name, head, memory)
                print(
                    f"{head} on {name}: {found['seconds']:.1f} s, {found['seconds'] / rows * 1e6:.1f} us a row, "
                    f"{found['peak']:.0f} MB at most, accuracy {found['accuracy']:.4f}",
                    flush=True,
                )
            path = Path(place) / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def heads_one(path: str, head: str, memory: str) -> dict[str, float]:
    """Fit one head, and return seconds, memory and accuracy."""
    from pipeline.commands.fit_head import fit_head

    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        result = fit_head(path, f"{place}/head", head=head, memory=float(memory))
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak": peak_mb(), "accuracy": result.metrics["val"]["accuracy"]}


# --- on paper


def paper(rows: int = 10**9, names: int = 10**6) -> None:
    """Reckon what `rows` images take, from figures that are measured here at `names` and at a small merge."""
    measured = in_process("plan-one", "--names", names)
    merged = in_process("merge-one")
    name_bytes = (measured["driver"] - measured["before"]) * 2**20 / names
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    parts = part_count(rows, "auto", 1000)
    row_bytes = merged["bytes"] / merged["rows"]
    size = row_bytes * rows
    listed, handed = measured["list"] / names, measured["handed"] / names
    lines = (
        f"measured here: {listed * 1e6:.1f} us to list a name, {name_bytes:.0f} bytes of memory for it,",
        f"  {handed * 1e6:.1f} us to hand it out, {row_bytes:.0f} bytes of disk a row of 512 float32,",
        f"  {merged['rate'] / 1e6:.0f} MB/s to merge",
        f"reckoned for {rows:.0e} images:",
        f"  listing          {listed * rows / 3600:.1f} h, by one process",
        f"  handing out      {handed * rows / 3600:.1f} h, while actors work",
        f"  parts            {parts} (at most {MOST_PARTS}), {rows // parts:,} rows, {size / parts / 1e6:.0f} MB each",
        f"  disk             {size / 1e12:.2f} TB, {row_bytes / 2048 - 1:.1%} of it no features; twice that to merge",
        f"  merge            {size / merged['rate'] / 3600:.1f} h; a folder of parts needs none",
        f"  work             {rows / 1000 / 3600:.0f} h at 1,000 images/s in all",
        f"  driver's memory  {name_bytes * rows / 1e9:.0f} GB: this breaks first. Half of this machine's holds"
        f" {memory / 2 / name_bytes:.1e} names; a longer list is cut into several sources, each a store",
    )
    print("\n".join(lines))


def merge_one() -> dict[str, float]:
    """Write parts and merge them: rows, bytes, and bytes a second."""
    from stores import write_store

    from pipeline.store.merge import join_parts

    with tempfile.TemporaryDirectory() as place:
        folder, file = Path(place) / "parts", Path(place) / "file.h5"
        write_store(folder, rows=100_000, dimensions=512, classes=5, parts=8)
        started = time.perf_counter()
        _, rows = join_parts([folder], file)
        seconds = time.perf_counter() - started
        return {"rows": rows, "bytes": file.stat().st_size, "rate": file.stat().st_size / seconds}


def main() -> None:
    """Run the part that is asked for."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("what")
    asked.add_argument("arguments", nargs="*")
    asked.add_argument("--names", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    asked.add_argument("--images", type=int, default=1500)
    asked.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4])
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--rows", type=int, default=10**6)
    asked.add_argument("--parts", type=int, default=64)
    asked.add_argument("--memory", type=float, default=1.0)
    given = asked.parse_args()
    shown: dict[str, Callable[[], object]] = {
        "plan": lambda: plan(given.names),
        "actors": lambda: actors(given.images, given.actors),
        "overhead": lambda: overhead(given.images, given.rounds),
        "heads": lambda: heads(given.rows, given.parts, given.memory),
        "paper": paper,
    }
    inner: dict[str, Callable[..., dict[str, float]]] = {
        "plan-one": lambda: plan_one(given.names[0]),
        "actors-one": lambda place, on, count: actors_one(place, on, int(count)),
        "cpu-one": cpu_one,
        "heads-one": heads_one,
        "merge-one": merge_one,
    }
    if given.what in inner:
        print(json.dumps(inner[given.what](*given.arguments)))
    elif given.what in shown:
        shown[given.what]()
    else:
        asked.error(f"{given.what} is none of {', '.join(shown)}")


if __name__ == "__main__":
    main()
