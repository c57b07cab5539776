"""Where keys and values of the context can be kept: after their projection, before anything positional.

A key of a context frame is a product of the frame's tokens, perhaps normalised, and then rotated by its position in
this chunk's context (rotary tables, camera matrices). The first part can be kept from chunk to chunk; the second is
done again. The border between them is found by domination: the last value through which every path from the projection
to an attention leads, while nothing beside the path depends on which frames were chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass

import networkx as nx  # type: ignore[import-untyped]
import torch
import torch.fx as fx

from lightint_compile.passes.analysis.attention_sites import ATTENTION, AttentionSites
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.context_reuse.scope import Scope, rows_axis
from lightint_compile.passes.ir.fake_values import Size, hint_of, plain, size_of
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.memory_sharing import alias_source
from lightint_compile.passes.ir.op_families import Family, is_cast
from lightint_compile.passes.ir.program import Program, tensor_of

aten = torch.ops.aten

PROJECTIONS = {*Family.LINEAR.value, aten.mm.default, aten.addmm.default}
"""What makes keys and values of tokens."""


@dataclass(frozen=True)
class Cut:
    """One value to keep.

    Attributes:
        node: keys or values of all context frames, without anything that depends on their places.
        axis: its token axis.
        plane: tokens of a frame along the axes of a frame: (height, width), or their product where the grid is unknown.
        after: what is computed from it, row by row, on the way to the attentions.
    """

    node: fx.Node
    axis: int
    plane: tuple[int, ...]
    after: frozenset[fx.Node]

    @property
    def frame_tokens(self) -> int:
        """Tokens of one frame."""
        count = 1
        for extent in self.plane:
            count *= extent
        return count

    @property
    def frame_bytes(self) -> int:
        """Bytes of the values of one frame, symbolic sizes at their hints."""
        value = self.node.meta["val"]
        others = [hint_of(size) for axis, size in enumerate(value.shape) if axis != self.axis]
        return math.prod(others) * self.frame_tokens * int(value.element_size())


def find_cuts(program: Program, scope: Scope) -> list[Cut]:
    """A cut for every projection of context tokens that attentions read as keys or as values."""
    grids = program.fact(TokenGrid)
    cuts: dict[fx.Node, Cut] = {}
    for operands in operands_of(program):
        paths = on_the_way(operands, scope)
        for start in [node for node in program.graph.nodes if node in paths and _projects_context(node, scope)]:
            node = _border(start, paths, scope)
            axis = rows_axis(node, scope.size)
            assert axis is not None
            after = frozenset(_rows_below(node, paths, scope) - {node})
            cuts.setdefault(node, Cut(node, axis, _plane(grids, node, axis, scope.size), after))
    return [cuts[node] for node in program.graph.nodes if node in cuts]


def operands_of(program: Program) -> tuple[list[fx.Node], list[fx.Node]]:
    """The keys, and the values, of all attentions."""
    sites = program.fact(AttentionSites)
    return [site.key for site in sites], [site.value for site in sites]


def on_the_way(operands: Iterable[fx.Node], scope: Scope) -> set[fx.Node]:
    """Nodes between projections and ``operands`` of attentions, both included."""

    def lies_there(node: fx.Node) -> bool:
        return node in scope.stream and not isinstance(node.meta.get("val"), torch.SymInt)

    def onward(node: fx.Node) -> Iterable[fx.Node]:
        ends = node.target in PROJECTIONS or node.target is ATTENTION
        return () if ends else filter(lies_there, node.all_input_nodes)

    return reached(filter(lies_there, operands), onward)


def _projects_context(node: fx.Node, scope: Scope) -> bool:
    return node.target in PROJECTIONS and rows_axis(node, scope.size) is not None


def _rows_below(start: fx.Node, within: Set[fx.Node], scope: Scope) -> set[fx.Node]:
    """What is computed from ``start`` on the way to the attentions, as far as context rows stay by themselves."""
    return reached([start], lambda node: (u for u in node.users if u in within and _has_own_rows(u, scope)))


def _has_own_rows(node: fx.Node, scope: Scope) -> bool:
    """Whether an axis holds the context's rows and nothing else; of a tuple, whether its elements may."""
    return rows_axis(node, scope.size) is not None or isinstance(node.meta.get("val"), (tuple, list))


def _border(start: fx.Node, paths: Set[fx.Node], scope: Scope) -> fx.Node:
    """The last value that all paths share and that no place in the context has touched.

    Trailing views are left out, unless what they view serves other ends too (queries made by the same projection);
    and trailing casts to a wider type, which would keep twice the bytes.
    """
    border, below = start, _rows_below(start, paths, scope)
    for node, between in _shared(start, below, paths):
        if any(_is_placed(source, below, scope) for step in between for source in step.all_input_nodes):
            break
        if rows_axis(node, scope.size) is None or _widens(node):
            continue
        if alias_source(node) is None or not _serves_only(border, paths):
            border = node
    return border


def _widens(node: fx.Node) -> bool:
    """Whether a node only casts to a type of more bytes."""
    if not is_cast(node):
        return False
    narrow, wide = tensor_of(node.args[0]), tensor_of(node)
    assert narrow is not None and wide is not None
    return wide.element_size() > narrow.element_size()


def _serves_only(node: fx.Node, paths: Set[fx.Node]) -> bool:
    """Whether everything made from ``node`` in front of an attention is on the way to its keys, or to its values."""
    pending, seen = [node], {node}
    while pending:
        users = [user for user in pending.pop().users if user.target is not ATTENTION]
        if not all(user in paths for user in users):
            return False
        pending.extend(user for user in users if user not in seen)
        seen.update(users)
    return True


def _shared(start: fx.Node, below: Set[fx.Node], paths: Set[fx.Node]) -> Iterator[tuple[fx.Node, set[fx.Node]]]:
    """The nodes that every path from ``start`` to an attention passes, in order, each with the nodes since the last."""
    sink = object()
    graph = nx.DiGraph()
    for node in below:
        inside = [user for user in node.users if user in below]
        graph.add_edges_from((node, user) for user in inside)
        if any(user.target is ATTENTION or user in paths - below for user in node.users):
            graph.add_edge(node, sink)
    dominators = nx.immediate_dominators(graph, start)
    chain = []
    node = dominators.get(sink, start)
    while node is not start:
        chain.append(node)
        node = dominators[node]
    seen = {start}
    for node in reversed(chain):
        between = (nx.ancestors(graph, node) | {node}) - seen
        seen |= between
        yield node, between


def _is_placed(source: fx.Node, below: Set[fx.Node], scope: Scope) -> bool:
    """Whether an operand from beside the path depends on the choice of frames; sizes alone do not count."""
    return source not in below and source in scope.chosen and tensor_of(source) is not None


def _plane(grids: TokenGrid, node: fx.Node, axis: int, size: Size) -> tuple[int, ...]:
    held = grids.of(node, axis)
    grid = held.grid if held is not None else None
    if grid is not None and isinstance(grid.height, int) and isinstance(grid.width, int):
        return grid.height, grid.width
    tensor = tensor_of(node)
    assert tensor is not None
    return (int(plain(size_of(tensor.shape[axis]) / size)),)
