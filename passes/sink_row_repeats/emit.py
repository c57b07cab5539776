"""Writing the small computation into the graph, and the repetition behind it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import sympy
import torch
import torch.fx as fx

from lightint_compile.errors import PassError
from lightint_compile.passes.analysis.axes.factors import Axis, Layout, Picks, axis, extent, is_same, plain
from lightint_compile.passes.analysis.axes.plans import Plan
from lightint_compile.passes.analysis.row_repeats.analysis import Analysis, Sunk
from lightint_compile.passes.analysis.row_repeats.layout import is_full, is_picked, kept, kept_size, picks_of, repeats
from lightint_compile.passes.ir.fake_values import Size, shape_of, size_of
from lightint_compile.passes.ir.memory_sharing import memory_order
from lightint_compile.passes.ir.node_queries import MEMO
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.rewriter import Rewriter, stored_in
from lightint_compile.passes.ir.sizes import product, replaced

aten = torch.ops.aten


class Emission:
    """Emits small versions in graph order, so that what a node needs already stands before it."""

    def __init__(self, program: Program, analysis: Analysis, pass_name: str) -> None:
        self._rewriter = Rewriter(program, pass_name)
        self._mark: str | None = None
        self._place = self._first = next(node for node in program.graph.nodes if node.op != "placeholder")
        self._analysis = analysis
        self._sizes = SizeNodes(program.graph.nodes, analysis)
        self._small: dict[fx.Node, fx.Node] = {}
        self._whole: dict[fx.Node, fx.Node] = {}
        self._converted: dict[tuple[fx.Node, Layout, str | None], fx.Node] = {}
        self._numbers: dict[tuple[Picks, torch.device, str | None], fx.Node] = {}

    def compute(self, node: fx.Node, rule: str) -> fx.Node:
        """Emit the small version of ``node`` before it."""
        entry, self._mark = self._analysis.sunk[node], node.meta.get(MEMO)
        self._place = self._place_for(node)
        with self._rewriter.at(self._place, rule=rule):
            if (tensor := tensor_of(node)) is not None:
                for picks in (each for of in entry.plan.result for each in picks_of(of)):
                    self._number_of(picks, tensor.device)
            made = self._made(node, entry)
        self._small[node] = made
        return made

    def _made(self, node: fx.Node, entry: Sunk) -> fx.Node:
        plan = entry.plan
        if plan.made is not None:
            return plan.made(self.call)
        if plan.forwards is not None:
            return self.bring(plan.forwards, plan.operands[plan.forwards])
        args = self._mapped(entry.args if plan.args is None else plan.args, plan)
        target = cast(Callable[..., Any], plan.target or node.target)
        return self.call(target, *args, **self._mapped(entry.kwargs, plan))

    def _mapped(self, arguments: Any, plan: Plan) -> Any:
        """Arguments of a small call: operands as the plan asks for them, sizes as arguments of the graph."""

        def small(value: Any) -> Any:
            if isinstance(value, fx.Node) and value in plan.operands:
                return self.bring(value, plan.operands[value])
            return self.size(value) if isinstance(value, sympy.Expr) else value

        return fx.node.map_aggregate(arguments, small)

    def _place_for(self, node: fx.Node) -> fx.Node:
        """Before the node; behind one that holds the numbers of its own picks, and behind all inputs."""
        is_mask = any(picks.numbers is node for of in self._analysis.sunk[node].plan.result for picks in picks_of(of))
        return self._first if node.op == "placeholder" else node.next if is_mask else node

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
        for node in (*nodes, *reversed(self._numbers.values())):
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

    def _number_of(self, picks: Picks, device: torch.device) -> fx.Node:
        """The numbers of what is picked; made where a pick starts, so that all blocks that write it out share them."""
        key = (picks, device, self._mark)
        if key not in self._numbers:
            self._numbers[key] = self._numbered(picks, device)
        return self._numbers[key]

    def _numbered(self, picks: Picks, device: torch.device) -> fx.Node:
        if isinstance(picks.numbers, fx.Node):
            node = self._whole.get(picks.numbers, picks.numbers)
            if node.meta["val"].dtype is torch.bool:
                node = self.call(aten.to.dtype, self.call(aten.reshape.default, node, [-1]), torch.int64)
            return node if node.meta["val"].device == device else self.call(aten.to.device, node, device, torch.int64)
        parts, first = [], cast(Size, 0)
        for part in picks.numbers:
            behind = size_of(first + kept_size(part))
            numbers = self.call(aten.arange.start, self.size(first), self.size(behind), device=device)
            parts.append(self._convert(numbers, (part,), (plain(extent(part)),)))
            first = behind
        return self.call(aten.cat.default, parts)

    def _unpicked(self, small: fx.Node, have: Layout, want: Layout) -> tuple[fx.Node, Layout]:
        """Write out what is picked, along the axes on which ``want`` has it written out."""
        for dim, wanted in enumerate(want):
            while have[dim] != wanted and is_picked(have[dim]):
                place, picks = next((place, f.picks) for place, f in enumerate(have[dim]) if f.picks is not None)
                number = self._number_of(picks, small.meta["val"].device)
                sizes = list(map(kept, have[dim]))
                full = (*have[dim][:place], *plain(have[dim][place].size), *have[dim][place + 1 :])
                have = replaced(have, dim, axis(full))
                small = self._picked(small, dim, sizes, place, number)
        return small, have

    def _picked(self, small: fx.Node, dim: int, sizes: list[Size], place: int, number: fx.Node) -> fx.Node:
        """``small`` with the factor at ``place``, of the factors of ``sizes`` along ``dim``, taken by its numbers."""
        before = list(shape_of(small.meta["val"]))
        if len(sizes) > 1:
            small = self._reshaped(small, [*before[:dim], *sizes, *before[dim + 1 :]])
        small = self.call(aten.index.Tensor, small, [*[None] * (dim + place), number])
        if len(sizes) > 1:
            length = shape_of(small.meta["val"])[dim + place]
            joined = product([*sizes[:place], length, *sizes[place + 1 :]])
            small = self._reshaped(small, [*before[:dim], joined, *before[dim + 1 :]])
        return small

    def _reshaped(self, value: fx.Node, sizes: Iterable[Size]) -> fx.Node:
        return self.call(aten.reshape.default, value, [self.size(size) for size in sizes])

    def _convert(self, small: fx.Node, have: Layout, want: Layout) -> fx.Node:
        """Write out the repetition that ``have`` has and ``want`` has not, by ``repeat_interleave`` or by expanding."""
        small, have = self._unpicked(small, have, want)
        if have == want:
            return small
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
            value = self._reshaped(value, [kept_size(w) for w in want])
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
