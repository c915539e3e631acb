"""The cut of a network whose first part is frozen: what comes before it, and what is trained behind it.

    images -> prefix, frozen -> the tensors that pass from one to the other -> suffix, which moves -> features

The graph of the network is traced by torch.fx, where a module of which everything is frozen, or everything trained, is
one node: only the code that joins such modules has to be traceable. A node moves where its module learns or is in
training mode (dropout, stochastic depth), or where it takes what moves. All else that depends on the image is the
prefix, whatever the architecture: residuals, dense connections and tokens are edges like any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.bases.taps import FeatureModule, FeatureNetwork, Tap, pooled_tap
from pipeline.errors import SettingsError

#: Largest difference, relative to the largest feature, between the network as it is and the two parts of it.
TOLERANCE = 1e-5
#: Batches that are run to see which sizes are those of the batch.
PROBES = (2, 3)


class Prefix(FeatureModule):
    """The frozen part: normalised images (B, 3, H, W) to one tensor (B, ...) for each place of the cut.

    `names` are those of the places, and no other graph has the same; `shapes` are those of one image's tensors.
    """

    def __init__(self, graph: fx.GraphModule, names: list[str], shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.graph = graph
        self.names = names
        self.shapes = shapes

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the frozen part."""
        found: tuple[Tensor, ...] = self.graph(images)
        return found


@dataclass(frozen=True)
class Cut:
    """A network in two parts, which share its weights: features(images) is suffix(*prefix(images))."""

    prefix: Prefix
    suffix: fx.GraphModule

    @property
    def numbers(self) -> int:
        """Numbers that pass the cut for one image."""
        return sum(torch.Size(shape).numel() for shape in self.prefix.shapes)


def find_cut(features: FeatureNetwork, size: tuple[int, int]) -> Cut:
    """Cut `features`, which is in training mode as far as it is trained, for images of `size` (h, w).

    Raises `SettingsError` with the reason where it cannot be cut.
    """
    traced = _trace(features)
    needed = _before(traced.outputs)
    moving = _moving(traced, needed)
    passing = _passing(traced, needed, moving)
    values = [_values(traced, needed, _noise(count, size)) for count in PROBES]
    cut = _split(traced, needed, moving, [_Passed.of(node, *(each[node] for each in values)) for node in passing])
    _compare(features, cut, _noise(PROBES[0], size))
    return cut


# --- the graph


class _Finished(Exception):
    """A signal that the last tap has been passed."""


@dataclass(frozen=True)
class _Traced:
    """The graph of a network up to its last tap: its modules and tensors by name, and the nodes of the taps."""

    graph: fx.Graph
    named: dict[str, Any]
    image: fx.Node
    outputs: list[fx.Node]


class _Tracer(fx.Tracer):
    """Tracer that takes what is wholly frozen or wholly trained as one node, and ends at the last tap."""

    def __init__(self, features: FeatureNetwork, whole: set[int]) -> None:
        super().__init__()
        self._taps = features.taps
        self._events = features.events
        self._network = features.network
        self._whole = whole
        self._passed = 0
        self.outputs: dict[int, fx.Proxy] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self._whole

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(m)
        for number, tap in enumerate(self._taps):
            if tap.module == name and tap.side == "input":
                self._pass(number, args[0])
        output = super().call_module(m, forward, args, kwargs)
        for number, tap in enumerate(self._taps):
            if tap.module == name and tap.side == "output":
                self._pass(number, output)
        return output

    def _pass(self, number: int, value: Any) -> None:
        self.outputs[number] = self.create_proxy("call_module", _tap_name(number), (value,), {})
        self._passed += 1
        if self._passed == self._events:
            raise _Finished

    def run(self) -> list[fx.Node]:
        """Trace up to the last tap; return the nodes of the taps."""
        parameters = list(inspect.signature(self._network.forward).parameters.values())[1:]
        fixed = {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
        with contextlib.suppress(_Finished):
            self.trace(self._network, concrete_args=fixed)
        return [self.outputs[number].node for number in range(len(self._taps))]


class _Tap(nn.Module):
    """Copy of what passes a tap, pooled, so that an in-place operation behind it cannot change it."""

    def __init__(self, tap: Tap, features: FeatureNetwork) -> None:
        super().__init__()
        self._tap = tap
        self._pool = features.pool
        self.eval()

    @property
    def module(self) -> str:
        """Name of the module that is tapped."""
        return self._tap.module

    def extra_repr(self) -> str:
        return f"{self._tap}, {self._pool}"

    def forward(self, value: Any) -> Tensor:
        return pooled_tap(value, self._tap, self._pool).clone()


def _tap_name(number: int) -> str:
    return f"tap{number}"


def _moves(module: nn.Module) -> bool:
    """Return True where a module learns, or answers otherwise in training: dropout is in it, or batch norm."""
    return any(one.training for one in module.modules()) or any(one.requires_grad for one in module.parameters())


def _trace(features: FeatureNetwork) -> _Traced:
    """Trace the network, in which what is trained is in training mode."""
    modules = dict(features.network.named_modules())
    tapped = [tap.module for tap in features.taps]
    whole = {
        id(module)
        for name, module in modules.items()
        if name
        and not any(tap.startswith(f"{name}.") for tap in tapped)
        and (module.training or not _moves(module) or not list(module.children()))
    }
    graphs = []
    training = {module: module.training for module in modules.values()}
    for mode in (training, dict.fromkeys(training, False)):
        tracer = _Tracer(features, whole)
        _put_modes(mode)
        try:
            outputs = tracer.run()
        except Exception as error:  # noqa: BLE001 - the code of a thousand networks raises what it likes
            why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise SettingsError(f"the code between frozen and trained modules cannot be traced: {why}") from None
        finally:
            _put_modes(training)
        graphs.append((tracer.graph, outputs))
    (graph, outputs), (other, _) = graphs
    if str(graph) != str(other):
        raise SettingsError("the code between its trained modules is another in training than in evaluation")
    named = {**modules, **dict(features.network.named_parameters()), **dict(features.network.named_buffers())}
    named |= {_tap_name(number): _Tap(tap, features) for number, tap in enumerate(features.taps)}
    named |= {name: getattr(tracer.root, name) for name in vars(tracer.root) if name.startswith("_tensor_constant")}
    image = next(node for node in graph.nodes if node.op == "placeholder")
    return _Traced(graph, named, image, outputs)


def _put_modes(modes: dict[nn.Module, bool]) -> None:
    for module, mode in modes.items():
        module.training = mode


# --- which nodes are on which side


def _before(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """List all that `nodes` are made of, and themselves, in the order of the graph."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return sorted(found)


def _moving(traced: _Traced, needed: list[fx.Node]) -> set[fx.Node]:
    """Find the nodes that move, or take what moves."""
    moving: set[fx.Node] = set()
    for node in needed:
        own = traced.named.get(str(node.target)) if node.op in ("call_module", "get_attr") else None
        learns = _moves(own) if isinstance(own, nn.Module) else isinstance(own, Tensor) and own.requires_grad
        if learns or any(given in moving for given in node.all_input_nodes):
            moving.add(node)
    return moving


def _passing(traced: _Traced, needed: list[fx.Node], moving: set[fx.Node]) -> list[fx.Node]:
    """List the frozen nodes that depend on the image and that something which moves takes, or that are outputs."""
    of_image = {traced.image}
    for node in needed:
        if any(given in of_image for given in node.all_input_nodes):
            of_image.add(node)
    taken = {given for node in needed if node in moving for given in node.all_input_nodes}
    passing = [
        node for node in needed if node in of_image and node not in moving and (node in taken or node in traced.outputs)
    ]
    if traced.image in passing:
        raise SettingsError("nothing is frozen before the first module that is trained")
    return passing


# --- what passes


@dataclass(frozen=True)
class _Passed:
    """The value of a node: a tensor with the batch first, the size of the batch, a constant, or a tuple of these."""

    node: fx.Node
    kind: str
    shape: tuple[int, ...] = ()
    constant: Any = None
    parts: tuple[_Passed, ...] = ()

    @classmethod
    def of(cls, node: fx.Node, one: Any, other: Any) -> _Passed:
        """Tell it from its values for the two batches of `PROBES`."""
        if isinstance(one, Tensor):
            fits = (one.shape[:1], other.shape[:1]) == tuple((count,) for count in PROBES)
            if not fits or one.shape[1:] != other.shape[1:] or not one.is_floating_point():
                raise SettingsError(f"{node.name} passes a tensor of which the images are not the rows")
            return cls(node, "tensor", shape=tuple(one.shape[1:]))
        if isinstance(one, tuple | list):
            pairs = zip(one, other, strict=True)
            return cls(node, "tuple", parts=tuple(cls.of(node, *pair) for pair in pairs))
        if one == other:
            return cls(node, "constant", constant=one)
        if (one, other) == PROBES:
            return cls(node, "batch")
        raise SettingsError(f"{node.name} passes {one!r} for {PROBES[0]} images, which is no tensor")

    def tensors(self, path: tuple[int, ...] = ()) -> list[tuple[tuple[int, ...], _Passed]]:
        """List all tensors in it, with the way to each through the tuples."""
        if self.kind == "tensor":
            return [(path, self)]
        return [found for number, part in enumerate(self.parts) for found in part.tensors((*path, number))]


def _noise(count: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(count))


def _values(traced: _Traced, needed: list[fx.Node], images: Tensor) -> dict[fx.Node, Any]:
    """Run the graph on `images` in evaluation mode; return the value of each node."""
    modes = {module: module.training for module in traced.named.values() if isinstance(module, nn.Module)}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in needed:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output([copies[node] for node in traced.outputs])
    found: dict[str, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            found[n.name] = super().run_node(n)
            return found[n.name]

    _put_modes(dict.fromkeys(modes, False))
    try:
        with torch.no_grad():
            Recorder(fx.GraphModule(_used(traced, graph), graph), garbage_collect_values=False).run(images)
    finally:
        _put_modes(modes)
    return {node: found[copy.name] for node, copy in copies.items()}


# --- two graphs


def _split(traced: _Traced, needed: list[fx.Node], moving: set[fx.Node], passed: list[_Passed]) -> Cut:
    tensors = [(one.node, path, part.shape) for one in passed for path, part in one.tensors()]
    if not tensors:
        raise SettingsError("no tensor passes from what is frozen to what is trained")
    prefix, names = _prefix(traced, [(node, path) for node, path, _ in tensors])
    suffix = _suffix(traced, needed, moving, passed, names)
    return Cut(Prefix(prefix, names, [shape for _, _, shape in tensors]), suffix)


def _prefix(traced: _Traced, wanted: list[tuple[fx.Node, tuple[int, ...]]]) -> tuple[fx.GraphModule, list[str]]:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in _before([traced.image, *(node for node, _ in wanted)]):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    given, names = [], []
    for node, path in wanted:
        value = copies[node]
        for number in path:
            value = graph.call_function(_item, (value, number))
        given.append(value)
        own = traced.named.get(str(node.target))
        names.append(own.module if isinstance(own, _Tap) else str(node.target) if own is not None else node.name)
    graph.output(tuple(given))
    used = _used(traced, graph)
    told = [str(graph), *(str(one) for one in used.values() if isinstance(one, _Tap))]
    code = hashlib.sha256("\n".join(told).encode()).hexdigest()[:8]
    return fx.GraphModule(used, graph), [f"{name}@{code}.{number}" for number, name in enumerate(names)]


def _suffix(
    traced: _Traced, needed: list[fx.Node], moving: set[fx.Node], passed: list[_Passed], names: list[str]
) -> fx.GraphModule:
    graph = fx.Graph()
    inputs = iter([graph.placeholder(f"cut{number}") for number in range(len(names))])
    first = next(iter(graph.nodes))
    copies: dict[fx.Node, Any] = {}
    batch: list[fx.Node] = []

    def stand_in(one: _Passed) -> Any:
        match one.kind:
            case "tensor":
                return next(inputs)
            case "tuple":
                return tuple(stand_in(part) for part in one.parts)
            case "batch":
                if not batch:
                    batch.append(graph.call_method("size", (first, 0)))
                return batch[0]
            case _:
                return one.constant

    for one in passed:
        copies[one.node] = stand_in(one)

    def copy(node: fx.Node) -> Any:
        """Copy a node, and the constants that it takes."""
        if node not in copies:
            for given in node.all_input_nodes:
                copy(given)
            copies[node] = graph.node_copy(node, copies.__getitem__)
        return copies[node]

    for node in needed:
        if node in moving:
            copy(node)
    graph.output(tuple(copies[node] for node in traced.outputs))
    return fx.GraphModule(_used(traced, graph), graph)


def _item(values: Any, number: int) -> Any:
    return values[number]


def _used(traced: _Traced, graph: fx.Graph) -> dict[str, Any]:
    """Return the modules and tensors that `graph` names: the network's own, which two graphs may share."""
    names = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
    return {name: traced.named[name] for name in sorted(names)}


def _compare(features: FeatureNetwork, cut: Cut, images: Tensor) -> None:
    """Raise `SettingsError` where the two parts do not give what the whole gives."""
    modes = {module: module.training for module in features.modules()}
    _put_modes(dict.fromkeys(modes, False))
    try:
        with torch.no_grad():
            wanted = features(images)
            given = cut.suffix(*(tensor.clone() for tensor in cut.prefix(images)))
    finally:
        _put_modes(modes)
    for one, other in zip(given, wanted, strict=True):
        if not bool((one - other).abs().max() <= TOLERANCE * other.abs().max().clamp(min=1e-12)):
            raise SettingsError("its two parts give other features than the whole")
