"""What was traced once goes where it was called: each call of a block becomes the nodes that its trace gave.

The result is the graph that Dynamo makes when it traces every call: the same operations in the same order, with the
module paths and the user's lines of the call that they stand for. Where that cannot be told, :class:`Differs`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch.fx as fx
from torch import nn

from lightint_compile.capture.explicit_autocast import MODE_SWITCHES
from lightint_compile.capture.module_stacks import Differs, ModuleStacks, Stack, cleaned
from lightint_compile.torch_compat import source_name


@dataclass(frozen=True)
class _Call:
    """A call of a block before it is replaced.

    Attributes:
        body: the name of the submodule that is called.
        sources: where Dynamo found each operand; empty for what the graph computes.
        stack: the modules around it, the block itself among them where its ``forward`` is called.
        trace: the user's lines that led to it.
        modes: what switches modes at this place.
    """

    node: fx.Node
    body: str
    sources: tuple[str, ...]
    stack: Stack
    trace: str
    modes: tuple[Any, ...]

    @classmethod
    def of(cls, node: fx.Node, modes: tuple[Any, ...]) -> _Call:
        body, _, *operands = node.args
        meta = node.meta
        if node.kwargs or len(set(operands)) != len(operands):
            raise Differs("an operand of a block is given twice")
        assert isinstance(body, fx.Node)
        stack, trace = meta.get("nn_module_stack") or {}, meta.get("stack_trace") or ""
        sources = tuple(source_name(each) for each in operands if isinstance(each, fx.Node))
        return cls(node, str(body.target), sources, stack, trace, modes)


def inline(graph_module: fx.GraphModule, calls: Sequence[fx.Node], root: nn.Module) -> None:
    """Put the body of each call in the place of the call.

    Args:
        graph_module: edited in place; after a failure it is of no use.
        calls: nodes of ``invoke_subgraph``, in order; equal bodies are one submodule.
        root: the module whose call was traced.

    Raises:
        Differs: the graph may not be the one that tracing every call gives.
    """
    modes, stacks = _modes(graph_module.graph), ModuleStacks(root)
    known = {node: _Call.of(node, modes[node]) for node in calls}
    first: dict[str, _Call] = {}
    for node in list(graph_module.graph.nodes):
        if node in known:
            call = known[node]
            _inline(graph_module, _Copies(first.setdefault(call.body, call), call, stacks))
        elif "nn_module_stack" in node.meta:
            node.meta["nn_module_stack"] = stacks.traced(node.meta["nn_module_stack"])
    _drop_unread_parts(graph_module.graph)
    for name in first:
        for node in graph_module.graph.find_nodes(op="get_attr", target=name):
            graph_module.graph.erase_node(node)
        delattr(graph_module, name)


def _drop_unread_parts(graph: fx.Graph) -> None:
    """Dynamo drops parts of tuples and tensors that nothing reads, but not in what it keeps of a block."""
    for node in reversed(graph.nodes):
        if node.target is operator.getitem and not node.users:
            sources = node.all_input_nodes
            graph.erase_node(node)
            if any(source.op == "placeholder" and not source.users for source in sources):
                raise Differs("nothing reads an input")


def _modes(graph: fx.Graph) -> dict[fx.Node, tuple[Any, ...]]:
    """The switches that hold at every node: those that nothing switched back, the last one of each other kind."""
    held: dict[Any, Any] = {}
    found = {}
    for node in graph.nodes:
        found[node] = tuple(held.values())
        if node.target in MODE_SWITCHES:
            if node.args and isinstance(node.args[0], fx.Node):
                held.pop(node.args[0], None)
            else:
                held[node if node.users else node.target] = (node.target, node.args)
    return found


class _Copies:
    """The nodes of a body for one of its calls.

    Args:
        first: the call that was traced.
        call: the call that the nodes are for; it may be the same.
    """

    def __init__(self, first: _Call, call: _Call, stacks: ModuleStacks) -> None:
        if call.modes != first.modes:
            raise Differs("calls of a block are under different modes")
        self.first, self.call, self._stacks = first, call, stacks
        self._renamed: dict[str, str] = {}
        for old, new in _renamed(first, call):
            if self._renamed.setdefault(old, new) != new:
                raise Differs(f"both {new} and {self._renamed[old]} stand for {old}")

    def meta(self, traced: dict[str, Any]) -> dict[str, Any]:
        """What is known of a node, for this call."""
        meta = dict(traced)
        lines, stack = meta.get("stack_trace") or "", meta.get("nn_module_stack") or {}
        around = list(self.first.stack.items())
        if (lines and not lines.startswith(self.first.trace)) or (
            stack and list(stack.items())[: len(around)] != around
        ):
            raise Differs("a node of a block is not from the call of the block")
        if lines:
            meta["stack_trace"] = self.call.trace + lines.removeprefix(self.first.trace)
        if stack:
            meta["nn_module_stack"] = self._around(stack, len(around))
        return meta

    def _around(self, stack: Stack, outside: int) -> Stack:
        """The modules around a node of this call; ``outside`` of those where it was traced are not in the block."""
        if self.call is self.first:
            return self._stacks.traced(stack)
        inside = dict(list(stack.items())[outside:])
        copied = self._stacks.copied(inside, self.call.node, self._renamed)
        return {**self._stacks.traced(self.call.stack), **copied}


def _inline(graph_module: fx.GraphModule, copies: _Copies) -> None:
    call, graph = copies.call, graph_module.graph
    made: dict[fx.Node, Any] = {}
    operands = iter(call.node.args[2:])
    with graph.inserting_before(call.node):
        for node in getattr(graph_module, call.body).graph.nodes:
            if node.op == "placeholder":
                made[node] = next(operands)
            elif node.op in ("call_function", "call_method"):
                made[node] = graph.node_copy(node, made.__getitem__)
                made[node].meta = copies.meta(node.meta)
            elif node.op == "output":
                _hand_over(call.node, [made[result] for result in node.args[0]])
            else:
                raise Differs(f"a block holds {node.op} {node.target}")
    graph.erase_node(call.node)


def _hand_over(call: fx.Node, results: Sequence[Any]) -> None:
    for reader in list(call.users):
        if reader.target is not operator.getitem:
            raise Differs(f"{reader.name} reads all results of a block at once")
        reader.replace_all_uses_with(results[reader.args[1]], propagate_meta=False)  # type: ignore[index]
        call.graph.erase_node(reader)


def _renamed(first: _Call, call: _Call) -> Iterator[tuple[str, str]]:
    """Paths of modules inside of the first call, and what stands there in another call.

    Raises:
        Differs: nothing tells which module was called.
    """
    if first.stack and call.stack:
        (old, _), (new, _) = list(first.stack.values())[-1], list(call.stack.values())[-1]
        if old != new:
            yield cleaned(old), cleaned(new)
    told = False
    for old, new in zip(first.sources, call.sources, strict=True):
        if old.startswith("L['self']") and new.startswith("L['self']"):
            told = True
            if old != new:
                yield _first_difference(cleaned(old).split("."), cleaned(new).split("."))
    if not told and not call.stack:
        raise Differs("nothing tells which block was called")


def _first_difference(old: Sequence[str], new: Sequence[str]) -> tuple[str, str]:
    for place, (mine, other) in enumerate(zip(old, new, strict=False), start=1):
        if mine != other and old[place:] == new[place:]:
            return ".".join(old[:place]), ".".join(new[:place])
    raise Differs(f"{'.'.join(new)} stands for {'.'.join(old)}")
