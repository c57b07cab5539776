"""Calls on the rows that anything reads, in place of calls on all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.passes.analysis.axes.movement import Movement, Range
from lightint_compile.passes.analysis.axes.moving import operand
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.analysis.read_rows import Need, Rows, Span, needs_of
from lightint_compile.passes.dead_tail.layout import Layout
from lightint_compile.passes.ir.fake_values import Size, hinted_shape, refresh, size_of
from lightint_compile.passes.ir.flops import flops_of, program_flops
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.memory_sharing import output_memory
from lightint_compile.passes.ir.node_queries import MEMO, is_element, is_tuple
from lightint_compile.passes.ir.op_arguments import argument, dimension, rank_of, sizes_of
from lightint_compile.passes.ir.op_families import Family
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind, module_path_of, source_of
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.size_nodes import SizeArgument, SizeNodes

aten = torch.ops.aten

WORTH = 2e-3
"""Share of a program's FLOPs that has to be saved: fewer rows make blocks differ that were alike."""


def cut_rows(program: Program, pass_name: str, block_of: Callable[[str], str]) -> list[Remark]:
    """Compute of every chain with products the rows that are read; a remark for each block.

    Nothing is cut where a result that is handed out could not be laid out as it was.
    """
    rewriter = Rewriter(program, pass_name)
    sizes = SizeNodes(program, rewriter)
    needs = _with_products(needs_of(program.graph, lambda size: sizes.hint(size) is not None))
    saved = sum(flops_of(node) - _flops_left(node, need, sizes) for node, need in needs.items())
    layouts = _layouts_handed_out(program.graph, needs)
    if not needs or None in layouts.values() or saved < WORTH * program_flops(program)["total"]:
        return []
    order = [node for node in program.graph.nodes if node in needs or is_element(node)]
    remarks = list(_remarks(needs, pass_name, block_of, sizes))
    gaps = {node: layout for node, layout in layouts.items() if layout is not None and layout.gaps}
    _Cutting(program, needs, gaps, rewriter, sizes).run(order)
    return remarks


def _layouts_handed_out(graph: fx.Graph, needs: Mapping[fx.Node, Need]) -> dict[fx.Node, Layout | None]:
    """Layouts of what is computed whole and whose memory the caller gets."""
    handed_out = output_memory(graph)
    whole = [node for node, need in needs.items() if node in handed_out and not need.is_narrow and not is_tuple(node)]
    return {node: Layout.of(node) for node in whole}


def _flops_left(node: fx.Node, need: Need, sizes: SizeNodes) -> int:
    """FLOPs on the rows that are left, by sizes at capture."""
    shape, left = hinted_shape(value) if (value := tensor_of(node)) is not None else (), flops_of(node)
    for size, span in zip(shape, need.rows, strict=False):
        left = left if span is None else left * _hint(span, sizes) // size
    return left


def _hint(span: tuple[Size, Size], sizes: SizeNodes) -> int:
    """How many values a span is at capture."""
    low, high = sizes.hint(span[0]), sizes.hint(span[1])
    assert low is not None and high is not None
    return high - low


def _with_products(needs: Mapping[fx.Node, Need]) -> dict[fx.Node, Need]:
    """Those that are connected with a product on fewer rows; elementwise work alone is not worth a change."""
    neighbours: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node, need in needs.items():
        for made in _narrow_sources(node, need, needs):
            neighbours[node].append(made)
            neighbours[made].append(node)
    starts = [node for node in neighbours if needs[node].is_narrow and flops_of(node)]
    kept = reached(starts, neighbours.__getitem__)
    return {node: need for node, need in needs.items() if node in kept}


def _narrow_sources(node: fx.Node, need: Need, needs: Mapping[fx.Node, Need]) -> Iterator[fx.Node]:
    """What computes fewer rows because this node reads fewer, or does not read an operand at all.

    As long as the node is as it was, all of their rows are computed for it.
    """
    unread = [source for source in node.all_input_nodes if source not in need.operands]
    for source in (*need.operands, *reached(unread, lambda each: () if each in needs else each.all_input_nodes)):
        made = operand(source) if is_element(source) else source
        if made in needs and needs[made].is_narrow:
            yield made


def _remarks(
    needs: Mapping[fx.Node, Need], pass_name: str, block_of: Callable[[str], str], sizes: SizeNodes
) -> Iterator[Remark]:
    groups: dict[tuple[str, tuple[Size, Size]], list[fx.Node]] = defaultdict(list)
    for node, need in needs.items():
        if need.is_narrow and flops_of(node):
            groups[block_of(module_path_of(node)), _counts(node, need, sizes)].append(node)
    for (module_path, (read, count)), nodes in groups.items():
        yield Remark(
            kind=RemarkKind.APPLIED,
            pass_name=pass_name,
            rule="unread-rows",
            message=f"computed on {read} of {count} rows: nothing reads the others",
            module_path=module_path,
            source=source_of(nodes[0]),
            args={"read": _told(read), "rows": _told(count)},
            flops_before=sum(map(flops_of, nodes)),
            flops_after=sum(_flops_left(node, needs[node], sizes) for node in nodes),
            numerics=Numerics.EXACT,
        )


def _counts(node: fx.Node, need: Need, sizes: SizeNodes) -> tuple[Size, Size]:
    """Rows that are read and rows that there are, along the axis with the fewest read."""
    shapes = zip(sizes_of(node), hinted_shape(node.meta["val"]), need.rows, strict=True)
    shares = [(_hint(span, sizes) / hint, _length(span, size), size) for size, hint, span in shapes if span]
    return min(shares, key=lambda each: each[0])[1:]


def _told(size: Size) -> int | str:
    """A size as an argument of a remark."""
    return size if isinstance(size, int) else str(size)


class _Cutting:
    """Emits calls on fewer rows in graph order, each before the call that it stands for."""

    def __init__(
        self,
        program: Program,
        needs: Mapping[fx.Node, Need],
        gaps: Mapping[fx.Node, Layout],
        rewriter: Rewriter,
        size_nodes: SizeNodes,
    ) -> None:
        self._program, self._rewriter, self._size_nodes = program, rewriter, size_nodes
        self._needs, self._gaps = needs, gaps
        self._made: dict[fx.Node, tuple[fx.Node, Rows]] = {}
        self._slices: dict[tuple[fx.Node, Rows, str | None], fx.Node] = {}
        self._mark: str | None = None

    def run(self, order: Iterable[fx.Node]) -> None:
        """Make all, and give users of what is whole again the new one."""
        done = []
        for node in order:
            source = operand(node) if is_element(node) else None
            if source is not None and source not in self._made:
                continue
            self._mark = node.meta.get(MEMO)
            with self._rewriter.at(node, rule="unread-rows"):
                if source is not None:
                    tuple_made, rows = self._made[source]
                    self._made[node] = self._call(cast(Any, node.target), tuple_made, node.args[1]), rows
                else:
                    self._made[node] = self._cut(node, self._needs[node]), self._needs[node].rows
            done.append(node)
        whole = [node for node in done if not any(self._made[node][1]) and not is_tuple(node)]
        placed = [self._placed(node) for node in whole]
        for node, made in zip(whole, placed, strict=True):
            self._rewriter.replace(node, made)
        refresh(self._program, placed)
        for node in reversed(done):
            if not node._erased:
                self._rewriter.erase_unused(node)

    def _placed(self, node: fx.Node) -> fx.Node:
        """What stands for a node that is whole again, laid out as the node was where the caller gets its memory."""
        made = self._made[node][0]
        if node not in self._gaps:
            return made
        self._mark = node.meta.get(MEMO)
        with self._rewriter.at(node, rule="unread-rows"):
            return self._gaps[node].lay_out(made, self._call)

    def _cut(self, node: fx.Node, need: Need) -> fx.Node:
        if node.target in Family.VIEW.value:
            return self._call(aten.reshape.default, self._bring(operand(node), need), self._sizes(node, need.rows))
        if node.target in Family.EXPAND.value:
            return self._call(aten.expand.default, self._bring(operand(node), need), self._sizes(node, need.rows))
        if node.target in Family.FILL.value:
            return self._filled(node, need)
        if node.target is aten.slice.Tensor:
            return self._sliced(node, need)
        if node.target in Family.CAT.value:
            return self._joined(node, need)
        if node.target in (aten.constant_pad_nd.default, aten.pad.default):
            return self._padded(node, need)
        return self._call(cast(Any, node.target), *self._mapped(node.args, need), **self._mapped(node.kwargs, need))

    def _mapped(self, arguments: Any, need: Need) -> Any:
        return pytree.tree_map_only(
            fx.Node, lambda each: self._bring(each, need) if each in need.operands else each, arguments
        )

    def _bring(self, node: fx.Node, need: Need) -> fx.Node:
        """The rows of an operand that the call reads."""
        made, held = self._made.get(node, (node, (None,) * rank_of(node)))
        wanted = need.operands[node]
        key = made, wanted, self._mark
        if key not in self._slices:
            self._slices[key] = self._slice(made, held, wanted)
        return self._slices[key]

    def _slice(self, made: fx.Node, held: Rows, wanted: Rows) -> fx.Node:
        for axis, (have, want) in enumerate(zip(held, wanted, strict=True)):
            if want is not None and have != want:
                first = 0 if have is None else have[0]
                ends = (self._size_nodes.argument(size_of(end - first)) for end in want)
                made = self._call(aten.slice.Tensor, made, axis, *ends)
        return made

    def _sizes(self, node: fx.Node, rows: Rows) -> list[SizeArgument]:
        """Sizes of a result of which these rows are computed."""
        found = [_length(span, size) for span, size in zip(rows, sizes_of(node), strict=True)]
        return [self._size_nodes.argument(size) for size in found]

    def _filled(self, node: fx.Node, need: Need) -> fx.Node:
        place = 1 if str(node.target).startswith("aten.new_") else 0
        given = list(node.args)
        given[place] = self._sizes(node, need.rows)
        return self._call(cast(Any, node.target), *self._mapped(given, need), **node.kwargs)

    def _sliced(self, node: fx.Node, need: Need) -> fx.Node:
        """The operand is brought from where the slice begins to where it ends; all of it where that is not followed."""
        source, dim = self._bring(operand(node), need), dimension(node, rank_of(node))
        way, size = cast(Movement, movement_of(node)).outputs[0][dim], sizes_of(node)[dim]
        if isinstance(way, Range) and way.step == 1:
            return source
        if not (isinstance(way, Range) and isinstance(way.start, int) and isinstance(size, int)):
            return self._call(aten.slice.Tensor, source, *node.args[1:], **node.kwargs)
        return self._call(aten.slice.Tensor, source, dim, 0, None, way.step)

    def _joined(self, node: fx.Node, need: Need) -> fx.Node:
        read = [part for part in cast(list[fx.Node], node.args[0]) if part in need.operands]
        brought = [self._bring(part, need) for part in read]
        return brought[0] if len(brought) == 1 else self._call(cast(Any, node.target), brought, *node.args[1:])

    def _padded(self, node: fx.Node, need: Need) -> fx.Node:
        """Padding as far as it is read."""
        source = self._bring(operand(node), need)
        amounts = [int(amount) for amount in argument(node, "pad")]
        for number in range(len(amounts) // 2):
            axis = rank_of(node) - 1 - number
            if (span := need.rows[axis]) is not None:
                before, length = amounts[2 * number], int(sizes_of(operand(node))[axis])
                low, high = map(int, span)
                amounts[2 * number] = max(before - low, 0)
                amounts[2 * number + 1] = max(high - before - length, 0)
        if not any(amounts):
            return source
        return self._call(cast(Any, node.target), source, amounts, *node.args[2:], **node.kwargs)

    def _call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        made = self._rewriter.call(target, *args, **kwargs)
        if self._mark is not None:
            made.meta[MEMO] = self._mark
        return made


def _length(span: Span, size: Size) -> Size:
    return size if span is None else size_of(span[1] - span[0])
