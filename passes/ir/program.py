"""The program that passes read and rewrite: one graph in normal form, and what its inputs are.

Normal form: a functional, pre-dispatch ATen FX graph. Attention, linear, layer_norm and convolution are one node each;
every node has ``meta["val"]`` (a fake tensor, a symbolic int or a plain number); parameters and buffers are
placeholders; the output is one flat tuple. Passes never see a torch function.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import torch
import torch.fx as fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv


class InputKind(StrEnum):
    """Where the value of a placeholder comes from."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    TENSOR = "tensor"
    SYMBOL = "symbol"


@dataclass(frozen=True)
class ProgramInput:
    """One placeholder of the graph.

    Attributes:
        name: the placeholder's node name.
        kind: parameter, buffer, tensor argument, or a size passed as an integer.
        path: the parameter's qualified name, or the argument's name in the user's call.
    """

    name: str
    kind: InputKind
    path: str


@runtime_checkable
class Fact(Protocol):
    """An analysis: a value computed from a program without changing it."""

    @classmethod
    def analyse(cls, program: Program) -> Self:
        """Compute the fact; raises nothing for a program it does not apply to (it is then empty)."""
        ...


F = TypeVar("F", bound=Fact)
M = TypeVar("M")


@dataclass
class Program:
    """One graph in normal form with its inputs.

    Attributes:
        graph_module: the graph. Passes edit it in place. Facts must be dropped when they do, as the pipeline does.
        inputs: one entry a placeholder, in order.
        name: the user's class or function name, for reports.
        roles: roles of inputs that the user stated (``options={"roles": {...}}``), by input path or pattern of paths.
        grids: (frames, height, width) in tokens of inputs with kept keys and values, stated in the same way; the number
            of frames may be ``None``.
        tokens: (frames, height, width) of inputs ``[batch, tokens, width]`` that another graph made, by their names;
            ``None`` for as many frames as there are.
        arguments: of the function that the graph is a part of, where it may be one of several: an argument need not be
            an input of each of them. ``None`` for a graph that is all there is.
        owned: parameters and buffers of the module whose whole call a graph with ``arguments`` turned out to be, so
            that no other graph has inputs of other names; ``None`` where there may be others.
    """

    graph_module: fx.GraphModule
    inputs: tuple[ProgramInput, ...]
    name: str = "program"
    roles: dict[str, str] = field(default_factory=dict)
    grids: dict[str, tuple[int | None, int, int]] = field(default_factory=dict)
    tokens: dict[str, tuple[int | None, int, int]] = field(default_factory=dict)
    arguments: tuple[str, ...] | None = None
    owned: tuple[str, ...] | None = None
    _facts: dict[type, Any] = field(default_factory=dict, repr=False)
    _named: tuple[tuple[ProgramInput, ...], dict[str, ProgramInput]] = field(default=((), {}), repr=False)
    _memories: dict[Callable[[], Any], Any] = field(default_factory=dict, repr=False)

    @property
    def graph(self) -> fx.Graph:
        """The FX graph."""
        return self.graph_module.graph

    def fact(self, kind: type[F]) -> F:
        """The fact of this kind, computed on first use and kept until the graph changes."""
        if kind not in self._facts:
            self._facts[kind] = kind.analyse(self)
        found: F = self._facts[kind]
        return found

    def changed(self) -> None:
        """Drop every fact: the graph is no longer the one they describe."""
        self._facts.clear()

    def memory(self, kind: Callable[[], M]) -> M:
        """The one ``kind`` of this program: what it remembers of nodes outlives changes, so it checks what holds."""
        if kind not in self._memories:
            self._memories[kind] = kind()
        found: M = self._memories[kind]
        return found

    def placeholders(self) -> list[fx.Node]:
        """The placeholder nodes, one for each of ``inputs``."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    def input_of(self, node: fx.Node) -> ProgramInput:
        """The input of a placeholder."""
        inputs, by_name = self._named
        if inputs is not self.inputs:
            by_name = {entry.name: entry for entry in self.inputs}
            self._named = self.inputs, by_name
        return by_name[node.name]

    def calls(self, *targets: Any) -> Iterator[fx.Node]:
        """Every ``call_function`` node whose target is one of ``targets`` (all when none is given), in order."""
        wanted = set(targets)
        for node in self.graph.nodes:
            if node.op == "call_function" and (not wanted or node.target in wanted):
                yield node

    def snapshot(self) -> Program:
        """A copy whose graph can be edited without touching this one; fake values are shared."""
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            copied = graph.node_copy(node, lambda old: mapping[old])
            copied.meta = copy.copy(node.meta)
            mapping[node] = copied
        module = _LazyGraphModule(self.graph_module, graph)  # its Python code is written when it is run
        module.meta.update(self.graph_module.meta)
        return replace(self, graph_module=module, _facts={}, _memories={})


def value_of(node: fx.Node) -> Any:
    """The fake value of a node: a fake tensor, a symbolic or plain number, or a tuple of them."""
    return node.meta["val"]


def tensor_of(node: fx.Node | Any) -> torch.Tensor | None:
    """The node's fake value when it is a tensor, else ``None``."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, torch.Tensor) else None


@contextmanager
def faking(mode: FakeTensorMode) -> Iterator[None]:
    """Operators computed on fake values of ``mode``.

    Composite operators run their Python decompositions: the compiled ones of some versions (``matmul`` in torch 2.11)
    turn symbolic sizes into the numbers at hand and leave a guard that holds for no other size.
    """
    with enable_python_dispatcher(), mode:
        yield


def fake_mode_of(nodes: Iterable[fx.Node]) -> FakeTensorMode:
    """The fake mode that the values of ``nodes`` live in; a fresh one for a graph without tensors."""
    for node in nodes:
        value = node.meta.get("val")
        for leaf in value if isinstance(value, (tuple, list)) else (value,):
            mode = getattr(leaf, "fake_mode", None)
            if isinstance(mode, FakeTensorMode):
                return mode
    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
