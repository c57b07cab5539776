"""Writing the small computation into the graph, and the repetition behind it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import sympy
import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.errors import PassError
from lightint_compile.passes.analysis.axes.factors import Axis, Layout, extent, is_same, plain
from lightint_compile.passes.analysis.row_repeats.analysis import Analysis
from lightint_compile.passes.analysis.row_repeats.layout import is_full, kept_size, repeats
from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.memory_sharing import memory_order
from lightint_compile.passes.ir.node_queries import MEMO
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.rewriter import Rewriter, stored_in

aten = torch.ops.aten


class Emission:
    """Emits small versions in graph order, so that what a node needs already stands before it."""

    def __init__(self, program: Program, analysis: Analysis, pass_name: str) -> None:
        self._rewriter = Rewriter(program, pass_name)
        self._mark: str | None = None
        self._place = next(iter(program.graph.nodes))
        self._analysis = analysis
        self._sizes = SizeNodes(program.graph.nodes, analysis)
        self._small: dict[fx.Node, fx.Node] = {}
        self._whole: dict[fx.Node, fx.Node] = {}
        self._converted: dict[tuple[fx.Node, Layout, str | None], fx.Node] = {}

    def compute(self, node: fx.Node, rule: str) -> fx.Node:
        """Emit the small version of ``node`` before it."""
        entry, self._mark, self._place = self._analysis.sunk[node], node.meta.get(MEMO), node
        with self._rewriter.at(node, rule=rule):
            bound = _Bound(self, entry.plan.operands)
            if entry.plan.forwards is not None:
                made = bound.small(entry.plan.forwards)
            elif entry.plan.arguments is not None:
                target = entry.plan.target or node.target
                made = self.call(
                    cast(Callable[..., Any], target), *entry.plan.arguments(bound), **bound.mapped(entry.kwargs)
                )
            else:
                target = cast(Callable[..., Any], node.target)
                made = self.call(target, *bound.mapped(entry.args), **bound.mapped(entry.kwargs))
        self._small[node] = made
        return made

    def write_out(self, node: fx.Node, *, returned: bool) -> fx.Node:
        """Emit the repetition of the small version and give it to every user of ``node``."""
        layout, self._mark = self._analysis.sunk[node].plan.result, node.meta.get(MEMO)
        self._place = node
        with self._rewriter.at(node, rule="repeat"):
            made = self._convert(self._small[node], layout, tuple(plain(extent(a)) for a in layout))
            if returned:  # every row in memory of its own, in the order that the caller knows
                order = memory_order(node.meta["val"]) or list(range(len(layout)))
                made = stored_in(order, made, self.call)
        node.replace_all_uses_with(made, propagate_meta=False)
        self._whole[node] = made
        return made

    def erase(self, nodes: Iterable[fx.Node]) -> None:
        """Erase what is unused of ``nodes``, last first."""
        for node in nodes:
            self._rewriter.erase_unused(node)

    def bring(self, node: fx.Node, want: Layout) -> fx.Node:
        """A node in the layout ``want``, whose repetition is that of its own layout or less."""
        if tensor_of(node) is None:
            return self._small[node]
        if node not in self._analysis.sunk or not repeats(want):
            return self._whole.get(node, node)
        have = self._analysis.sunk[node].plan.result
        small = self._small[node]
        if have == want:
            return small
        key = (small, want, self._mark)
        if key not in self._converted:
            self._converted[key] = self._convert(small, have, want)
        return self._converted[key]

    def size(self, wanted: Size) -> Any:
        """A size as a graph argument."""
        return wanted if isinstance(wanted, int) else self._sizes.node(wanted, self._place, self.call)

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A new node at the current place."""
        node = self._rewriter.call(target, *args, **kwargs)
        if self._mark is not None:
            node.meta[MEMO] = self._mark
        return node

    def _convert(self, small: fx.Node, have: Layout, want: Layout) -> fx.Node:
        """Write out the repetition that ``have`` has and ``want`` has not, by ``repeat_interleave`` or by expanding."""
        changed = [dim for dim, (h, w) in enumerate(zip(have, want, strict=True)) if h != w and not is_full(h)]
        if len(changed) == 1 and [part.repeated for part in have[changed[0]]] == [False, True]:
            count = have[changed[0]][1].size
            return self.call(aten.repeat_interleave.self_int, small, self.size(count), changed[0])
        steps = [_written_out(h, w) for h, w in zip(have, want, strict=True)]
        value, dim = small, 0
        expanded: list[Size] = []
        for step in steps:
            for is_new, length in step:
                if is_new:
                    value = self.call(aten.unsqueeze.default, value, dim)
                expanded.append(length)
                dim += 1
        value = self.call(aten.expand.default, value, [self.size(e) if e != -1 else -1 for e in expanded])
        if any(len(step) > 1 for step in steps):
            sizes = [kept_size(w) for w in want]
            value = self.call(aten.reshape.default, value, [self.size(length) for length in sizes])
        return value


def _written_out(have: Axis, want: Axis) -> list[tuple[bool, Size]]:
    """The axes that one axis of the small tensor becomes before the reshape: whether it is new, and its size or -1."""
    if have == want or is_full(have):
        return [(False, -1)]
    if is_same(have):
        return [(False, kept_size(want))]
    if not is_full(want):
        raise PassError("a repetition was asked for in a form it cannot take", why=f"{have} as {want}")
    return [(segment.repeated, segment.size if segment.repeated else -1) for segment in have]


class _Bound:
    """The emitter that one plan sees: its operands in the layouts it asked for."""

    def __init__(self, emission: Emission, operands: Any) -> None:
        self._emission, self._operands = emission, operands

    def small(self, node: fx.Node) -> fx.Node:
        """See :class:`~passes.analysis.row_repeats.effects.Emitter`."""
        return self._emission.bring(node, self._operands[node])

    def size(self, size: Size) -> Any:
        """See :class:`~passes.analysis.row_repeats.effects.Emitter`."""
        return self._emission.size(size)

    def mapped(self, arguments: Any) -> Any:
        """Arguments with operands replaced."""
        return pytree.tree_map_only(fx.Node, lambda n: self.small(n) if n in self._operands else n, arguments)


class SizeNodes:
    """Finds a node whose value is a symbolic size: a size computed in the graph, or a size of a tensor in it.

    Of every size the first scalar and the first tensor that have it are remembered. A node that stands behind the place
    where the size is asked for does not serve: the size is then made from its factors.
    """

    def __init__(self, nodes: Iterable[fx.Node], analysis: Analysis) -> None:
        self._scalars: dict[Size, fx.Node] = {}
        self._tensors: dict[Size, tuple[fx.Node, int]] = {}
        for node in nodes:
            value = node.meta.get("val")
            if isinstance(value, torch.SymInt):
                self._scalars.setdefault(size_of(value), node)
            elif isinstance(value, torch.Tensor) and node not in analysis.sunk:
                for dim, length in enumerate(value.shape):
                    if isinstance(length, torch.SymInt):
                        self._tensors.setdefault(size_of(length), (node, dim))

    def node(self, wanted: sympy.Expr, place: fx.Node, call: Callable[..., fx.Node]) -> Any:
        """The node that stands before ``place``, made from its factors where no single one is known."""
        scalar = self._scalars.get(wanted)
        if scalar is not None and scalar < place:
            return scalar
        source, dim = self._tensors.get(wanted, (place, 0))
        if source < place:
            return call(aten.sym_size.int, source, dim)
        for kind, combine in ((sympy.Mul, operator.mul), (sympy.Add, operator.add)):
            if isinstance(wanted, kind):
                return self._combined(wanted.args, combine, place, call)
        raise PassError("a symbolic size has no node", why=str(wanted))

    def _combined(self, parts: Sequence[Any], combine: Any, place: fx.Node, call: Callable[..., fx.Node]) -> Any:
        made = [int(part) if part.is_Integer else self.node(part, place, call) for part in parts]
        total = made[0]
        for part in made[1:]:
            total = call(combine, total, part)
        return total
