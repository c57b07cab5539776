"""A region as bytes, with all that its compilation depends on.

The graph goes node by node, since pickling a graph module traces it anew and loses what nodes carry. Its inputs go as
their sizes, strides, dtypes and devices over the symbols of :class:`.region_sizes.FreshInputs`, which are made again.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import sympy
import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.node import map_aggregate

from lightint_compile.lowering.region import anchor, for_inductor
from lightint_compile.lowering.region_sizes import FreshInputs, FreshSymbol, fresh_mode
from lightint_compile.lowering.workers.switches import Switches


class StaysHereError(Exception):
    """A region that only this process can compile."""


@dataclass(frozen=True)
class _Read:
    """Stands for the node at a place of a graph."""

    place: int


@dataclass(frozen=True)
class _Operator:
    """Names an operator of torch."""

    namespace: str
    name: str
    overload: str


@dataclass(frozen=True)
class _Size:
    """A symbolic integer."""

    expression: sympy.Expr
    hint: int


@dataclass(frozen=True)
class _Tensor:
    """A fake tensor."""

    sizes: tuple[Any, ...]
    strides: tuple[Any, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class _Node:
    op: str
    name: str
    target: Any
    arguments: Any
    kept: Mapping[str, Any]
    value: Any = None


@dataclass(frozen=True)
class Parcel:
    """A region for another process.

    Attributes:
        nodes: the graph that Inductor gets.
        symbols: those of its sizes.
        config: Inductor's settings for this region.
        switches: those of the process.
    """

    nodes: tuple[_Node, ...]
    symbols: tuple[FreshSymbol, ...]
    config: Mapping[str, Any]
    switches: Switches

    @property
    def work(self) -> int:
        """How much there is to do, in nodes."""
        return len(self.nodes)

    def packed(self) -> bytes:
        """The parcel as bytes.

        Raises:
            StaysHereError: a part of it has no form in bytes.
        """
        try:
            return pickle.dumps(self)
        except Exception as error:  # whatever an object's own pickling raises
            raise StaysHereError(f"a part of it cannot be pickled: {error}") from error

    def graph(self) -> tuple[fx.GraphModule, FakeTensorMode, list[torch.SymInt]]:
        """The graph, in a mode of fake tensors of its own, and its symbols."""
        mode = fresh_mode()
        assert mode.shape_env is not None
        symbols = [symbol.made_in(mode.shape_env)[1] for symbol in self.symbols]
        graph, made = fx.Graph(), list[fx.Node]()
        for node in self.nodes:
            args, kwargs = _with_nodes(node.arguments, made)
            made.append(graph.create_node(node.op, _target(node.target), args, kwargs, name=node.name))
            made[-1].meta = dict(node.kept)
            if node.op == "placeholder":
                made[-1].meta["val"] = made[-1].meta["example_value"] = _value(node.value, mode, mode.shape_env)
        anchor(graph, mode)
        return fx.GraphModule({}, graph), mode, symbols


def parcel_of(region: fx.GraphModule, inputs: FreshInputs, config: Mapping[str, Any], switches: Switches) -> Parcel:
    """A region for another process.

    Args:
        inputs: as of :func:`.region_sizes.fresh_inputs`.
        config: Inductor's settings, besides those that the region's form asks for.

    Raises:
        StaysHereError: it holds something that another process does not have.
    """
    alone, settings = for_inductor(region, inputs, config)
    places = {node: _Read(place) for place, node in enumerate(alone.graph.nodes)}
    nodes = tuple(_node(node, places) for node in alone.graph.nodes)
    return Parcel(nodes, inputs.made, settings, switches)


def unpacked(content: bytes) -> Parcel:
    """What :meth:`Parcel.packed` made. It is code: only what this user's own process sent is unpacked."""
    parcel = pickle.loads(content)
    assert isinstance(parcel, Parcel)
    return parcel


def _with_nodes(arguments: Any, made: Sequence[fx.Node]) -> Any:
    """Arguments of a node that read nodes again."""
    return map_aggregate(arguments, lambda each: made[each.place] if isinstance(each, _Read) else each)


_PLAIN: tuple[type, ...] = (bool, int, float, str, type(None))

_ARGUMENTS = (*_PLAIN, complex, type(...), torch.dtype, torch.device, torch.layout, torch.memory_format)

_KEPT = ("stack_trace", "custom")
"""What of a node's notes goes along. The others name classes of the user's, and say where a node comes from only."""


def _node(node: fx.Node, places: Mapping[fx.Node, _Read]) -> _Node:
    if node.op not in ("placeholder", "call_function", "output"):
        raise StaysHereError(f"{node.name} is a {node.op}")
    arguments = map_aggregate((node.args, dict(node.kwargs)), lambda each: _argument(each, places))
    kept = {name: node.meta[name] for name in _KEPT if name in node.meta}
    pytree.tree_map(_noted, kept)
    target = _named(node) if node.op == "call_function" else node.target
    value = _described(node.meta["val"]) if node.op == "placeholder" else None
    return _Node(node.op, node.name, target, arguments, kept, value)


def _noted(value: Any) -> None:
    if type(value) not in _PLAIN:
        raise StaysHereError(f"a note is a {type(value).__name__}")


def _argument(value: Any, places: Mapping[fx.Node, _Read]) -> Any:
    if isinstance(value, fx.Node):
        return places[value]
    if type(value) not in _ARGUMENTS:  # what else there is may be of a module that another process does not have
        raise StaysHereError(f"an argument is a {type(value).__name__}")
    return value


_EVERYWHERE = ("aten", "prims", "lightint")
"""Namespaces whose operators every process has that imports the backend."""

_MODULES = ("_operator", "builtins", "math", "torch")


def _named(node: fx.Node) -> Any:
    target = node.target
    if isinstance(target, OpOverload):
        if target.namespace not in _EVERYWHERE:
            raise StaysHereError(f"{node.name} calls {target}")
        return _Operator(target.namespace, target._schema.name.split("::")[1], target._overloadname)
    if getattr(target, "__module__", None) not in _MODULES:
        raise StaysHereError(f"{node.name} calls {target}")
    return target


def _target(target: Any) -> Any:
    if not isinstance(target, _Operator):
        return target
    packet = getattr(getattr(torch.ops, target.namespace), target.name)
    return getattr(packet, target.overload)


def _described(value: Any) -> Any:
    if isinstance(value, torch.SymInt):
        return _Size(value.node.expr, int(cast(int, value.node.hint)))
    if isinstance(value, torch.Tensor):
        sizes, strides = _all_described(value.shape), _all_described(value.stride())
        return _Tensor(sizes, strides, value.dtype, value.device)
    if isinstance(value, _PLAIN):
        return value
    raise StaysHereError(f"an input is a {type(value).__name__}")


def _all_described(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(map(_described, values))


def _value(described: Any, mode: FakeTensorMode, env: ShapeEnv) -> Any:
    if isinstance(described, _Size):
        return env.create_symintnode(described.expression, hint=described.hint)
    if isinstance(described, _Tensor):
        sizes, strides = ([_value(each, mode, env) for each in part] for part in (described.sizes, described.strides))
        with mode:
            return torch.empty_strided(sizes, strides, dtype=described.dtype, device=described.device)
    return described
