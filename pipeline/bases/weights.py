"""Weights of a base: from a file, the package or the download folder, fitted into a network, digested."""

from __future__ import annotations

import logging
import pickle
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors_bytes
from safetensors.torch import load_file as read_safetensors
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.errors import BaseError
from pipeline.files import TUNED, digest_tensors

log = logging.getLogger(__name__)

State = dict[str, Tensor]

#: What reading a damaged file, or one that wants to run code, ends in.
UNREADABLE = (
    *(SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, struct.error),
    *(KeyError, IndexError, TypeError, AttributeError, AssertionError),
)
SECONDS_TO_CONNECT = 10.0
COUNTER = "num_batches_tracked"  # of batch norm, unused by a frozen one and absent from old files


class without_memory(TorchFunctionMode):
    """A block in which the parameters of a new network, made with ``torch.empty``, are on the meta device.

    They have shapes and no numbers, so that building costs no time: for networks that get their weights next.
    The meta device for all tensors would not do: some networks compute their widths with tensors.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty:
            options["device"] = "meta"
        return func(*args, **options)


def read_state(path: Path) -> State:
    """Read the tensors of a .safetensors, .pt or .pth file by name; run nothing in it; raise `BaseError`.

    Of the folder of a fine-tuned model, those of its base.
    """
    path = path / TUNED if path.is_dir() else path
    if not path.is_file():
        raise BaseError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return _without_wrapping(read_safetensors(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise BaseError(f"weights file {path} cannot be read: {first_line(error)}") from None
    return _without_wrapping(_find_state(content, path))


def _find_state(content: Any, path: Path) -> State:
    """Return the weights in a checkpoint: trainers keep them under a name beside the optimizer."""
    for key in (None, "state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema"):
        found = content if key is None else content.get(key) if isinstance(content, dict) else None
        if isinstance(found, dict) and found and all(isinstance(value, Tensor) for value in found.values()):
            return found
    raise BaseError(f"weights file {path} holds no state dict: give a mapping of names to tensors")


def _without_wrapping(state: State) -> State:
    """Return names as the bare network has them: DataParallel and torch.compile each put a word in front of all."""
    names = list(state)
    for prefix in ("module.", "_orig_mod."):
        if names and all(name.startswith(prefix) for name in names):
            return _without_wrapping({name.removeprefix(prefix): value for name, value in state.items()})
    return copy(state)


def read_embedded(name: str) -> State:
    """Read the weights that ship with this package; raise `BaseError` for a base that has none."""
    file = resources.files("pipeline.bases") / "embedded" / f"{name}.safetensors"
    if not file.is_file():
        raise BaseError(f"{name} has no embedded weights; squeezenet1_1 has; give --weights FILE, or none")
    return read_safetensors_bytes(file.read_bytes())


def download(url: str, *, base: str, weights: str, file_name: str | None = None) -> State:
    """Read the weights behind `url`, from torch hub's folder where they are there already; raise `BaseError`.

    They are kept as `file_name`, or as the URL calls them. A server that does not answer is given up soon.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / (file_name or url.rsplit("/", 1)[-1])
    if not path.is_file():
        expected = torch.hub.HASH_REGEX.search(path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _patience(SECONDS_TO_CONNECT):
                log.info("downloading %s", url)
                torch.hub.download_url_to_file(url, str(path), expected.group(1) if expected else None)
        except (OSError, RuntimeError) as error:
            raise BaseError(
                f"weights {weights} of {base} are not on this machine and cannot be downloaded ({first_line(error)}): "
                f"get {url} and put it into {path.parent} as {path.name}, or give --weights FILE, "
                "or --base squeezenet1_1 --weights embedded, which is here"
            ) from None
    return read_state(path)


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Give up a server that does not answer after `seconds`; urllib waits for ever otherwise."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fit_state(
    state: State, build: Callable[[int], nn.Module], *, classes: int, classifier: tuple[str, ...], source: str
) -> tuple[nn.Module, frozenset[str]]:
    """Build a network by ``build(number of classes)`` that holds `state`; return it and the names it could not fill.

    `classifier` holds prefixes of names, first that of the last layer. Only there may `state` differ from the
    published network: another number of classes is built, and a classifier that is missing or of another kind
    is left out. Raises `BaseError` with the difference.
    """
    network = build(_count_classes(state, classifier[0]) or classes)
    expected = network.state_dict()
    for name in [name for name in state if name in expected and state[name].shape != expected[name].shape]:
        if not name.startswith(classifier):
            raise BaseError(f"{source} does not fit: {_difference(expected, state, classifier)}")
        del state[name]
    fitting = {name: _as(value, expected.get(name)) for name, value in state.items()}
    fitting = _with_metadata(fitting, state)
    result = network.load_state_dict(fitting, strict=False, assign=True)
    if any(not _may_differ(name, classifier) for name in (*result.missing_keys, *result.unexpected_keys)):
        raise BaseError(f"{source} does not fit: {_difference(expected, state, classifier)}")
    _fill(network, result.missing_keys)
    without = frozenset(name for name in result.missing_keys if not name.endswith(COUNTER))
    if any(name.startswith(classifier[0]) for name in without):
        log.warning("%s: no fitting classifier: features are available, class scores are not", source)
    return network, without


def _as(value: Tensor, expected: Tensor | None) -> Tensor:
    return value if expected is None else value.to(expected.dtype)


def _with_metadata(state: State, original: State) -> State:
    """Keep the versions of layers that torch.save puts beside a state dict: loading translates what is old."""
    if hasattr(original, "_metadata"):
        state = OrderedDict(state)
        state._metadata = original._metadata  # type: ignore[attr-defined]
    return state


def _fill(network: nn.Module, missing: list[str]) -> None:
    """Fill with NaN, never with numbers that could pass for features: rows that are not finite are refused later."""
    for name in missing:
        path, _, leaf = name.rpartition(".")
        owner = network.get_submodule(path)
        before = getattr(owner, leaf)
        value = torch.full_like(before, torch.nan if before.is_floating_point() else 0, device="cpu")
        setattr(owner, leaf, nn.Parameter(value) if isinstance(before, nn.Parameter) else value)


def _count_classes(state: State, last_layer: str) -> int | None:
    """Return the rows of the classifier's last weight: the number of classes that these weights tell apart."""
    rows = [len(value) for name, value in state.items() if name.startswith(last_layer) and value.ndim > 1]
    return rows[-1] if rows else None


def _may_differ(name: str, classifier: tuple[str, ...]) -> bool:
    return name.startswith(classifier) or name.endswith(COUNTER)


def _difference(expected: State, given: State, classifier: tuple[str, ...]) -> str:
    missing = [name for name in expected if name not in given and not _may_differ(name, classifier)]
    unexpected = [name for name in given if name not in expected]
    shapes = [
        f"{name} is {tuple(given[name].shape)} for {tuple(expected[name].shape)}"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return "; ".join(f"{len(names)} {word} ({_some(names)})" for word, names in parts if names)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def digest(network: nn.Module, *, without: frozenset[str] = frozenset()) -> str:
    """Return the sha256 of a network's tensors, whichever file they came from; names in `without` do not count."""
    return digest_tensors(
        {
            name: value.detach().cpu().numpy()
            for name, value in network.state_dict().items()
            if name not in without and not name.endswith(COUNTER)
        }
    )


def first_line(error: BaseException) -> str:
    """Return the first line of a message, or the name of its class where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
