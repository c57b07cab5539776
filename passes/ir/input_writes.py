"""Writes to inputs: in the normal form a write hands back the buffer it wrote to, and later reads read that value.

A cache that a model keeps in place has versions: the input, and the result of each write in order. They are one memory,
so a version may be read only until the next write. Data tells what must follow a write; :func:`reads_before` tells what
must come before it, and :func:`stale_reads` finds what came too late.

A write is an operator of ATen that changes its first operand and returns it (``copy_``, ``fill_``, ``index_put_``), or
``lightint::write_window``: ``buffer[..., start:end, ...] = value`` along some axes, as the parts that it is made of for
every tracer and compiler.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.fx as fx
from torch import Tensor
from torch.library import Library

from lightint_compile.passes.ir.memory_sharing import alias_source, is_write, memory_of

aten = torch.ops.aten

_library = Library("lightint", "FRAGMENT")
_library.define(
    "write_window(Tensor(a!) buffer, Tensor value, int[] axes, SymInt[] starts, SymInt[] ends, int[] dropped=[])"
    " -> Tensor(a!)"
)


def write_window(
    buffer: Tensor,
    value: Tensor,
    axes: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int],
    dropped: Sequence[int] = (),
) -> Tensor:
    """Put ``value`` between ``starts`` and ``ends`` along ``axes``; at those ``dropped`` there is one place."""
    window = buffer
    for axis, start, end in sorted(zip(axes, starts, ends, strict=True), key=lambda place: -place[0]):
        window = window.select(axis, start) if axis in dropped else aten.slice.Tensor(window, axis, start, end)
    window.copy_(value)
    return buffer


_library.impl("write_window", write_window, "CompositeImplicitAutograd")

WRITE_WINDOW = torch.ops.lightint.write_window.default


def version_of(node: fx.Node) -> fx.Node:
    """The version of the memory that a value shows: the write that it is a view of, else what made the memory."""
    while not is_write(node) and (source := alias_source(node)) is not None:
        node = source
    return node


def written_buffers(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """What is written to, and the writes of each in order."""
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if is_write(node):
            found.setdefault(memory_of(node), []).append(node)
    return found


def reads_before(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each write the nodes that read the version before it, which it must not overtake."""
    before: dict[fx.Node, list[fx.Node]] = {}
    for buffer, writes in written_buffers(graph).items():
        for version, write in zip((buffer, *writes), writes, strict=False):
            before[write] = [reader for reader in _readers(version) if reader is not write]
    return before


def _readers(version: fx.Node) -> Iterator[fx.Node]:
    """What reads a version or a view of it; views do not read."""
    waiting, seen = [version], set[fx.Node]()
    while waiting:
        for user in waiting.pop().users:
            if user in seen or user.op == "output":
                continue
            seen.add(user)
            if alias_source(user) is not None and not is_write(user):
                waiting.append(user)
            else:
                yield user


@dataclass(frozen=True)
class InputWrites:
    """What a program writes to.

    Attributes:
        positions: of the inputs it writes to.
        repeatable: whether a call that broke off may be made again from the start: nothing reads what is overwritten.
    """

    positions: tuple[int, ...] = ()
    repeatable: bool = True

    @classmethod
    def of(cls, graph: fx.Graph) -> InputWrites:
        """The writes of a graph to its placeholders."""
        buffers, replaced = written_buffers(graph), reads_before(graph)
        inputs = graph.find_nodes(op="placeholder")
        positions = tuple(place for place, node in enumerate(inputs) if node in buffers)
        return cls(positions, all(_is_repeatable(writes, replaced) for writes in buffers.values()))


def _is_repeatable(writes: Sequence[fx.Node], replaced: dict[fx.Node, list[fx.Node]]) -> bool:
    """Whether every read of a buffer sees what a second run from the start would see as well."""
    first, *others = writes
    in_one_place = first.target is WRITE_WINDOW and all(
        write.target is WRITE_WINDOW and write.args[2:] == first.args[2:] for write in others
    )
    if any(_reads_what_it_writes(write) for write in writes):
        return False
    return not any(replaced[write] for write in ([first] if in_one_place else writes))


_BLIND = frozenset(
    ("copy_", "fill_", "zero_", "index_copy_", "index_fill_", "masked_fill_", "masked_scatter_", "write_window")
)
"""Writes, by name, of what they are given, whatever was there."""


def _reads_what_it_writes(write: fx.Node) -> bool:
    """Whether what a write leaves depends on what was there."""
    assert isinstance(write.target, torch._ops.OpOverload)
    name = write.target._schema.name.rpartition("::")[2]
    others = (source for source in write.all_input_nodes if source is not write.args[0])
    return name not in _BLIND or any(memory_of(source) is memory_of(write) for source in others)


def stale_reads(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Nodes that read a version of a buffer after a write has replaced it, each with that write."""
    buffers = written_buffers(graph)
    if not buffers:
        return
    latest = {buffer: buffer for buffer in buffers}
    for node in graph.nodes:
        if alias_source(node) is None or is_write(node):
            for source in node.all_input_nodes:
                now = latest.get(memory_of(source))
                if now is not None and version_of(source) is not now:
                    yield node, now
        if is_write(node):
            latest[memory_of(node)] = node
