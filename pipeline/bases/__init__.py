"""Frozen bases: a network, its weights, the transform that belongs to them, and its layers by name.

    base = load_base("resnet18")                        the published weights, downloaded once
    base = load_base("squeezenet1_1", "embedded")       the weights that ship with this package
    base = load_base("vgg16", "weights.safetensors")    a file
    base = load_base("timm:convnext_tiny")              any model of timm, an extra

Every classification model of torchvision is a base. A base is in eval and has no gradients: nothing that runs
it can change it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from pipeline.bases.scratch import ScratchZoo
from pipeline.bases.taps import FeatureNetwork, check_pool, find_taps, run_on_meta
from pipeline.bases.timm import TimmZoo
from pipeline.bases.torchvision import TorchvisionZoo
from pipeline.bases.weights import State, digest, read_embedded, read_state
from pipeline.bases.zoo import Family, Plan, Zoo, built, fitted
from pipeline.config import Recipe
from pipeline.errors import BaseError, RecipeMismatchError
from pipeline.images.transform import Fit, InputTransform
from pipeline.registry import nearest, refuse_unknown

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
__all__ = [
    "Base",
    "FeatureNetwork",
    "InputTransform",
    "base_of",
    "blank_base",
    "feature_network",
    "find_zoo",
    "load_base",
]


#: Prefix of a name -> the collection that it is in.
ZOOS: dict[str, Zoo] = {"": TorchvisionZoo(), "timm:": TimmZoo(), "scratch:": ScratchZoo()}


def prefix_of(base: str) -> str:
    """Return the prefix of a base's name, which says its collection; empty for torchvision's."""
    return next((prefix for prefix in ZOOS if prefix and base.startswith(prefix)), "")


def find_zoo(base: str) -> tuple[Zoo, str]:
    """Return the collection that `base` is in and its name there; raise `BaseError` with the near name."""
    prefix = prefix_of(base)
    zoo, name = ZOOS[prefix], base.removeprefix(prefix)
    known = zoo.names()
    if name not in known:
        if not prefix and "/" in name:
            raise BaseError(f"base {base!r} is no name, nor the folder of a fine-tuned model (no model.json)")
        near = (not prefix and _elsewhere(name)) or nearest(base, [prefix + one for one in known])
        listing = f"pipeline bases {prefix}".strip()
        raise BaseError(f"unknown base {base!r}{near}; {listing} lists all {len(known)}")
    return zoo, name


def is_known(base: str) -> bool:
    """Return True for the name of a base, which a folder of the same name does not hide."""
    return bool(prefix_of(base)) or base in ZOOS[""].names()


def _elsewhere(name: str) -> str:
    """Suggest a network of timm, where that is installed, whose name holds `name`."""
    try:
        holding = sorted((known for known in ZOOS["timm:"].names() if name in known), key=len)
    except BaseError:
        return ""
    return f" (did you mean 'timm:{holding[0]}'?)" if holding else ""


@dataclass(frozen=True)
class Base:
    """A frozen network with its weights, its input transform and its layers.

    `weights` is what was asked for, `digest` the sha256 of the tensors that came of it. `classes` are the
    names of the outputs of its own classifier, where they are known. `missing` names tensors that the weights
    lacked.
    """

    name: str
    weights: str
    digest: str
    module: nn.Module
    transform: InputTransform
    classes: tuple[str, ...] | None
    family: Family
    missing: frozenset[str] = frozenset()


def load_base(
    name: str,
    weights: str = "DEFAULT",
    *,
    seed: int = 13,
    size: int | None = None,
    fit: Fit | None = None,
    fine_tuned: Path | None = None,
) -> Base:
    """Load the base `name` with `weights`: DEFAULT, a published name, embedded, none (random from `seed`), or a file.

    `size` is for inputs of other pixels than those the weights were made for; a shift up by a seventh often helps,
    since objects look larger in the random crops of training (Touvron et al., 2019).
    `fit` is how an image comes to the input, where not as the makers of the weights did it.
    `fine_tuned` is a file with what training made of these weights: it takes their place, under their transform.

    Raises `BaseError` where the name is unknown, the weights cannot be had or do not fit, or the network cannot take
    inputs of `size`.
    """
    zoo, short = find_zoo(name)
    published = None if weights in ("none", "embedded", "DEFAULT") or _is_file(weights) else weights
    if published is not None:
        known = [*zoo.weights(short), "DEFAULT", "none", "embedded", "a file"]
        refuse_unknown("weights", published, known, where=name, error=BaseError)
    plan = zoo.plan(short, published)
    if fine_tuned is not None:
        module, missing = fitted(plan, zoo.adapt(short, read_state(fine_tuned)), source=f"{fine_tuned} for {name}")
    elif weights == "none":
        module, missing = _random(plan, name, seed), frozenset[str]()
    else:
        module, missing = fitted(plan, _state(zoo, short, name, weights), source=f"{weights} for {name}")
    module.eval().requires_grad_(False)
    transform = plan.transform if size is None else _resized(name, module, plan.transform, size)
    return Base(
        name=name,
        weights=weights,
        digest=digest(module, without=missing),
        module=module,
        transform=transform if fit is None else transform.with_fit(fit),
        classes=None if weights == "none" or fine_tuned or _is_file(weights) else plan.categories,
        family=plan.family,
        missing=missing,
    )


def blank_base(name: str) -> Base:
    """Return the base `name` without the numbers of its weights, where it can be built so: its layers and shapes.

    Raises `BaseError` where the name is unknown or the network cannot be built.
    """
    zoo, short = find_zoo(name)
    plan = zoo.plan(short, None)
    module: nn.Module = built(lambda: plan.build(plan.classes), name)
    module.eval().requires_grad_(False)
    return Base(name, "none", "", module, plan.transform, None, plan.family)


def base_of(recipe: Recipe, weights: str, *, seed: int, fine_tuned: Path | None = None) -> Base:
    """Load the base of a `recipe`, with the very weights that made its features; it sees images as the recipe says.

    Raises `BaseError` as `load_base` does, and `RecipeMismatchError` where the weights are others.
    """
    base = load_base(recipe.base, weights, seed=seed, fine_tuned=fine_tuned)
    if base.digest != recipe.weights:
        raise RecipeMismatchError(
            f"the features were made with weights {recipe.weights[:12]} of {recipe.base}, and {fine_tuned or weights} "
            f"holds {base.digest[:12]}; give the right file with --weights FILE"
        )
    transform = InputTransform.from_description(recipe.transform)
    if transform.size != base.transform.size:
        _refuse_size(recipe.base, base.module, transform.size, "its recipe is damaged, or not of this base")
    return replace(base, transform=transform)


def _resized(name: str, module: nn.Module, transform: InputTransform, size: int) -> InputTransform:
    resized = transform.at_size(size)
    _refuse_size(name, module, resized.size, "leave out --size")
    return resized


def _refuse_size(name: str, module: nn.Module, size: tuple[int, int], way_out: str) -> None:
    """Raise `BaseError` unless the network takes images of (height, width)."""
    try:
        run_on_meta(module, size)
    except (AssertionError, RuntimeError, ValueError) as error:
        height, width = size
        cause = (str(error) or "an assertion of its code fails").splitlines()[0].rstrip(".!")
        raise BaseError(f"{name} cannot take images of {height} x {width}: {cause}; {way_out}") from None


def _is_file(weights: str) -> bool:
    return weights.endswith(SUFFIXES) or "/" in weights or Path(weights).is_file()


def _random(plan: Plan, name: str, seed: int) -> nn.Module:
    log.warning("%s has RANDOM weights (seed %d): its features are good for tests, not for results", name, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return plan.build(plan.classes)


def _state(zoo: Zoo, short: str, name: str, weights: str) -> State:
    if weights == "embedded":
        return read_embedded(name)
    if _is_file(weights):
        return zoo.adapt(short, read_state(Path(weights)))
    published = zoo.weights(short)[0] if weights == "DEFAULT" and zoo.weights(short) else weights
    return zoo.adapt(short, zoo.fetch(short, published))


def feature_network(base: Base, layers: Sequence[str], pool: str = "none") -> FeatureNetwork:
    """Cut a base after the last of `layers`; forward takes float (B, 3, H, W) and gives one tensor a layer.

    `pool` says how a map (B, C, H, W) or a sequence (B, N, C) becomes a row: avg, max, flatten, or none,
    which leaves it as it is. The result owns its weights. Raises `BaseError` for an unknown layer, naming the
    near one, and for a layer whose weights are missing.
    """
    taps = find_taps(base.name, base.module, base.family.aliases, layers, channels_last=base.family.channels_last)
    network = FeatureNetwork(base.module, taps, check_pool(pool), input_size=base.transform.size)
    unfilled = next((name for name in sorted(base.missing) if network.depends_on(name)), None)
    if unfilled is not None:
        raise BaseError(
            f"layer {', '.join(layers)} of {base.name} needs {unfilled}, which {base.weights} does not have; "
            "give an earlier layer, or complete weights"
        )
    return network
