"""Records to features on several devices at once, with a process and an embedder for each.

    records --chunks--> a process a device: read, decode, compute --features by index--> the process that writes

A device takes the next chunk when it has finished one, so that a slow one holds nobody up. Features travel back
and images do not: a row of 2048 numbers is 8 kB. A process that dies is an error that names its device.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from pipeline.config import ExtractSettings, Recipe
from pipeline.devices import cores, devices_of_kind, is_cpu, pick_device
from pipeline.engines.embedder import Embedded, Embedder
from pipeline.errors import EngineError, PipelineError, SettingsError
from pipeline.images.loading import BATCHES_AHEAD, Timings
from pipeline.images.trial import nothing_imported_from_here
from pipeline.sources import Record

if TYPE_CHECKING:
    from pipeline.bases import Base

#: Loading ahead and computing ahead need so many chunks at hand before the first is reported, and one on its way.
CHUNKS_OUT = BATCHES_AHEAD + 3


@dataclass
class _Ready:
    engine: str
    shapes: list[tuple[int, ...]]
    batch_size: int


@dataclass
class _Report:
    done: Embedded
    timings: Timings
    forward: float


@dataclass
class _Failure:
    error: Exception


@dataclass
class _Worker:
    device: str
    process: BaseProcess
    pipe: Connection
    out: int = 0
    forward: float = 0.0
    timings: Timings = field(default_factory=Timings)


def device_names(spec: str) -> list[str]:
    """List the devices of `spec`: ``cuda:0,cuda:1``, or ``all`` of the fastest kind there is.

    ``cpu,cpu`` is two processes that share the cores. Raises as `pick_device` does, and `SettingsError` for a GPU
    that is listed twice.

    >>> device_names("cpu,cpu")
    ['cpu', 'cpu']
    """
    if spec == "all":
        return devices_of_kind(pick_device("auto").type)
    names = [name.strip() for name in spec.split(",")]
    for name in names:
        if names.count(name) > 1 and name != "cpu":
            raise SettingsError(f"device {name!r} is listed twice; one process a device is enough")
        if not is_cpu(name):
            pick_device(name)
    return names


class Crew:
    """Embedders on several `devices`, a process for each; use it in a ``with`` block, which ends them.

    >>> with Crew(["cuda:0", "cuda:1"], recipe, settings) as crew:  # doctest: +SKIP
    ...     for done in crew.run(records):
    ...         print(done.indices, done.layers[0].shape)
    """

    def __init__(self, devices: Sequence[str], recipe: Recipe, settings: ExtractSettings) -> None:
        self.device = ",".join(devices)
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        share = max(1, cores() // len(devices))
        self._workers = []
        for device in devices:
            ours, theirs = context.Pipe()
            own = settings.model_copy(update={"device": device, "workers": share})
            process = context.Process(target=_serve, args=(theirs, recipe, own), daemon=True)
            with nothing_imported_from_here():
                process.start()
            theirs.close()
            self._workers.append(_Worker(device, process, ours))
        try:
            ready = [self._receive(worker) for worker in self._workers]
        except BaseException:
            self.close()
            raise
        self.name: str = ready[0].engine
        self.shapes: list[tuple[int, ...]] = ready[0].shapes
        self.batch_size: int = min(answer.batch_size for answer in ready)
        for worker in self._workers:
            self._send(worker, self.batch_size)

    @property
    def seconds(self) -> float:
        """Seconds in forward passes, as if all devices had worked at once."""
        return sum(worker.forward for worker in self._workers) / len(self._workers)

    @property
    def timings(self) -> Timings:
        """Seconds of reading and decoding, as if all processes had worked at once."""
        share = 1 / len(self._workers)
        return Timings(
            read=share * sum(worker.timings.read for worker in self._workers),
            decode=share * sum(worker.timings.decode for worker in self._workers),
            wait=share * sum(worker.timings.wait for worker in self._workers),
        )

    def run(self, records: Iterable[Record], *, seen: Callable[[bytes], bool] | None = None) -> Iterator[Embedded]:
        """Embed every record once, in chunks, in whatever order they are finished. A crew runs once.

        Content that one process meets a second time is a duplicate; two processes may each compute it once, since
        `seen` is known in this process only. Raises `EngineError` where a process dies, and what one reports.
        """
        waiting = iter(records)
        chunks = iter(lambda: list(islice(waiting, self.batch_size)), [])
        for _ in range(CHUNKS_OUT):
            for worker in self._workers:
                self._send_next(worker, chunks)
        while busy := {worker.pipe: worker for worker in self._workers if worker.out}:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                report = self._receive(worker)
                worker.out -= 1
                worker.forward, worker.timings = report.forward, report.timings
                self._send_next(worker, chunks)
                yield report.done

    def _send_next(self, worker: _Worker, chunks: Iterator[list[Record]]) -> None:
        chunk = next(chunks, None)
        self._send(worker, chunk)
        worker.out += chunk is not None

    def _send(self, worker: _Worker, message: Any) -> None:
        try:
            worker.pipe.send(message)
        except OSError:
            raise self._death_of(worker) from None

    def _receive(self, worker: _Worker) -> Any:
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            raise self._death_of(worker) from None
        if isinstance(answer, _Failure):
            raise answer.error
        return answer

    def _death_of(self, worker: _Worker) -> EngineError:
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with status {code}"
        return EngineError(
            f"the process of device {worker.device} {how}; rows written so far are kept: run the same command again"
        )

    def close(self) -> None:
        """End all processes; chunks that are not finished are lost."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Computer = Embedder | Crew


def _serve(pipe: Connection, recipe: Recipe, settings: ExtractSettings) -> None:
    """Live as one process: get ready, then report every chunk until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that writes; it ends this one
    try:
        _compute(pipe, recipe, settings)
    except PipelineError as error:
        pipe.send(_Failure(error))


def _compute(pipe: Connection, recipe: Recipe, settings: ExtractSettings) -> None:
    base = base_loader(recipe, settings.weights, seed=settings.seed)
    with Embedder(base, recipe, settings) as embedder:
        pipe.send(_Ready(embedder.name, embedder.shapes, embedder.batch_size))
        for done in embedder.run(_records(pipe), batch_size=pipe.recv(), seen=_Met()):
            pipe.send(_Report(done, embedder.timings, embedder.seconds))


def base_loader(recipe: Recipe, weights: str, *, seed: int) -> Callable[[], Base]:
    """Return what loads the base of a recipe, as `base_of` does: torch is imported where it is called."""

    def load() -> Base:
        from pipeline.bases import base_of

        return base_of(recipe, weights, seed=seed)

    return cache(load)


def _records(pipe: Connection) -> Iterator[Record]:
    while (chunk := pipe.recv()) is not None:
        yield from chunk


class _Met:
    """Contents that this process has met; asked by several threads."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self._lock = threading.Lock()

    def __call__(self, sha256: bytes) -> bool:
        with self._lock:
            known = sha256 in self._digests
            self._digests.add(sha256)
        return known
