"""Stretches of a root graph that a GPU can be given at once: calls between which the host decides nothing.

A stretch becomes a function of its own in the driver, which :mod:`lightint_compile.runtime.stretch_replay` records as a
CUDA graph. In one are calls of regions and operators whose tensors are all on one GPU. What ends one is whatever reads
a result on the host, answers a decision, or keeps something between calls. Sizes, views of what others hold and kept
keys and values are looked up in front of it, and keys and values that are to be kept are handed over behind it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from lightint_compile.kernels.exchange import EXCHANGE
from lightint_compile.lowering.fresh_results import stated_memory
from lightint_compile.passes.ir.decision_points import KeepPoint, PointSpec, RecallPoint
from lightint_compile.passes.ir.effects import draws_random
from lightint_compile.passes.ir.memory_sharing import alias_source, is_write, memory_of
from lightint_compile.passes.ir.node_queries import is_scalar
from lightint_compile.passes.ir.transfers import is_wait

aten = torch.ops.aten

KIND = "cuda"
"""The kind of device whose work is recorded."""

FEWEST = 12
"""Operations from which a stretch is worth being told apart: to look up what was recorded takes as long as a few."""

_READ_ON_HOST = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)

_NEVER = getattr(torch.Tag, "cudagraph_unsafe", None)
"""What the author of an operator says of it, where torch has a word for it."""

_CONSTANT = aten.full.default
"""How the host's constants are spelled in the normal form."""


@dataclass(frozen=True)
class Stretch:
    """One stretch, as the driver keeps it.

    Attributes:
        source: a Python function ``forward(self, ...)`` whose ``self`` is the driver's.
        written: positions of the inputs that it writes to.
    """

    source: str
    written: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stretches:
    """Those of a driver.

    Attributes:
        by_name: as the driver's source calls them.
        group: the name of the process group whose collectives are in them; empty where none are.
    """

    by_name: Mapping[str, Stretch] = field(default_factory=dict)
    group: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :meth:`from_dict` takes it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`, also after a way through JSON."""
        by_name = {name: Stretch(each["source"], tuple(each["written"])) for name, each in data["by_name"].items()}
        return cls(by_name, data["group"])


@dataclass
class Found:
    """A root graph that calls its stretches by name, and these as graphs."""

    root: fx.GraphModule
    stretches: dict[str, fx.GraphModule] = field(default_factory=dict)
    written: dict[str, tuple[int, ...]] = field(default_factory=dict)


def groups_in(graphs: Iterable[fx.GraphModule]) -> set[str]:
    """Names of the process groups whose collectives are in some graphs."""
    collectives = (node for graph in graphs for node in graph.graph.nodes if _is_collective(node))
    return {str(node.args[-1]) for node in collectives if not is_wait(node)}


def with_stretches(
    root: fx.GraphModule,
    regions: Mapping[str, fx.GraphModule],
    points: Mapping[str, PointSpec],
    name: str,
) -> Found:
    """A root whose stretches are called by names that begin with ``name``; ``root`` itself is left as it is.

    Args:
        regions: what may be called in a stretch, none of it on the host, by the names that the root calls them by.
        points: the decision points by name.
    """
    return _Outlining(root, _Calls(regions, points), name).run()


class _Calls:
    """Which nodes of a root may be in a stretch, and which stand in front of one or behind it."""

    def __init__(self, regions: Mapping[str, fx.GraphModule], points: Mapping[str, PointSpec]) -> None:
        self._points = points
        self._operations = {name: _operations_of(region) for name, region in regions.items()}
        self._readable: dict[fx.Node, bool] = {}

    def operations(self, node: fx.Node) -> int | None:
        """Operations of a node that may be in a stretch; ``None`` for one that may not."""
        if not _is_on_one(node) or not all(map(self._is_readable, node.all_input_nodes)):
            return None
        if node.op == "call_module":
            return self._operations.get(str(node.target))
        if not _is_recorded(node):
            return None
        return int(node.target is not operator.getitem and (is_write(node) or alias_source(node) is None))

    def goes_ahead(self, node: fx.Node) -> bool:
        """Whether a node that reads nothing of the stretch may be looked up in front of it."""
        if node.op == "call_module":
            return isinstance(self._points.get(str(node.target)), RecallPoint)
        if node.op == "get_attr" or is_scalar(node) or node.target is operator.getitem or _is_constant(node):
            return True
        return is_wait(node) or (not is_write(node) and alias_source(node) is not None)

    def goes_behind(self, node: fx.Node) -> bool:
        """Whether a node takes values of the stretch without giving any."""
        return node.op == "call_module" and isinstance(self._points.get(str(node.target)), KeepPoint)

    def _is_readable(self, node: fx.Node) -> bool:
        found = self._readable.get(node)
        if found is None:
            found = is_scalar(node) or _is_constant(node) or _is_on_one(node)
            self._readable[node] = found
        return found


def _operations_of(region: fx.GraphModule) -> int | None:
    """Operations of a region that can be recorded; ``None`` where it cannot."""
    if any(place < 0 for place in stated_memory(region.graph)):
        return None
    calls = [node for node in region.graph.nodes if node.op not in ("placeholder", "output")]
    given = [tensor for node in region.graph.find_nodes(op="placeholder") for tensor in _tensors(node)]
    if not all(tensor.device.type == KIND or not tensor.dim() for tensor in given):
        return None
    if len({device for node in region.graph.nodes for device in _devices(node) if device.type == KIND}) != 1:
        return None
    if not all(is_scalar(node) or _is_constant(node) or _is_call(node) for node in calls):
        return None
    return len(calls)


def _is_call(node: fx.Node) -> bool:
    return node.op == "call_function" and _is_on_one(node) and _is_recorded(node)


def _is_recorded(node: fx.Node) -> bool:
    """Whether a call on a device is the same whenever it is made again with what lies at the same addresses."""
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, OpOverload) or node.target.namespace in _OF_PROCESSES:
        return False
    if draws_random(node) or _is_read_on_host(node) or _NEVER in node.target.tags:
        return False
    return node.target not in _MOVES or all(map(_devices(node).issuperset, map(_devices, node.all_input_nodes)))


_OF_PROCESSES = ("c10d", "symm_mem")
"""Operators that other processes take part in, besides the functional collectives."""

_MOVES = (aten._to_copy.default, aten.copy_.default, aten.copy.default)
"""What may bring a number of the host's to a device, which reads the host's memory once more when it is replayed."""


def _is_read_on_host(node: fx.Node) -> bool:
    """Whether what a call gives has a size, or is a number, that is in the data."""
    tags = getattr(node.target, "tags", ())
    if node.target in _PUTS:
        return any(tensor.dtype in (torch.bool, torch.uint8) for tensor in _index_of(node))
    return any(tag in tags for tag in _READ_ON_HOST) or bool(free_unbacked_symbols(node.meta.get("val")))


_PUTS = (aten.index_put.default, aten.index_put_.default, aten._unsafe_index_put.default)
"""What looks for the places of a mask on the host."""


def _index_of(node: fx.Node) -> Iterator[torch.Tensor]:
    for index in pytree.tree_leaves(node.args[1]):
        yield from _tensors(index) if isinstance(index, fx.Node) else ()


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    return [value for value in pytree.tree_leaves(node.meta.get("val")) if isinstance(value, torch.Tensor)]


def _devices(node: fx.Node) -> set[torch.device]:
    return {tensor.device for tensor in _tensors(node)}


def _is_on_one(node: fx.Node) -> bool:
    """Whether a node has tensors, all on one device whose work is recorded."""
    devices = _devices(node)
    return len(devices) == 1 and next(iter(devices)).type == KIND


def _is_constant(node: fx.Node) -> bool:
    """Whether a node is a number of the host's as a tensor, the same in every call."""
    return node.target is _CONSTANT and not node.all_input_nodes and not node.args[0]


def _is_collective(node: fx.Node) -> bool:
    is_functional = isinstance(node.target, OpOverload) and node.target.namespace == "_c10d_functional"
    return is_functional or node.target is EXCHANGE


def _is_of_sizes(node: fx.Node) -> bool:
    """Whether a number follows from sizes and other numbers alone."""
    if node.op != "call_function" or isinstance(node.target, HigherOrderOperator):
        return False
    return is_scalar(node) and not _is_read_on_host(node)


class _Outlining:
    """Makes a root of another: what is between two decisions is gathered, and written as one call."""

    def __init__(self, root: fx.GraphModule, calls: _Calls, name: str) -> None:
        self._root, self._calls, self._name = root, calls, name
        self._graph = fx.Graph()
        self._mapping: dict[fx.Node, fx.Node] = {}
        self._brought: set[fx.Node] = set()
        self._found: dict[str, fx.GraphModule] = {}
        self._written: dict[str, tuple[int, ...]] = {}
        self._start()

    def run(self) -> Found:
        """Every node in turn, and what is gathered at the end."""
        for node in self._root.graph.nodes:
            if node in self._brought:
                continue
            if not self._gathered(node):
                self._flush()
                if not self._gathered(node):  # of another device, it begins the next one
                    self._copy(node)
        return Found(_module_of(self._graph), self._found, self._written)

    def _start(self) -> None:
        self._all: list[fx.Node] = []
        self._ahead: list[fx.Node] = []
        self._inside: dict[fx.Node, None] = {}
        self._behind: list[fx.Node] = []
        self._operations = 0

    def _gathered(self, node: fx.Node) -> bool:
        """Take a node into the stretch, in front of it, or behind it; ``False`` for one that ends it."""
        if node.op in ("placeholder", "output"):
            return False
        reads = any(each in self._inside for each in node.all_input_nodes)
        if self._calls.goes_behind(node):
            self._behind.append(node)
        elif not reads and self._calls.goes_ahead(node):
            self._ahead.append(node)
        elif not self._is_taken(node):
            return False
        self._all.append(node)
        return True

    def _is_taken(self, node: fx.Node) -> bool:
        operations = 0 if _is_of_sizes(node) else self._calls.operations(node)
        if operations is None or self._writes_to_what_waits(node):
            return False
        here = next((devices for each in self._inside if (devices := _devices(each))), _devices(node))
        if not _devices(node) <= here:
            return False
        self._inside[node] = None
        self._operations += operations
        return True

    def _writes_to_what_waits(self, node: fx.Node) -> bool:
        """Whether a node writes to what is to be handed over behind the stretch as it was before."""
        waiting = {memory_of(read) for each in self._behind for read in each.all_input_nodes}
        return is_write(node) and memory_of(node) in waiting

    def _flush(self) -> None:
        """Write what was gathered: as a call where that is worth it, else as it was."""
        if self._operations < FEWEST:
            for node in self._all:
                self._copy(node)
        else:
            self._wait_inside()
            for node in self._ahead:
                self._copy(node)
            self._call()
            for node in self._behind:
                self._copy(node)
        self._start()

    def _wait_inside(self) -> None:
        """What is on its way at the end of a stretch arrives in it: a recording is over when all of its work is."""
        waits = [user for node in self._inside for user in node.users if is_wait(user)]
        self._brought.update(wait for wait in waits if wait not in self._inside)
        self._inside.update(dict.fromkeys(waits))

    def _call(self) -> None:
        name = f"{self._name}_{len(self._found)}"
        inputs = list(dict.fromkeys(self._read_from_outside()))
        outputs = [node for node in self._inside if any(user not in self._inside for user in node.users)]
        self._found[name] = self._body(inputs, outputs)
        memories = {memory_of(node) for node in self._inside if is_write(node)}
        self._written[name] = tuple(place for place, node in enumerate(inputs) if memory_of(node) in memories)
        called = self._graph.call_module(name, tuple(self._mapping[node] for node in inputs))
        for place, node in enumerate(outputs):
            result = self._graph.create_node("call_function", operator.getitem, (called, place), name=node.name)
            result.meta = dict(node.meta)
            self._mapping[node] = result

    def _read_from_outside(self) -> Iterator[fx.Node]:
        for node in self._inside:
            yield from (each for each in node.all_input_nodes if each not in self._inside and not _is_constant(each))

    def _body(self, inputs: list[fx.Node], outputs: list[fx.Node]) -> fx.GraphModule:
        graph, mapping = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in inputs:
            mapping[node] = graph.placeholder(node.name)
        for node in self._inside:
            for each in node.all_input_nodes:
                if each not in mapping:  # a constant, which the stretch makes for itself
                    mapping[each] = graph.node_copy(each)
            mapping[node] = graph.node_copy(node, mapping.__getitem__)
        graph.output(tuple(mapping[node] for node in outputs))
        return _module_of(graph)

    def _copy(self, node: fx.Node) -> None:
        if node.op == "output":
            self._graph.output(fx.map_arg(node.args[0], self._mapping.__getitem__))
        else:
            self._mapping[node] = self._graph.node_copy(node, self._mapping.__getitem__)


def _module_of(graph: fx.Graph) -> fx.GraphModule:
    """A module for the text of a graph: what that calls is the driver's."""
    module = fx.GraphModule({}, fx.Graph())
    module.graph = graph
    return module
