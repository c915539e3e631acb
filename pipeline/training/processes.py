"""Several processes that train one network, as torchrun starts them: the same steps as one process takes.

    torchrun --nproc-per-node 2 -m pipeline finetune ...

Each batch is parted among them, a row in one process alone, and the gradients are averaged, each process by the weight
of its rows: the result is that of one process at the same batch size, within rounding. The first process reads what is
not to be read twice, decides, writes and speaks; what it decides the others are told.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, zip_longest
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from pipeline.devices import pick_device
from pipeline.errors import EngineError, SettingsError
from pipeline.interruption import Stopped

Found = TypeVar("Found")
Pair = tuple[torch.Tensor, torch.Tensor]
#: What the processes say to each other waits so long: the first one may compute for hours what the others need.
PATIENCE = timedelta(days=7)
#: The place in the store where a process leaves why it ended.
CAUSE = "pipeline/cause"


@dataclass
class Team:
    """The processes of a training, of which this one has the `rank`; `local` ones share this machine.

    A context manager: the connections are open in its block, and an error in it names the process that failed.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    store: Any = None

    @classmethod
    def of_environment(cls) -> Self:
        """Return the processes that torchrun started, or this one alone."""
        if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, count, local_rank, local_count = (int(os.environ[name]) for name in names)
        return cls(rank, count, local_rank, local_count)

    @property
    def is_first(self) -> bool:
        """True in the process that decides, writes and speaks."""
        return self.rank == 0

    def __enter__(self) -> Self:
        if self.count > 1:
            self.store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            distributed.init_process_group(
                backend, store=self.store, rank=self.rank, world_size=self.count, timeout=PATIENCE
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.store is None:
            return
        if error is None:
            distributed.destroy_process_group()
        elif not self.is_first:
            if isinstance(error, Stopped) or _is_loss(error):  # what another one's end brings about
                return
            self.store.set(CAUSE, f"process {self.rank} of {self.count}: {error or type(error).__name__}")
        elif _is_loss(error):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which torchrun ends the rest: this one is ending
            raise EngineError(
                f"{self._cause()}; the epochs that ended are kept, and the same command goes on after them, with as "
                "many processes as you like"
            ) from None
        elif isinstance(error, Stopped) and self.store.check([CAUSE]):
            raise EngineError(self._cause()) from None

    def _cause(self) -> str:
        if self.store is None or not self.store.check([CAUSE]):
            return f"one of the {self.count} processes of this training ended without a word, as a kill ends it"
        return cast(bytes, self.store.get(CAUSE)).decode(errors="replace")

    def device(self, name: str) -> torch.device:
        """Return the device of this process: of several GPUs of a machine each has its own."""
        device = pick_device(name)
        if self.count > 1 and device.type == "cuda":
            if ":" in name:
                raise SettingsError(f"device={name} is for one process; with several give auto, cpu or cuda")
            device = pick_device(f"cuda:{self.local_rank}")
            torch.cuda.set_device(device)
        return device

    def refuse(self, network: nn.Module, *, batch_size: int, rows: int) -> None:
        """Raise `SettingsError` where several processes would take other steps than one."""
        network.train()
        norms = (nn.modules.batchnorm._NormBase,)
        if self.count > 1 and any(isinstance(one, norms) and one.training for one in network.modules()):
            raise SettingsError(
                f"batch norm that learns would see a {self.count}th of each batch alone in each of "
                f"{self.count} processes; give --freeze-norm, or take one process"
            )
        if min(batch_size, rows) < self.count:
            raise SettingsError(
                f"{self.count} processes part batches of {batch_size} of {rows} training rows; take fewer processes"
            )

    # --- what is parted

    def share(self, part: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of a batch that are this process's: none may be left where the batch is a last, small one."""
        return np.array_split(part, self.count)[self.rank]

    def weight(self, own: float) -> float:
        """Return what this process's mean loss counts for, when the mean is taken over processes.

        `own` is the weight of its rows.
        """
        if self.count == 1:
            return 1.0
        total = torch.tensor(own, dtype=torch.float64)
        distributed.all_reduce(total)
        return own / float(total) * self.count

    def spread(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Give all processes the first one's network, and average the gradients of what is returned."""
        if self.count == 1:
            return network
        return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)

    def reseed(self, seed: int, epoch: int) -> None:
        """Draw other dropout than the first process does."""
        if self.rank:
            torch.manual_seed(int(np.random.SeedSequence([seed, self.rank, epoch]).generate_state(1)[0]))

    # --- what is said

    def first(self, call: Callable[[], Found]) -> Found:
        """Return what `call` gives in the first process, in all of them."""
        if not self.is_first:
            return cast(Found, self.heard())
        told = [call()]
        if self.count > 1:
            distributed.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        return told[0]

    def heard(self) -> Any:
        """Return what the first process says next."""
        told: list[Any] = [None]
        distributed.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        return told[0]

    def gather(self, own: list[Pair]) -> list[Pair]:
        """Return in the first process the pairs of all, one of each in turn; elsewhere `own`."""
        if self.count == 1:
            return own
        own = [(outputs.cpu(), targets.cpu()) for outputs, targets in own]
        lists: list[list[Pair]] | None = [[]] * self.count if self.is_first else None
        distributed.gather_object(own, lists)
        return own if lists is None else dealt_back(lists)

    def in_turn(self, call: Callable[[], Found]) -> Found:
        """Call in one process after the other: the first makes a file, and the others find it."""
        for turn in range(self.count):
            if turn == self.rank:
                found = call()
            if self.count > 1:
                distributed.all_reduce(torch.zeros(1))  # on which all wait
        return found


def dealt_back(lists: Iterable[list[Found]]) -> list[Found]:
    """Join what was dealt out item by item.

    >>> dealt_back([[0, 2], [1]])
    [0, 1, 2]
    """
    missing = object()
    return [one for one in chain.from_iterable(zip_longest(*lists, fillvalue=missing)) if one is not missing]  # type: ignore[misc]


def _is_loss(error: BaseException) -> bool:
    """Tell whether it is what the library of the connections raises where a process is gone."""
    said = str(error)
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in said for word in ("gloo", "Gloo", "NCCL", "onnection"))
    )
