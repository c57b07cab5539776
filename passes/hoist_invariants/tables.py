"""Tables that follow from sizes and constants alone, such as those of rotary positions: made once for each size.

Models make them in every call, often on the host, from which they are copied to the device: each copy waits for the
host. Nothing of a call can change them but its sizes, so a kept one needs no check of any content.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.fx as fx
from torch._ops import HigherOrderOperator

from lightint_compile.passes.ir.effects import is_pure
from lightint_compile.passes.ir.flops import bytes_of_value
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.memory_sharing import output_memory
from lightint_compile.passes.ir.node_queries import MEMO, is_scalar
from lightint_compile.passes.ir.program import InputKind, Program, tensor_of
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind, at

TABLE = "sizes"
"""The mark of nodes that depend on sizes and constants alone."""

MOST_BYTES = 16 << 20
"""A larger value is computed where it is read: a mask of all pairs of tokens is cheaper to make than to keep."""

MOST_CHECKED = 1 << 20
"""Bytes of a buffer on the host up to which a table may be made from it; XXH3 reads them in 40 microseconds."""

SLOW_ELEMENTS = 1 << 14
"""From this many elements on, a CPU takes longer for a table's sines than a call takes to find a kept one."""

_SLOW = {"sin", "cos", "exp", "pow", "polar", "tan"}


def mark_tables(program: Program, pass_name: str) -> Iterator[Remark]:
    """Set ``meta["memo"] = "sizes"`` on tables that are worth being kept, and on all that they are made from.

    Worth it are those that are copied from the host to a device, and sines and powers that a CPU computes. An output,
    or what shares memory with one, is not marked: the caller may write to it.
    """
    fixed = _fixed(program)
    worth = [node for node in fixed if _is_copied_over(node) or _is_slow(node)]
    below = reached(worth, lambda node: (user for user in node.users if user in fixed))
    needed = reached(below, lambda node: (source for source in node.all_input_nodes if source in fixed))
    nodes = [node for node in program.graph.nodes if node in needed and not is_scalar(node)]
    if not nodes or all(node.meta.get(MEMO) == TABLE for node in nodes):
        return
    for node in nodes:
        node.meta[MEMO] = TABLE
    yield _remark(nodes, pass_name)


def _remark(nodes: list[fx.Node], pass_name: str) -> Remark:
    copies = sum(map(_is_copied_over, nodes))
    told = f" with {copies} {'copy' if copies == 1 else 'copies'} from the host" if copies else ""
    return Remark(
        kind=RemarkKind.APPLIED,
        pass_name=pass_name,
        rule="table",
        message=f"tables that follow from sizes alone are made once for each size: {len(nodes)} operations{told}",
        args={"operations": len(nodes), "copies": copies},
        numerics=Numerics.EXACT,
        **at(nodes[0]),
    )


def _fixed(program: Program) -> dict[fx.Node, None]:
    """What is computed from sizes and constants alone and takes little memory, in graph order."""
    known = {
        node
        for entry, node in zip(program.inputs, program.placeholders(), strict=True)
        if _is_size(node) or (entry.kind is not InputKind.TENSOR and _is_checked_at_once(node))
    }
    known |= {node for node in program.graph.nodes if node.op == "get_attr" and _is_checked_at_once(node)}
    outputs = output_memory(program.graph)
    fixed: dict[fx.Node, None] = {}
    for node in program.graph.nodes:
        if node.op != "call_function" or isinstance(node.target, HigherOrderOperator):
            continue
        if node in outputs or node.meta.get(MEMO) or not all(s in known or s in fixed for s in node.all_input_nodes):
            continue
        if is_pure(node) and (_is_size(node) or _is_small(node)):
            fixed[node] = None
    return fixed


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (int, torch.SymInt))


def _is_checked_at_once(node: fx.Node) -> bool:
    """Whether a buffer or constant is so small, and on the host, that checking its content costs nothing."""
    made = tensor_of(node)
    return made is not None and made.device.type == "cpu" and bytes_of_value(made) <= MOST_CHECKED


def _is_small(node: fx.Node) -> bool:
    value = node.meta.get("val")
    parts = value if isinstance(value, (tuple, list)) else [value]
    return all(isinstance(part, torch.Tensor) for part in parts) and bytes_of_value(value) <= MOST_BYTES


def _is_copied_over(node: fx.Node) -> bool:
    """Whether a value on the host becomes one on a device."""
    made = tensor_of(node)
    sources = [tensor for source in node.all_input_nodes if (tensor := tensor_of(source)) is not None]
    if made is None or not sources or made.device.type == "cpu":
        return False
    return all(source.device.type == "cpu" for source in sources)


def _is_slow(node: fx.Node) -> bool:
    made = tensor_of(node)
    if made is None or made.device.type != "cpu" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    name = node.target._schema.name.removeprefix("aten::")
    return name in _SLOW and bytes_of_value(made) >= SLOW_ELEMENTS * made.element_size()
