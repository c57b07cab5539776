"""The part of the prefill that is only computed for frames whose keys and values are not kept.

Frames meet in attention only. Every other operation treats rows separately, which is verified here one by one, by the
rules that carry repeated rows through a graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.attention_sites import ATTENTION
from lightint_compile.passes.analysis.axes.factors import Axis, Layout, plain, same
from lightint_compile.passes.analysis.row_repeats.analysis import Analysis, analyse
from lightint_compile.passes.context_reuse.cuts import Cut, on_the_way, operands_of
from lightint_compile.passes.context_reuse.scope import Scope, has_rows, rows_axis
from lightint_compile.passes.ir.effects import live_nodes
from lightint_compile.passes.ir.fake_values import Size, shape_of
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.looks import Looks
from lightint_compile.passes.ir.op_arguments import argument
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.remarks import Miss
from lightint_compile.passes.ir.sizes import quotient

aten = torch.ops.aten


def rows_of(program: Program, scope: Scope, cuts: Sequence[Cut]) -> list[fx.Node] | Miss:
    """The nodes to compute for fresh frames only, in order: everything that the values to keep are made from."""
    placed = _placed_by_latents(scope, cuts)
    if placed is not None:
        return placed
    keys, values = operands_of(program)
    joined = _joined(cuts, on_the_way([*keys, *values], scope))
    rows = _made_from(program, scope, cuts, joined)
    return next(_misses(program, scope, rows, joined), rows)


def _placed_by_latents(scope: Scope, cuts: Sequence[Cut]) -> Miss | None:
    """A position that depends on latents could not be applied to what is kept."""
    for cut in cuts:
        for node in cut.after:
            for source in node.all_input_nodes:
                if source in scope.stream and source is not cut.node and source not in cut.after:
                    return Miss(node, f"behind {cut.node.name} it depends on latents by another way, {source.name}")
    return None


def _joined(cuts: Sequence[Cut], paths: Set[fx.Node]) -> set[fx.Node]:
    """Nodes between the cuts and the attentions: they read kept and fresh frames alike."""

    def onward(node: fx.Node) -> Iterator[fx.Node]:
        return (user for user in node.users if user in paths)

    return reached((user for cut in cuts for user in onward(cut.node)), onward)


def _made_from(program: Program, scope: Scope, cuts: Sequence[Cut], joined: set[fx.Node]) -> list[fx.Node]:
    """What the cuts depend on below the choice of frames; keys and values of an attention are not looked behind."""

    def belongs(node: fx.Node) -> bool:
        return node in scope.chosen and node not in joined and node is not scope.index

    def onward(node: fx.Node) -> Iterable[fx.Node]:
        return filter(belongs, [argument(node, "query")] if node.target is ATTENTION else node.all_input_nodes)

    found = reached(filter(belongs, (cut.node for cut in cuts)), onward)
    return [node for node in program.graph.nodes if node in found]


def _misses(program: Program, scope: Scope, rows: list[fx.Node], joined: set[fx.Node]) -> Iterator[Miss]:
    inside = set(rows)
    live = set(live_nodes(program.graph))
    analysis = analyse(program.graph, _supposed(scope, rows), looks=program.memory(Looks))
    for node in rows:
        if tensor_of(node) is not None and not _row_by_row(node, scope.size, analysis):
            yield Miss(node, f"{node.name} cannot be computed for some frames alone: {_mixing(node, analysis)}")
        if not isinstance(node.meta.get("val"), torch.SymInt):
            for user in live.intersection(node.users) & scope.stream - inside - joined:
                if has_rows(node, scope.size):
                    yield Miss(user, f"it reads {node.name} of all context frames, besides their keys and values")
        if node.target is not ATTENTION and any(source in joined for source in node.all_input_nodes):
            yield Miss(node, f"{node.name} reads keys or values outside of an attention")


def _mixing(node: fx.Node, analysis: Analysis) -> str:
    if node in analysis.blocked:
        return analysis.blocked[node].reason
    if node.target is ATTENTION:
        return "it has a mask, dropout or grouped heads"
    return "its rows depend on more than one frame each"


def _row_by_row(node: fx.Node, size: Size, analysis: Analysis) -> bool:
    axis = rows_axis(node, size)
    if axis is None:
        return False
    first = analysis.layout(node)[axis][:1]
    return bool(first) and first[0].repeated and isinstance(quotient(first[0].size, size), int)


def _supposed(scope: Scope, rows: list[fx.Node]) -> dict[fx.Node, Layout]:
    """If all chosen frames were one and the same: what the choice, positions and patch embeddings would be."""
    one: dict[fx.Node, Layout] = {scope.index: (same(scope.size),)}
    for node in rows:
        if counts_frames(node, scope) or _embeds_frames(node, scope):
            one[node] = tuple(map(_frames_alike, shape_of(node.meta["val"]), [scope.size] * node.meta["val"].dim()))
    return one


def _frames_alike(size: Size, frames: Size) -> Axis:
    return same(size) if size == frames else plain(size)


def counts_frames(node: fx.Node, scope: Scope) -> bool:
    """Whether a node is the places 0 to n - 1 of the context frames."""
    if node.target is not aten.arange.default or not isinstance(node.args[0], fx.Node):
        return False
    return shape_of(node.meta["val"]) == (scope.size,)


def _embeds_frames(node: fx.Node, scope: Scope) -> bool:
    """Whether a convolution over a volume looks at one frame at a time."""
    if node.target is not aten.conv3d.default or rows_axis(node, scope.size) != 2:
        return False
    source, weight = argument(node, "input"), tensor_of(argument(node, "weight"))
    stride, padding = argument(node, "stride"), argument(node, "padding")
    assert weight is not None
    return (
        rows_axis(source, scope.size) == 2
        and weight.shape[2] == 1
        and (stride[0] if isinstance(stride, (list, tuple)) else stride) == 1
        and (padding[0] if isinstance(padding, (list, tuple)) else padding) == 0
    )
