"""A real Ray cluster of several nodes on this machine, in a process of its own, all of it on 127.0.0.2.

Ray puts an outward address in the place of 127.0.0.1.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
#: Where processes find this package, and workers of these tests.
_PATH = [str(HERE), str(HERE / "tests"), str(HERE / "tests/harness")]


class Nodes:
    """A cluster whose head has no core; `cores` says how many each further node has."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self._process = process
        self.on = f"ray:{address}"

    def ask(self, line: str) -> str:
        """Have the cluster do something: ``add CORES`` a node, or ``remove NUMBER`` one without grace.

        A node may get variables: ``add 1 NAME=VALUE``; those of `odd/sitecustomize.py` make it an odd one.
        ``settle 0`` waits until the cluster knows all of that, and starts a process on no node that is gone.
        """
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def cpu_seconds(self) -> float:
        """Return the seconds of cores that Ray's own processes took; those of its workers do not count."""
        ticks, family = 0, {self._process.pid}
        for stat in sorted(Path("/proc").glob("[0-9]*/stat"), key=lambda path: int(path.parent.name)):
            with suppress(OSError):
                name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
                parent, user, system = (int(rest.split()[place]) for place in (1, 11, 12))
                if parent in family and not name.startswith("ray::"):
                    family.add(int(stat.parent.name))
                    ticks += user + system
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def nodes(*cores: int) -> Iterator[Nodes]:
    """Start a cluster for the block; the test is skipped where Ray is not installed."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    process = subprocess.Popen(
        [sys.executable, __file__, *map(str, cores)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout
        address = process.stdout.readline().strip()
        assert address, "no cluster came up"
        yield Nodes(process, address)
    finally:
        process.communicate()


def environment() -> dict[str, str]:
    """The environment of a process that has to do with Ray, or with these tests' cluster."""
    return {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(_PATH), "OMP_NUM_THREADS": "1"}


def odd(**variables: object) -> str:
    """The variables of a node whose processes are odd: see `odd/sitecustomize.py`."""
    path = os.pathsep.join([str(HERE / "tests/odd"), *_PATH])
    return " ".join([f"PYTHONPATH={path}", *(f"{name}={value}" for name, value in variables.items())])


def extract(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``pipeline extract`` to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=folder, env=environment())


def command(*arguments: object) -> list[str]:
    """The command line of an extraction with a small base."""
    base = ["--base", "squeezenet1_1", "--weights", "embedded"]
    return [sys.executable, "-m", "pipeline", "extract", *map(str, arguments), *base]


def _serve(cores: Sequence[int]) -> None:
    from ray.cluster_utils import Cluster

    here = {"node_ip_address": "127.0.0.2", "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **here})
    workers = [cluster.add_node(num_cpus=count, **here) for count in cores]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        what, number, *variables = line.split()
        if what == "add":
            given = dict(one.split("=", 1) for one in variables)
            workers.append(cluster.add_node(num_cpus=int(number), env_vars=given, **here))
        elif what == "settle":
            cluster.wait_for_nodes(timeout=60)
        else:
            cluster.remove_node(workers[int(number)], allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    _serve([int(text) for text in sys.argv[1:]])
