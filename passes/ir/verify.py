"""The check between passes: the graph is well formed, its fake values are true, and its interface is unchanged."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch._ops import HigherOrderOperator

from lightint_compile.errors import PassError
from lightint_compile.passes.ir.input_writes import stale_reads
from lightint_compile.passes.ir.looks import Looks
from lightint_compile.passes.ir.memory_sharing import is_write
from lightint_compile.passes.ir.node_queries import graph_of
from lightint_compile.passes.ir.program import Program, fake_mode_of, faking
from lightint_compile.passes.ir.saved import Interface, Output, Saved


def verify(program: Program, before: Program | Saved, *, unchanged: Collection[fx.Node] = ()) -> None:
    """Raise :class:`PassError` unless ``program`` still satisfies the invariants of the normal form.

    * the graph lints;
    * placeholders are those of ``before``, in order, and the output has the same arity and the same shapes and dtypes;
    * no output is a placeholder unless it was one before (no new aliasing with an input);
    * nothing reads a buffer's contents of before a write after it, and no write is in a graph that a decision may skip;
    * the fake value of every node not in ``unchanged``, and of every node that reads one, equals what its target
      computes from its arguments' fake values.
    """
    program.graph.lint()
    then = before.interface if isinstance(before, Saved) else Interface.of(before.graph)
    _same_interface(Interface.of(program.graph), then)
    _check_writes(program)
    _true_values(program, unchanged)


def _same_interface(now: Interface, then: Interface) -> None:
    if now.inputs != then.inputs:
        raise PassError("a pass changed the program's placeholders", why=f"{then.inputs} became {now.inputs}")
    if len(now.outputs) != len(then.outputs):
        raise PassError("a pass changed the number of outputs", why=f"{len(then.outputs)} became {len(now.outputs)}")
    for index, (new, old) in enumerate(zip(now.outputs, then.outputs, strict=True)):
        if isinstance(new, Output) and isinstance(old, Output):
            if not _same_value(new.value, old.value):
                shown = f"{_shown(old.value)} became {_shown(new.value)}"
                raise PassError(f"a pass changed the type of output {index}", why=shown)
            if new.op == "placeholder" and old.op != "placeholder":
                raise PassError(f"a pass made output {index} an alias of the input {new.name}")


def _check_writes(program: Program) -> None:
    for reader, write in stale_reads(program.graph):
        raise PassError(f"a pass moved {reader.name} behind {write.name}, which overwrites what it reads")
    for graph in program.graph_module.modules():
        if (
            graph is not program.graph_module
            and isinstance(graph, fx.GraphModule)
            and any(map(is_write, graph.graph.nodes))
        ):
            raise PassError("a pass moved a write into another graph", why="it is to happen once, in its place")


def _true_values(program: Program, unchanged: Collection[fx.Node]) -> None:
    mode, looks = fake_mode_of(program.graph.nodes), program.memory(Looks)
    fresh: set[fx.Node] = set()
    checked: set[Any] = set()
    for node in program.graph.nodes:
        if node.op != "call_function":
            if "val" not in node.meta and graph_of(node) is None and node.op not in ("placeholder", "output"):
                raise PassError(f"the new node {node.name} has no fake value")
            continue
        is_new = node not in unchanged
        if not is_new and not any(producer in fresh for producer in node.all_input_nodes):
            continue
        if is_new:
            fresh.add(node)
        if "val" not in node.meta:
            raise PassError(f"the new node {node.name} has no fake value", why=f"target {node.target}")
        key = (looks.of(node).call, *map(looks.value, node.all_input_nodes))
        if key not in checked:
            checked.add(key)
            _check_value(node, mode)


def _check_value(node: fx.Node, mode: Any) -> None:
    if isinstance(node.target, HigherOrderOperator):
        return  # its branches are graphs of their own, verified when they were made
    if torch.Tag.data_dependent_output in getattr(node.target, "tags", ()):
        return  # a number read from a tensor: nothing tells which
    args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (node.args, node.kwargs))
    with faking(mode):
        computed = node.target(*args, **kwargs)  # type: ignore[operator]
    if not _same_value(computed, node.meta["val"]):
        raise PassError(
            f"the fake value of {node.name} is not what its target computes",
            why=f"recorded {_shown(node.meta['val'])}, computed {_shown(computed)}",
            where=str(node.target),
        )


def _same_value(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        if left.dtype != right.dtype or left.device != right.device or left.dim() != right.dim():
            return False
        return all(_maybe_equal(a, b) for a, b in zip(left.shape, right.shape, strict=True))
    if isinstance(left, (tuple, list)) and isinstance(right, (tuple, list)):
        return len(left) == len(right) and all(map(_same_value, left, right))
    return isinstance(left, torch.Tensor) == isinstance(right, torch.Tensor)


def _maybe_equal(left: Any, right: Any) -> bool:
    """Sizes that are equal, or may be (symbolic sizes are compared without adding a guard)."""
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return not statically_known_true(left != right)


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
    return repr(value)
