from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.bases import Base, load_base
from pipeline.config import FinetuneSettings
from pipeline.errors import EngineError, HeadError
from pipeline.training import loop
from pipeline.training.batches import Batch
from pipeline.training.checkpoint import Saved
from pipeline.training.loop import Classes, Epoch, Goal, History, Numbers, Trainer, train
from pipeline.training.network import Network, build_network, freeze, restore, standardise
from pipeline.training.recipes import Case, Hyperparameters, resolve


@pytest.fixture(scope="module")
def squeezenet() -> Base:
    return load_base("squeezenet1_1", "embedded")


def stripes(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """64 px images with noise: horizontal stripes are class 0, vertical ones class 1."""
    rng = np.random.default_rng(seed)
    codes = np.arange(count) % 2
    waves = 100 * (np.arange(64) // 4 % 2)
    flat = np.where(codes[:, None, None] == 0, waves[None, :, None], waves[None, None, :])
    noise = rng.integers(0, 150, (count, 64, 64, 3))
    return (flat[..., None] + noise).astype(np.uint8), codes.astype(np.int64)


class Rows:
    """Training and validation batches of the stripes; numbers where `numeric`."""

    def __init__(self, *, numeric: bool = False, count: int = 16) -> None:
        self.pixels, codes = stripes(count, 1)
        self.held_out, held_out_codes = stripes(8, 2)
        kind = np.float32 if numeric else np.int64
        self.targets, self.held_out_targets = codes.astype(kind), held_out_codes.astype(kind)

    def training(self, number: int) -> Iterator[Batch]:
        order = np.random.default_rng(number).permutation(len(self.pixels))
        for part in np.split(order, range(4, len(order), 4)):
            yield self.pixels[part], self.targets[part]

    def validation(self) -> Iterator[Batch]:
        yield self.held_out, self.held_out_targets


def prepare(base: Base, rows: Rows, *, move: str = "features.12", standard: bool = True) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        outputs = 1 if rows.targets.dtype == np.float32 else 2
        network = build_network(base, ["avgpool"], "none", outputs=outputs)
    freeze(network, [move])
    if standard:
        network.eval()
        with torch.inference_mode():
            standardise(network, network.embed(base.transform.normalize(torch.from_numpy(rows.pixels))))
    return network


def fit(network: Network, base: Base, rows: Rows, *, goal: Goal | None = None, **options: Any) -> History:
    settings = tutorial(**options)
    trainer = Trainer(
        network,
        goal or Classes(),
        normalize=base.transform.normalize,
        device=torch.device("cpu"),
        clip=settings.clip,
        precision=settings.precision,
    )
    return train(trainer, rows.training, rows.validation, settings=settings, steps=max(1, len(rows.pixels) // 4))


def tutorial(**options: Any) -> Hyperparameters:
    return resolve(FinetuneSettings.of({"recipe": "tutorial", **options}), Case(rows=16))


def run(base: Base, rows: Rows, *, move: str = "features.12", **options: Any) -> tuple[Network, History]:
    network = prepare(base, rows, move=move)
    return network, fit(network, base, rows, **options)


def test_it_learns_and_reports_every_epoch_from_before_the_first_step(squeezenet: Base) -> None:
    network, history = run(squeezenet, Rows(), epochs=3, lr=0.0005)
    assert [epoch.number for epoch in history.epochs] == [0, 1, 2, 3]
    first, *later = history.epochs
    assert first.train is None
    assert all(epoch.train is not None and set(epoch.train) == {"loss", "accuracy"} for epoch in later)
    assert history.epochs[history.best].val["accuracy"] == 1.0
    assert history.epochs[history.best].val["loss"] < 0.5 * first.val["loss"]
    assert not network.training


def test_steps_in_bf16_are_near_and_rows_are_judged_in_fp32(squeezenet: Base) -> None:
    single, exact = run(squeezenet, Rows(), epochs=1, lr=0.0005)
    mixed, rounded = run(squeezenet, Rows(), epochs=1, lr=0.0005, precision="bf16")
    assert exact.epochs[0].val == rounded.epochs[0].val, "no step was taken yet"
    losses = [history.epochs[1].train["loss"] for history in (exact, rounded) if history.epochs[1].train]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert {parameter.dtype for parameter in mixed.parameters()} == {torch.float32}
    assert (single.head.weight != mixed.head.weight).any()


def test_epochs_as_json_are_flat(squeezenet: Base) -> None:
    epoch = Epoch(2, {"loss": 0.5, "accuracy": 0.75}, {"loss": 0.25, "accuracy": 1.0}, 0.001, 1.23456)
    assert epoch.to_json() == {
        "epoch": 2,
        "train_loss": 0.5,
        "train_accuracy": 0.75,
        "val_loss": 0.25,
        "val_accuracy": 1.0,
        "lr": 0.001,
        "seconds": 1.235,
    }
    assert "train_loss" not in dataclasses.replace(epoch, train=None).to_json()


def test_the_best_epochs_weights_are_put_back(squeezenet: Base) -> None:
    class Turning(Rows):
        """Right labels up to epoch 2, then wrong ones: later epochs are worse, whatever they learn."""

        asked = 0

        def validation(self) -> Iterator[Batch]:
            self.asked += 1
            yield self.held_out, self.held_out_targets if self.asked <= 3 else 1 - self.held_out_targets

    rows = Turning()
    network, history = run(squeezenet, rows, epochs=4)
    assert history.best == 2
    with torch.inference_mode():
        outputs = network(squeezenet.transform.normalize(torch.from_numpy(rows.held_out)))
    again = Classes().measure(outputs, torch.from_numpy(rows.held_out_targets))
    assert again["accuracy"] == history.epochs[2].val["accuracy"]
    assert again["loss"] == pytest.approx(history.epochs[2].val["loss"], rel=1e-3, abs=1e-6)


def test_training_that_makes_nothing_better_changes_nothing(squeezenet: Base) -> None:
    class Content(Classes):
        def rank(self, measures: loop.Measures) -> tuple[float, ...]:
            return (0.0,)

    network = prepare(squeezenet, Rows())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    history = fit(network, squeezenet, Rows(), goal=Content(), epochs=1)
    assert history.best == 0
    assert history.epochs[1].val != history.epochs[0].val
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(squeezenet: Base) -> None:
    rows = Rows(count=8)

    def losses(seed: int) -> list[float]:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            network = build_network(squeezenet, ["classifier.1"], "avg", outputs=2)
        freeze(network, ["classifier"])  # it begins with dropout
        before = torch.random.get_rng_state()
        history = fit(network, squeezenet, rows, epochs=1, seed=seed)
        assert torch.equal(before, torch.random.get_rng_state()), "the caller's random state is not ours"
        return [history.epochs[0].val["loss"], history.epochs[1].val["loss"]]

    first = losses(13)
    assert losses(13) == first
    other = losses(14)  # dropout falls elsewhere
    assert other[0] == first[0]
    assert other[1] != first[1]


def test_the_rate_drops_by_steps(squeezenet: Base) -> None:
    rows = Rows(count=4)
    _, history = run(squeezenet, rows, move="head", epochs=3, lr=0.01, step=2, gamma=0.1)
    assert [epoch.lr for epoch in history.epochs] == pytest.approx([0.01, 0.01, 0.01, 0.001])
    _, history = run(squeezenet, rows, move="head", epochs=2, lr=0.01, step=0)
    assert [epoch.lr for epoch in history.epochs] == [0.01, 0.01, 0.01]


def test_the_rate_rises_and_falls_by_a_cosine_within_the_epochs(squeezenet: Base) -> None:
    rows, rates = Rows(count=8), list[float]()

    class Watched(Classes):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            rates.append(state[0].rate)
            return super().loss(outputs, targets)

    settings = resolve(FinetuneSettings.of({"epochs": 5, "warmup": 0.2, "lr": 0.01, "beat_head": False}), Case(rows=8))
    network = prepare(squeezenet, rows, move="head")
    normalize = squeezenet.transform.normalize
    trainer = Trainer(network, Watched(), normalize=normalize, device=torch.device("cpu"), clip=0)
    state = [loop.TrainingState(network, settings, trainer.device, steps=2)]
    for number in range(1, 6):
        trainer.learn(rows.training(number), state[0].optimizer, functools.partial(state[0].prepare, number))
    passed = [(step + 0.5) / 2 for step in range(10)]
    wanted = [at if at < 1 else 0.5 * (1 + math.cos(math.pi * (at - 1) / 4)) for at in passed]
    assert rates == pytest.approx([0.01 * factor for factor in wanted])


def test_the_best_epochs_by_their_loss_are_kept_where_they_are_averaged(squeezenet: Base) -> None:
    settings = resolve(FinetuneSettings.of({"epochs": 4, "batch_size": 4, "lr": 0.001}), Case(rows=16))
    network, rows = prepare(squeezenet, Rows()), Rows()
    normalize = squeezenet.transform.normalize
    trainer = Trainer(network, Classes(), normalize=normalize, device=torch.device("cpu"), clip=5)
    history = train(trainer, rows.training, rows.validation, settings=settings, steps=4)
    order = sorted(range(1, 5), key=lambda number: history.epochs[number].val["loss"])
    assert list(history.weights) == order[:3]
    for number, state in history.weights.items():
        restore(network, state)
        assert trainer.judge(rows.validation()) == history.epochs[number].val


def test_smoothed_labels_are_torchs_and_the_measure_is_of_labels_as_they_are() -> None:
    outputs, targets = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
    smoothed = Classes(smoothing=0.2)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    shares = 0.9 * right + 0.1 * wrong, 0.9 * wrong + 0.1 * right
    assert float(smoothed.loss(outputs, targets)) == pytest.approx(sum(shares) / 2)
    assert smoothed.measure(outputs, targets) == Classes().measure(outputs, targets)
    assert smoothed.losses(outputs, targets).tolist() == pytest.approx([right, wrong])


@pytest.mark.parametrize("name", list(loop.OPTIMIZERS))
def test_every_optimizer_learns(squeezenet: Base, name: str) -> None:
    lr = 0.001 if name == "sgd" else 0.00002  # the others scale every step to about the rate itself
    _, history = run(squeezenet, Rows(), epochs=1, optimizer=name, lr=lr, weight_decay=1e-4)
    assert history.epochs[1].val["loss"] < history.epochs[0].val["loss"]


def test_the_optimizers_the_settings_know_are_those_there_are() -> None:
    annotation = Hyperparameters.model_fields["optimizer"].annotation
    assert set(annotation.__args__) == set(loop.OPTIMIZERS)  # type: ignore[union-attr]


def test_a_step_of_sgd_is_the_tutorials(squeezenet: Base) -> None:
    """One epoch equals a loop written out by hand with torch's own optimizer and loss."""
    rows = Rows(count=8)
    network = prepare(squeezenet, rows, standard=False)
    history = fit(network, squeezenet, rows, epochs=1, lr=0.0005, clip=0)
    plain = prepare(squeezenet, rows, standard=False).train()
    optimizer = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], lr=0.0005, momentum=0.9)
    for pixels, targets in rows.training(1):
        optimizer.zero_grad()
        outputs = plain(squeezenet.transform.normalize(torch.from_numpy(pixels)))
        torch.nn.functional.cross_entropy(outputs, torch.from_numpy(targets)).backward()
        optimizer.step()
    assert history.best == 1
    torch.testing.assert_close(network.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-6)


def test_numbers_are_judged_in_their_own_unit(squeezenet: Base) -> None:
    goal = Numbers(scale=20.0)
    measured = goal.measure(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 0.0]))
    assert measured == {"loss": 5.0, "mae": 40.0, "rmse": pytest.approx(math.sqrt(5) * 20)}
    assert goal.rank({"rmse": 1.0}) > goal.rank({"rmse": 2.0})
    _, history = run(squeezenet, Rows(numeric=True), goal=goal, epochs=4)
    assert history.epochs[history.best].val["rmse"] < 0.6 * history.epochs[0].val["rmse"]


def test_gradients_are_clipped_for_a_reason(squeezenet: Base) -> None:
    with pytest.raises(HeadError, match="diverged"):
        run(squeezenet, Rows(numeric=True), goal=Numbers(1.0), epochs=4, clip=0)


def test_class_weights_count_in_the_loss_and_not_in_what_is_reported() -> None:
    outputs, targets = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
    plain, weighted = Classes(), Classes(torch.tensor([1.0, 3.0]))
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert float(plain.loss(outputs, targets)) == pytest.approx((right + wrong) / 2)
    assert float(weighted.loss(outputs, targets)) == pytest.approx((right + 3 * wrong) / 4)
    assert weighted.measure(outputs, targets) == plain.measure(outputs, targets)
    assert plain.measure(outputs, targets)["accuracy"] == 0.5
    assert plain.rank({"accuracy": 0.5, "loss": 1.0}) > plain.rank({"accuracy": 0.5, "loss": 2.0})


def test_divergence_is_an_error_that_says_what_to_change(squeezenet: Base) -> None:
    with pytest.raises(HeadError, match=r"training diverged in epoch 1: .* lower lr=1e\+12") as caught:
        run(squeezenet, Rows(), epochs=3, lr=1e12)
    assert "\n" not in str(caught.value)


def test_no_room_on_the_device_is_one_line(squeezenet: Base) -> None:
    class TooLarge(Classes):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    with pytest.raises(EngineError, match="no room for a step of 4 images; lower batch_size"):
        run(squeezenet, Rows(), goal=TooLarge(), epochs=1)


def test_batch_norm_of_a_single_value_is_one_line() -> None:
    base = load_base("resnet18", "none")
    rows = Rows(count=4)
    rows.pixels = rows.pixels[:1, :32, :32]
    rows.targets = rows.targets[:1]
    rows.held_out = rows.held_out[:, :32, :32]
    with pytest.raises(EngineError, match="batch norm cannot learn from 1 image of this size"):
        run(base, rows, move="all", epochs=1)


def test_any_other_mistake_keeps_its_own_traceback(squeezenet: Base) -> None:
    class Broken(Classes):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            raise ValueError("a mistake in the program")

    with pytest.raises(ValueError, match="a mistake in the program"):
        run(squeezenet, Rows(), goal=Broken(), epochs=1)


class Unmoved(Classes):
    """A goal to which all epochs are the same."""

    def rank(self, measures: dict[str, float]) -> tuple[float, ...]:
        return (0.0,)


def test_patience_ends_what_gets_no_better(squeezenet: Base) -> None:
    rows = Rows()
    whole = fit(prepare(squeezenet, rows), squeezenet, rows, goal=Unmoved(), epochs=4)
    short = fit(prepare(squeezenet, rows), squeezenet, rows, goal=Unmoved(), epochs=4, patience=2)
    assert (len(whole.epochs), len(short.epochs)) == (5, 3)
    assert [one.val for one in short.epochs] == [one.val for one in whole.epochs[:3]]


def test_a_training_that_patience_ended_does_not_go_on(squeezenet: Base) -> None:
    rows, kept = Rows(), list[Saved]()
    settings = tutorial(epochs=4, patience=1)
    network, normalize = prepare(squeezenet, rows), squeezenet.transform.normalize
    trainer = Trainer(network, Unmoved(), normalize=normalize, device=torch.device("cpu"), clip=settings.clip)
    train(trainer, rows.training, rows.validation, settings=settings, steps=4, keep=kept.append)
    again = train(trainer, rows.training, rows.validation, settings=settings, steps=4, saved=kept[-1])
    assert (len(kept), len(again.epochs)) == (1, 2)
