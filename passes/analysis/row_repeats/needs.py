"""What is computed on fewer rows for something, and what would be if an operation kept repeated rows apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import Layout, extent, same, shared
from lightint_compile.passes.analysis.row_repeats.analysis import Analysis, analyse
from lightint_compile.passes.analysis.row_repeats.layout import is_full, repeats
from lightint_compile.passes.analysis.row_repeats.picks import Allowed
from lightint_compile.passes.ir.flops import flops_of
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.looks import Looks
from lightint_compile.passes.ir.op_arguments import sizes_of
from lightint_compile.passes.ir.program import Program, tensor_of


def needed(ends: Iterable[fx.Node], analysis: Analysis) -> set[fx.Node]:
    """The nodes whose small versions the small versions of ``ends`` are computed from, and ``ends``."""

    def read_small(node: fx.Node) -> Iterator[fx.Node]:
        operands = analysis.sunk[node].plan.operands.items()
        return (operand for operand, want in operands if operand in analysis.sunk and repeats(want))

    return reached(ends, read_small)


def lost_products(program: Program, analysis: Analysis, picks: Allowed) -> dict[fx.Node, int]:
    """Of what blocks repetition: FLOPs of its own, and of products that would run on fewer rows behind it."""
    supposed = {node: layout for node in analysis.blocked if (layout := _as_its_operand(node, analysis)) is not None}
    beyond = analyse(program.graph, supposed, picks, like=analysis, looks=program.memory(Looks))
    lost = Counter({node: flops for node in analysis.blocked if (flops := flops_of(node))})
    for node in beyond.sunk:
        if node not in analysis.sunk and beyond.sunk[node].works and flops_of(node):
            for origin in needed([node], beyond) & supposed.keys():
                lost[origin] += flops_of(node)
    return {node: lost[node] for node in analysis.blocked if node in lost}


def _as_its_operand(node: fx.Node, analysis: Analysis) -> Layout | None:
    """The layout that a blocked node would have if it kept its operand's repetition, where the axes match."""
    if tensor_of(node) is None:
        return None
    operand = next(o for o in node.all_input_nodes if o in analysis.sunk and analysis.sunk[o].seeded)
    before, after = analysis.sunk[operand].plan.result, shared(sizes_of(node))
    if len(before) != len(after):
        return None
    pairs = zip(before, after, strict=True)
    return tuple(a if is_full(b) else b if extent(b) == extent(a) else same(extent(a)) for b, a in pairs)
