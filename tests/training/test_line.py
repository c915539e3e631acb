from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.bases import load_base
from pipeline.training.batches import Batch
from pipeline.training.line import Part, Verdict, between, settle, soup
from pipeline.training.loop import Classes, Numbers, Trainer
from pipeline.training.network import State, build_network, freeze, snapshot

ROWS = 40


def part(name: str, *, seed: int) -> Part:
    """Bright images are of class 1, dark ones of class 0."""
    rng = np.random.default_rng(seed)
    codes: NDArray[np.int64] = np.arange(ROWS) % 2
    pixels = np.clip(60 + 120 * codes[:, None, None, None] + rng.normal(0, 40, (ROWS, 32, 32, 3)), 0, 255)

    def batches() -> Iterator[Batch]:
        yield pixels.astype(np.uint8), codes

    return Part(name, batches, np.arange(ROWS))


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    base = load_base("squeezenet1_1", "embedded")
    torch.manual_seed(3)
    network = build_network(base, ["features.3"], "avg", outputs=2)
    freeze(network, ["head"])
    return Trainer(network, Classes(), normalize=base.transform.normalize, device=torch.device("cpu"), clip=0)


def ends(trainer: Trainer) -> tuple[State, State]:
    """A head that knows nothing, and one that is right: the means of both classes decide."""
    pixels, codes = next(iter(part("train", seed=9).batches()))
    features = trainer.features([(pixels, codes)])
    means = torch.stack([features[torch.from_numpy(codes) == code].mean(0) for code in (0, 1)])
    right = {"head.weight": means, "head.bias": -means.square().sum(1) / 2}
    empty = {name: torch.zeros_like(one) for name, one in right.items()}
    buffers = snapshot(trainer.network)
    return {**buffers, **empty}, {**buffers, **right}


def settled(trainer: Trainer, head: State, tuned: State, *, judged: str = "test") -> Verdict:
    val = part("val", seed=1)
    return settle(
        trainer,
        head,
        {3: tuned},
        val=val,
        judged=val if judged == "val" else part("test", seed=2),
        looks=5,
        time_ratio=7.0,
        scale=1.0,
        seed=13,
    )


def test_a_network_that_is_surely_better_is_kept(trainer: Trainer) -> None:
    head, tuned = ends(trainer)
    verdict = settled(trainer, head, tuned)
    assert verdict.kept in ("line", "tuned")
    assert (verdict.rows, verdict.split, verdict.looks) == (ROWS, "test", 0)
    assert 0 < verdict.low <= verdict.gain <= verdict.high
    kept = snapshot(trainer.network)
    for name, tensor in between(head, tuned, verdict.alpha).items():
        assert torch.equal(kept[name], tensor)
    assert verdict.summary().startswith("fine-tuning gains +50.0 points (+")
    assert "over the frozen head on the same 40 rows" in verdict.summary()
    assert verdict.summary().endswith("for 7.0 times the time")


def test_one_that_is_worse_is_not_and_the_head_is_back_to_the_bit(trainer: Trainer) -> None:
    worse, head = ends(trainer)
    verdict = settled(trainer, head, worse, judged="val")
    assert verdict.kept == "head"
    assert (verdict.split, verdict.looks) == ("val", 15)
    assert all(torch.equal(tensor, head[name]) for name, tensor in snapshot(trainer.network).items())
    assert verdict.summary().startswith("fine-tuning does not beat the head it came from: the head is kept")
    assert "the figure is the best of 15 looks at them" in verdict.summary()


def test_one_that_is_the_same_gains_nothing(trainer: Trainer) -> None:
    head, _ = ends(trainer)
    verdict = settled(trainer, head, head)
    assert (verdict.kept, verdict.gain, verdict.low, verdict.high) == ("head", 0, 0, 0)


def test_a_soup_is_the_mean_of_what_makes_it_better(trainer: Trainer) -> None:
    head, right = ends(trainer)
    low, high = between(head, right, 0.0005), between(head, right, 0.0015)
    val = part("val", seed=1)
    wrong = between(head, right, -0.004)
    epochs, mean = soup(trainer, {7: low, 4: wrong, 9: high}, val)
    assert epochs == (7, 9)
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(mean[name], (low[name] + high[name]) / 2)
    epochs, mean = soup(trainer, {7: high, 4: wrong}, val)
    assert epochs == (7,)
    assert all(torch.equal(mean[name], tensor) for name, tensor in high.items())


def test_three_are_averaged_with_equal_weights(trainer: Trainer) -> None:
    head, right = ends(trainer)
    some = {number: between(head, right, 0.0002 * number) for number in (1, 2, 3)}
    epochs, mean = soup(trainer, some, part("val", seed=1))
    assert epochs == (1, 2, 3), "each is further on the way to what is right"
    torch.testing.assert_close(mean["head.weight"], torch.stack([one["head.weight"] for one in some.values()]).mean(0))


def test_the_verdict_says_what_is_kept() -> None:
    verdict = Verdict(0.02, 0.01, 0.03, 200, 7.04, "line", 0.4, (9, 7), "val", 27, 12, is_accuracy=True)
    assert verdict.summary() == (
        "fine-tuning gains +2.0 points (+1.0 to +3.0) over the frozen head on the same 200 rows, 40 % of the way from "
        "the head to the mean of 2 epochs, for 7.0 times the time; the figure is the best of 27 looks at them"
    )
    sure = dataclasses.replace(verdict, kept="tuned", alpha=1.0, epochs=(9,), split="test", looks=0)
    assert sure.summary() == (
        "fine-tuning gains +2.0 points (+1.0 to +3.0) over the frozen head on the same 200 rows, for 7.0 times the time"
    )
    assert sure.to_json().keys() >= {"gain", "low", "high", "rows", "time_ratio"}


def test_numbers_gain_in_their_own_unit(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first output as a number: far off at the start, the mean of the target at the end."""
    _, tuned = ends(trainer)
    wanted = np.linspace(-1, 1, ROWS).astype(np.float32)
    val = part("val", seed=1)

    def batches() -> Iterator[Batch]:
        for pixels, _ in val.batches():
            yield pixels, wanted

    constant = {**tuned, "head.weight": torch.zeros_like(tuned["head.weight"]), "head.bias": torch.tensor([0.0, 0.0])}
    off = {**constant, "head.bias": torch.tensor([3.0, 0.0])}
    rows = dataclasses.replace(val, batches=batches)
    monkeypatch.setattr(trainer, "goal", Numbers(10.0))
    verdict = settle(trainer, off, {1: constant}, val=rows, judged=rows, looks=1, time_ratio=1.0, scale=10.0, seed=13)
    assert verdict.kept == "tuned"
    assert verdict.gain == pytest.approx(10 * (3.0 - np.abs(wanted).mean()), rel=1e-5)
    assert "in mean absolute error" in verdict.summary()


def test_both_ends_are_exact() -> None:
    ends_ = {"w": torch.tensor([0.1]), "n": torch.tensor(3)}, {"w": torch.tensor([0.7]), "n": torch.tensor(9)}
    assert torch.equal(between(*ends_, 1.0)["w"], torch.tensor([0.7]))
    assert torch.equal(between(*ends_, 0.0)["w"], torch.tensor([0.1]))
    assert between(*ends_, 0.5)["n"] == 9
