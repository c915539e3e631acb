"""The training loop: batches in, the best epoch's network out, with the measures of each epoch.

    before any step: validate -> each epoch: steps, validate, keep the best so far, save -> put the best back

Epoch 0 is the network as it came, so that a start from a fitted head shows the head's own accuracy, and
training that makes nothing better changes nothing. On a CPU the same seed gives the same numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import EngineError, HeadError, ModelError
from pipeline.registry import Registry
from pipeline.training.batches import Batch, Inputs
from pipeline.training.checkpoint import Saved
from pipeline.training.network import Given, Network, State, parameter_groups, restore, snapshot
from pipeline.training.processes import Team
from pipeline.training.recipes import Hyperparameters

#: The batches of an epoch; epochs count from 1.
Batches = Callable[[int], Iterable[Batch]]
Measures = dict[str, float]


class Goal(Protocol):
    """The loss that training minimises, and the measures that an epoch is judged by."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss of a batch of network outputs (B, C) or (B, 1)."""

    def weight(self, targets: Tensor) -> float:
        """Compute what the mean loss of a batch is divided by: the sum of the weights of its rows."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of each row (N,) of a pass, in double precision."""

    def measure(self, outputs: Tensor, targets: Tensor) -> Measures:
        """Compute loss and accuracy, or errors in the target's unit, over all rows of a pass."""

    def rank(self, measures: Measures) -> tuple[float, ...]:
        """Return a key that is larger for better measures."""


class Classes:
    """Cross entropy of labels of which all classes share the part `smoothing`, judged by accuracy and then by loss."""

    def __init__(self, weights: Tensor | None = None, *, smoothing: float = 0.0) -> None:
        self._weights = weights
        self._smoothing = smoothing

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean weighted cross entropy of a batch; targets are int64 codes (B,)."""
        weights = None if self._weights is None else self._weights.to(outputs.device)
        return functional.cross_entropy(outputs, targets, weight=weights, label_smoothing=self._smoothing)

    def weight(self, targets: Tensor) -> float:
        """Sum the class weights of a batch."""
        return float(len(targets) if self._weights is None else self._weights[targets].double().sum())

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the weighted cross entropy of each row (B,), of labels as they are."""
        weights = None if self._weights is None else self._weights.double()
        return functional.cross_entropy(outputs.double(), targets, weight=weights, reduction="none")

    def measure(self, outputs: Tensor, targets: Tensor) -> Measures:
        """Compute the loss without class weights, and the share of rows whose largest logit is the right one."""
        right = (outputs.argmax(dim=1) == targets).double().mean()
        return {"loss": float(functional.cross_entropy(outputs, targets)), "accuracy": float(right)}

    def rank(self, measures: Measures) -> tuple[float, ...]:
        """Order by accuracy, then by the smaller loss."""
        return measures["accuracy"], -measures["loss"]


class Numbers:
    """Mean squared error of the standardised target, judged by its root in the target's own unit."""

    def __init__(self, scale: float) -> None:
        self._scale = scale

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean squared error of standardised values (B,)."""
        return functional.mse_loss(outputs[:, 0], targets)

    def weight(self, targets: Tensor) -> float:
        """Count the rows of a batch."""
        return float(len(targets))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the squared error of each row (B,)."""
        return (outputs[:, 0].double() - targets.double()).square()

    def measure(self, outputs: Tensor, targets: Tensor) -> Measures:
        """Compute `loss` of the standardised values; `mae` and `rmse` in the target's unit."""
        errors = outputs[:, 0].double() - targets.double()
        loss = float(errors.square().mean())
        return {
            "loss": loss,
            "mae": float(errors.abs().mean()) * self._scale,
            "rmse": math.sqrt(loss) * self._scale,
        }

    def rank(self, measures: Measures) -> tuple[float, ...]:
        """Order by the smaller root mean squared error."""
        return (-measures["rmse"],)


@dataclass(frozen=True)
class Epoch:
    """The measures of one epoch. `train` is of the random views, at each step; None for epoch 0."""

    number: int
    train: Measures | None
    val: Measures
    lr: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return one flat dictionary: epoch, train_loss, train_accuracy, val_loss, val_accuracy, ..., lr, seconds."""
        passes = (("train", self.train or {}), ("val", self.val))
        measured = {f"{which}_{name}": value for which, of in passes for name, value in of.items()}
        return {"epoch": self.number, **measured, "lr": self.lr, "seconds": round(self.seconds, 3)}

    def summary(self) -> str:
        """Describe the epoch in one line."""
        passes = [("train", self.train or {}), ("val", self.val)]
        shown = [f"{which} {name} {value:.4f}" for which, of in passes for name, value in of.items()]
        return f"epoch {self.number}: {', '.join(shown)} ({self.seconds:.1f} s)"


@dataclass
class History:
    """All epochs, from 0, the number of the best one, and what moves as it was after the epochs that were kept."""

    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0
    weights: dict[int, State] = field(default_factory=dict)


Optimizers = Callable[[list[dict[str, Any]], Hyperparameters], torch.optim.Optimizer]
OPTIMIZERS: Registry[Optimizers] = Registry("optimizer")


@OPTIMIZERS.register("sgd")
def _sgd(groups: list[dict[str, Any]], settings: Hyperparameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=settings.momentum)


@OPTIMIZERS.register("adam")
def _adam(groups: list[dict[str, Any]], settings: Hyperparameters) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups)


@OPTIMIZERS.register("adamw")
def _adamw(groups: list[dict[str, Any]], settings: Hyperparameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups)


@OPTIMIZERS.register("rmsprop")
def _rmsprop(groups: list[dict[str, Any]], settings: Hyperparameters) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups)


class Trainer:
    """Passes of a network over batches, with and without learning. The network is moved to `device`.

    Steps are taken in `precision`, of which bf16 is mixed: weights and sums stay float32, and so do all other passes.
    `normalize` turns uint8 (B, H, W, 3) on the device into float (B, 3, H, W); gradients of a larger norm than
    `clip` are scaled down to it, 0 leaves them.
    """

    def __init__(
        self,
        network: Network,
        goal: Goal,
        *,
        normalize: Callable[[Tensor], Tensor],
        device: torch.device,
        clip: float,
        precision: Literal["fp32", "bf16"] = "fp32",
        team: Team | None = None,
    ) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last)
        if network.suffix is not None:
            network.suffix.to(device)  # tensors of its own; modules are the network's
        self.goal = goal
        self.device = device
        self._normalize = normalize
        self._clip = clip
        self._bf16 = partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bf16")
        self.team = team or Team()
        self._learner: nn.Module = network

    def spread(self) -> None:
        """Take the steps to come together with the other processes, from the first one's weights."""
        self._learner = self.team.spread(self.network, self.device)

    def learn(
        self, batches: Iterable[Batch], optimizer: torch.optim.Optimizer, prepare: Callable[[int], None]
    ) -> Measures:
        """Take the steps of one epoch; the measures are of the network as it was at each step.

        `prepare` is called with the number of each step, from 0, before it is taken.
        """
        self.network.train()
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        passed = []
        for number, (inputs, targets) in enumerate(batches):
            prepare(number)
            if len(targets):  # a process without rows in a last batch passes its last ones again, for nothing
                given, wanted = self._given(inputs), torch.from_numpy(targets).to(self.device)
            weight = self.team.weight(self.goal.weight(torch.from_numpy(targets)))
            optimizer.zero_grad()
            with _room(len(targets)):
                with self._bf16():
                    outputs = self._learner(given).float()
                torch.autograd.backward(self.goal.loss(outputs, wanted) * weight)
            if self._clip:  # bases without batch norm, and squared errors, overshoot more with every step else
                torch.nn.utils.clip_grad_norm_(trained, self._clip)
            optimizer.step()
            if len(targets):
                passed.append((outputs.detach(), wanted))
        return self._measured(passed)

    def judge(self, batches: Iterable[Batch]) -> Measures:
        """Measure the network as it is on `batches`, of which each process has its own."""
        return self._measured(self._pass(batches, self.network))

    def _measured(self, passed: list[tuple[Tensor, Tensor]]) -> Measures:
        """Measure what all processes passed; the first one's answer is that of all."""
        every = self.team.gather(passed)
        return self.team.first(lambda: self.goal.measure(*_joined(every)))

    def outputs(self, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        """Compute outputs (N, C) or (N, 1) in evaluation mode; return them and targets (N,), both on the CPU."""
        return _joined(self._pass(batches, self.network))

    def features(self, batches: Iterable[Batch]) -> Tensor:
        """Compute the features (N, D) that the base gives the head, in evaluation mode."""
        return _joined(self._pass(batches, self.network.embed))[0]

    def _pass(self, batches: Iterable[Batch], ask: Callable[[Given], Tensor]) -> list[tuple[Tensor, Tensor]]:
        self.network.eval()
        passed = []
        for inputs, targets in batches:
            with torch.inference_mode(), _room(len(targets)):
                passed.append((ask(self._given(inputs)), torch.from_numpy(targets)))
        return passed

    def _given(self, inputs: Inputs) -> Given:
        if isinstance(inputs, tuple):
            return tuple(_laid_out(torch.from_numpy(one).to(self.device).float()) for one in inputs)
        return _laid_out(self._normalize(torch.from_numpy(inputs).to(self.device)))


class TrainingState:
    """A training between two epochs: all that the epochs to come depend on.

    Order and views of the rows are no part of it: they follow from the seed and the number of the epoch.
    """

    def __init__(self, network: Network, settings: Hyperparameters, device: torch.device, *, steps: int) -> None:
        groups = parameter_groups(
            network,
            lr=settings.lr,
            base_lr=settings.base_lr,
            layer_decay=settings.layer_decay,
            weight_decay=settings.weight_decay,
        )
        self.network = network
        self.optimizer = OPTIMIZERS[settings.optimizer](groups, settings)
        self.history = History()
        self._rates = [float(group["lr"]) for group in groups]
        self._settings = settings
        self._steps = steps
        self._device = device

    @property
    def next_epoch(self) -> int:
        """The number of the epoch to come."""
        return len(self.history.epochs)

    @property
    def seed(self) -> int:
        """Seed of everything random."""
        return self._settings.seed

    @property
    def rate(self) -> float:
        """The rate of the head as the optimizer has it now."""
        return float(self.optimizer.param_groups[-1]["lr"])

    def prepare(self, number: int, step: int) -> None:
        """Set the rates of a step, from 0, of the epoch `number`, from 1."""
        factor = rate_factor(number - 1 + (step + 0.5) / self._steps, self._settings)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def add(self, epoch: Epoch, goal: Goal) -> None:
        """Take an epoch into the history, and its weights where it is one of the best."""
        history, most = self.history, self._settings.kept_epochs
        history.epochs.append(epoch)
        if goal.rank(epoch.val) > goal.rank(history.epochs[history.best].val):
            history.best = epoch.number
        if most == 1:
            best = [history.best]
        else:  # the line from epoch 0 is searched by the loss: so are its ends
            trained = sorted(history.epochs[1:], key=lambda one: one.val["loss"])
            best = [one.number for one in trained[:most]]
        if epoch.number in best:
            history.weights[epoch.number] = snapshot(self.network)
        history.weights = {number: history.weights[number] for number in best}

    def save(self) -> Saved:
        """Copy it as tensors and numbers."""
        last = self.next_epoch - 1
        parts: dict[str, State] = {
            "weights": snapshot(self.network),
            **{f"epoch{number}": state for number, state in self.history.weights.items() if number != last},
            "optimizer": self._moments(),
            "random": self._random(),
        }
        progress = {
            "epochs": [dataclasses.asdict(epoch) for epoch in self.history.epochs],
            "best": self.history.best,
            "kept": [*self.history.weights],
        }
        return Saved(last, {f"{part}/{name}": one for part, of in parts.items() for name, one in of.items()}, progress)

    def go_on_from(self, saved: Saved) -> None:
        """Become what was saved. Raises `ModelError` where that is of another network or optimizer."""
        try:
            self._take(saved)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                "the checkpoint does not fit this network, as another version may have made it; remove the folder, or "
                f"give another -o ({' '.join(str(error).split())[:80]})"
            ) from error

    def _take(self, saved: Saved) -> None:
        parts: dict[str, State] = {"optimizer": {}, "random": {}}
        for path, tensor in saved.tensors.items():
            part, _, name = path.partition("/")
            parts.setdefault(part, {})[name] = tensor
        progress = saved.progress
        self.history = History([Epoch(**epoch) for epoch in progress["epochs"]], progress["best"])
        for number in progress["kept"]:
            _put(self.network, parts["weights" if number == saved.epoch else f"epoch{number}"])
            self.history.weights[number] = snapshot(self.network)
        _put(self.network, parts["weights"])
        self._put_moments(parts["optimizer"])
        self._put_random(parts["random"])

    def _moments(self) -> State:
        """Return what the optimizer remembers, by number of the parameter and name."""
        remembered = self.optimizer.state_dict()["state"]
        return {
            f"{number}/{name}": value
            for number, of in remembered.items()
            for name, value in of.items()
            if isinstance(value, Tensor)
        }

    def _put_moments(self, moments: State) -> None:
        state = self.optimizer.state_dict()
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for path, value in moments.items():
            number, _, name = path.partition("/")
            like = trained[int(number)]
            # In the parameter's own order of bytes, so that the same steps round in the same way.
            kept = torch.empty_like(like).copy_(value) if value.shape == like.shape else value.clone()
            state["state"].setdefault(int(number), {})[name] = kept
        self.optimizer.load_state_dict(state)

    def _random(self) -> State:
        """Return the states of what draws the dropout."""
        states = {"cpu": torch.get_rng_state()}
        if self._device.type != "cpu":
            states["device"] = torch.get_device_module(self._device).get_rng_state(self._device)
        return states

    def _put_random(self, states: State) -> None:
        torch.set_rng_state(states["cpu"])
        if self._device.type != "cpu":
            torch.get_device_module(self._device).set_rng_state(states["device"], self._device)


def rate_factor(passed: float, settings: Hyperparameters) -> float:
    """Return what the rates are times, `passed` epochs after the start: warm-up, then a cosine to 0, or drops.

    >>> from pipeline.config import FinetuneSettings
    >>> from pipeline.training.recipes import Case, resolve
    >>> settings = resolve(FinetuneSettings.of({"epochs": 10, "warmup": 0.2}), Case(rows=100))
    >>> [round(rate_factor(passed, settings), 3) for passed in (0.5, 1, 2, 6, 10)]
    [0.25, 0.5, 1.0, 0.5, 0.0]
    """
    rising = settings.warmup * settings.epochs
    if passed < rising:
        return passed / rising
    if settings.step is None:
        return 0.5 * (1 + math.cos(math.pi * (passed - rising) / (settings.epochs - rising)))
    drops = int(passed) // settings.step if settings.step else 0
    return float(settings.gamma**drops)


def train(
    trainer: Trainer,
    training: Batches,
    validation: Callable[[], Iterable[Batch]],
    *,
    settings: Hyperparameters,
    steps: int,
    watch: Callable[[Epoch], None] = lambda epoch: None,
    saved: Saved | None = None,
    keep: Callable[[Saved], None] | None = None,
) -> History:
    """Train the network's parameters that are not frozen, and keep the weights of the best epoch, in evaluation mode.

    `training` gives the batches of an epoch, `steps` of them, `validation` those that judge it, `watch` is called with
    every epoch, and `keep` with all that a training needs which goes on from there, as `saved`.
    Raises `HeadError` where the loss stops being a number, `EngineError` where the device has no room.
    """
    network = trainer.network
    with _repeatable(settings.seed, trainer.device):
        state = TrainingState(network, settings, trainer.device, steps=steps)
        if saved is not None:
            state.go_on_from(saved)
        trainer.spread()
        history = state.history
        for number in range(state.next_epoch, settings.epochs + 1):
            if settings.patience and number - 1 - history.best >= settings.patience:
                break
            epoch = _take_epoch(number, trainer, state, training, validation)
            _refuse_divergence(epoch, settings)
            state.add(epoch, trainer.goal)
            if number and keep is not None:
                keep(state.save())
            watch(epoch)
        restore(network, next(iter(history.weights.values())))
        network.eval()
    return history


def _take_epoch(
    number: int,
    trainer: Trainer,
    state: TrainingState,
    training: Batches,
    validation: Callable[[], Iterable[Batch]],
) -> Epoch:
    """Take the steps of an epoch, none in epoch 0, and judge the network; the rate told is that of its first step."""
    started = time.perf_counter()
    trainer.team.reseed(state.seed, number)
    state.prepare(max(number, 1), 0)
    lr, measures = state.rate, None
    if number:
        measures = trainer.learn(training(number), state.optimizer, lambda step: state.prepare(number, step))
    return Epoch(number, measures, trainer.judge(validation()), lr, time.perf_counter() - started)


def _laid_out(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last if tensor.ndim == 4 else torch.contiguous_format)


def _put(network: Network, weights: State) -> None:
    """Put saved weights into a network, all that can move and nothing else."""
    wanted = {name: tensor.shape for name, tensor in snapshot(network).items()}
    if wanted != {name: tensor.shape for name, tensor in weights.items()}:
        raise ValueError("other weights move")
    restore(network, weights)


def _joined(passed: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    outputs, targets = zip(*passed, strict=True)
    return torch.cat(outputs).float().cpu(), torch.cat(targets).cpu()


def _refuse_divergence(epoch: Epoch, settings: Hyperparameters) -> None:
    losses = [measures["loss"] for measures in (epoch.train, epoch.val) if measures]
    if not all(math.isfinite(loss) for loss in losses):
        raise HeadError(
            f"training diverged in epoch {epoch.number}: the loss is not a number any more; "
            f"lower lr={settings.lr:g} or raise batch_size={settings.batch_size}"
        )


@contextlib.contextmanager
def _repeatable(seed: int, device: torch.device) -> Iterator[None]:
    """Draw dropout from `seed`, keep cuDNN deterministic, and leave the caller's random state as it was."""
    forked = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=forked),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _room(rows: int) -> Iterator[None]:
    """Say in one line what to change where a step of `rows` images cannot be taken."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise EngineError(f"the device has no room for a step of {rows} images; lower batch_size") from None
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise EngineError(
            f"batch norm cannot learn from {rows} image of this size; raise batch_size or give freeze_norm"
        ) from None
