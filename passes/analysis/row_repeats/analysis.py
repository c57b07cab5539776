"""Which nodes can be computed on rows without their repetition, and how: from front to end, and nothing is changed."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import Kind, Layout, extent, is_same, plain, shared
from lightint_compile.passes.analysis.axes.movement import Joined, Movement, Range
from lightint_compile.passes.analysis.axes.moving import READS_NUMBERS, operand, squeezed
from lightint_compile.passes.analysis.axes.plans import Blocked, Layouts, Plan, operands_of, read_along, results_of
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.analysis.row_repeats.layout import (
    is_full,
    is_picked,
    is_simple,
    kept_size,
    picks_of,
    regroup,
    repeats,
)
from lightint_compile.passes.analysis.row_repeats.picks import Allowed, masked, none, picked
from lightint_compile.passes.ir.effects import draws_random
from lightint_compile.passes.ir.looks import Looks
from lightint_compile.passes.ir.op_arguments import argument, dimension, sizes_of, tensors
from lightint_compile.passes.ir.op_families import Family, takes_rows
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.ir.sizes import replaced

aten = torch.ops.aten

_REPETITIONS = (*Family.INTERLEAVE.value, *Family.REPEAT.value, *Family.EXPAND.value)
_MAY_START = frozenset((*_REPETITIONS, *Family.FILL.value, *Family.INDEX_SELECT.value, aten.index.Tensor))
_UNFOLLOWED = ("attn_mask", "dropout_p", "is_causal", "enable_gqa")
_MIXES = Blocked("another operand differs in every row", mixes=True)


class Sunk(NamedTuple):
    """A node with a small version.

    Attributes:
        plan: how to compute it.
        args, kwargs: the node's arguments when it was analysed; a rewrite changes them underneath.
        seeded: whether a real repetition reaches it; a constant fill alone is not worth a rewrite.
        works: whether arithmetic lies between the repetition and it.
    """

    plan: Plan
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    seeded: bool
    works: bool


@dataclass
class Analysis:
    """Nodes with a small version, and where and why repetition ended otherwise than by meeting other rows."""

    sunk: dict[fx.Node, Sunk] = field(default_factory=dict)
    blocked: dict[fx.Node, Blocked] = field(default_factory=dict)

    def layout(self, node: fx.Node) -> Layout:
        """The layout of a node's value."""
        found = self.sunk.get(node)
        return shared(sizes_of(node)) if found is None else found.plan.result


def analyse(
    graph: fx.Graph,
    given: Mapping[fx.Node, Layout] | None = None,
    picks: Allowed = none,
    like: Analysis | None = None,
    looks: Looks | None = None,
) -> Analysis:
    """Run the rules over ``graph``.

    Args:
        given: layouts of nodes to suppose.
        picks: which picks to follow.
        like: an analysis of the same graph, unchanged since, that followed these picks and maybe more. Where no operand
            differs from it, nothing has to be found again.
        looks: those of the program that ``graph`` is of.
    """
    analysis = Analysis()
    alike = _Alike(Looks() if looks is None else looks, analysis, picks)
    for node, layout in (given or {}).items():
        analysis.sunk[node] = Sunk(Plan((layout,), computes=False), (), {}, seeded=True, works=False)
    for node in graph.nodes:
        if node.op == "call_function" and node not in analysis.sunk:
            if like is not None and _is_as_in(like, node, analysis, picks):
                _take(node, like, analysis)
                continue
            _visit(node, analysis, alike)
        if node not in analysis.sunk and (mask := masked(node, picks)) is not None:
            analysis.sunk[node] = Sunk(mask, node.args, dict(node.kwargs), seeded=True, works=False)
        if like is not None and node in like.sunk and analysis.sunk.get(node) == like.sunk[node]:
            analysis.sunk[node] = like.sunk[node]
    return analysis


def _is_as_in(like: Analysis, node: fx.Node, analysis: Analysis, picks: Allowed) -> bool:
    """Whether a call's operands are those of another analysis, and what it is picked from there is followed here."""
    if any(analysis.sunk.get(operand) is not like.sunk.get(operand) for operand in node.all_input_nodes):
        return False
    found = like.sunk.get(node)
    return found is None or all(
        picks(each) for layout in found.plan.results for entry in layout for each in picks_of(entry)
    )


def _take(node: fx.Node, like: Analysis, analysis: Analysis) -> None:
    if node in like.sunk:
        analysis.sunk[node] = like.sunk[node]
    if node in like.blocked:
        analysis.blocked[node] = like.blocked[node]


def _visit(node: fx.Node, analysis: Analysis, alike: _Alike) -> None:
    reached = [analysis.sunk[o] for o in node.all_input_nodes if o in analysis.sunk]
    if not reached and node.target not in _MAY_START:
        return
    found = alike.apply(node)
    if isinstance(found, Blocked):
        if any(entry.seeded for entry in reached) and not found.mixes:
            analysis.blocked[node] = found
    elif repeats(found.result):
        starts = node.target in _REPETITIONS or any(map(is_picked, found.result))
        seeded = starts or any(entry.seeded for entry in reached)
        works = found.computes or any(entry.works for entry in reached)
        analysis.sunk[node] = Sunk(found, node.args, dict(node.kwargs), seeded, seeded and works)


class _Alike:
    """The rules of one analysis, applied once to all nodes that look alike and whose operands repeat alike.

    A rule reads nothing else of a node, but for operators that read how the numbers that they are given are made. A
    layout may name the node that rows are picked by; that is the same one then.
    """

    def __init__(self, looks: Looks, analysis: Analysis, picks: Allowed) -> None:
        self._looks, self._analysis, self._picks = looks, analysis, picks
        self._found: dict[object, tuple[fx.Node, Plan | Blocked]] = {}
        self._held: dict[int, tuple[Layout, ...]] = {}  # so that no other layouts take their place in memory

    def apply(self, node: fx.Node) -> Plan | Blocked:
        """See :func:`_apply`."""
        if node.target in READS_NUMBERS:
            return _apply(node, self._analysis, self._picks)
        operands = tuple([self._known(operand) for operand in node.all_input_nodes])
        key = self._looks.of(node).call, operands
        if key not in self._found:
            self._found[key] = node, _apply(node, self._analysis, self._picks)
        first, found = self._found[key]
        return found if isinstance(found, Blocked) or first is node else found.of_operands(first, node)

    def _known(self, operand: fx.Node) -> tuple[int, int | None]:
        """An operand's value, and its layouts by identity: those of alike nodes are one object."""
        entry = self._analysis.sunk.get(operand)
        if entry is None:
            return self._looks.value(operand), None
        layouts = entry.plan.results
        self._held[id(layouts)] = layouts
        return self._looks.value(operand), id(layouts)


def _apply(node: fx.Node, analysis: Analysis, picks: Allowed) -> Plan | Blocked:
    if node.target is operator.getitem:
        return _element(node, analysis)
    if draws_random(node):
        return Blocked("it draws random numbers anew for every row")
    movement = movement_of(node)
    if movement is None:
        return Blocked(f"no rule for {node.target}")
    return picked(node, movement, analysis.layout, picks) or _plan(node, movement, analysis.layout)


def _element(node: fx.Node, analysis: Analysis) -> Plan | Blocked:
    """One of several results."""
    parent, number = node.args[:2]
    if parent not in analysis.sunk:
        return Blocked("its parent does not repeat", mixes=True)
    if tensor_of(node) is None:
        return Blocked("the element is not a tensor")
    result = analysis.sunk[parent].plan.results[number]  # type: ignore[index]
    return Plan((result,), {parent: result}, computes=False)  # type: ignore[dict-item]


def _plan(node: fx.Node, movement: Movement, of: Layouts) -> Plan | Blocked:
    """How to make a call on small tensors."""
    if movement.regroups is not None:
        needed, result = regroup(of(movement.regroups), sizes_of(node))
        view = _reshaped(movement.regroups, needed, result)
        return view if repeats(result) else Blocked("the view cuts across the repeated axis")
    if node.target is aten.scaled_dot_product_attention.default and any(argument(node, name) for name in _UNFOLLOWED):
        return Blocked("attention with a mask, dropout, grouped heads, or of a value with itself", mixes=True)
    found = results_of(node, movement, of)
    if isinstance(found, Blocked):
        return found
    if node.target in _REPETITIONS:
        return _repetition(node, found[0], of)
    source, dim = _chosen(node, of)
    if source is not None and node.target in Family.SELECT.value:
        return Plan((found[0],), {source: of(source)}, computes=False, args=(source, dim, 0))
    results = _alike(found)
    if results is None:
        return Blocked("its results have different axes", mixes=True)
    if not any(map(repeats, results)):
        return _lost(node, movement, of)
    if not takes_rows(node.target, kept_size(results[0][0]) if results[0] else 0):
        return Blocked("a product of 8-bit numbers would have too few rows")
    operands = operands_of(movement, results, of, Kind.SAME)
    if operands is None:
        return Blocked("it reads a value in two ways")
    plan = Plan(tuple(results), operands, movement.computes, forwards=source)
    if node.target in Family.FILL.value:  # one value everywhere: as repeated as whatever meets it
        place = 0 if isinstance(node.args[0], (list, tuple)) else 1  # ``new_zeros`` takes a tensor for its dtype first
        return replace(plan, args=replaced(node.args, place, [1] * len(plan.result)), operands={})
    if node.target in Family.SQUEEZE.value:  # an axis that only repeats must stay
        return replace(plan, args=(operand(node), squeezed(node)), target=aten.squeeze.dims)
    return plan


def _alike(results: Sequence[Layout]) -> list[Layout] | None:
    """Several results with the repetition that all of them have; ``None`` where they have different axes."""
    if len(set(map(len, results))) != 1:
        return None
    alike = [len(set(entries)) == 1 for entries in zip(*results, strict=True)]
    return [
        tuple(entry if same else plain(extent(entry)) for entry, same in zip(layout, alike, strict=True))
        for layout in results
    ]


def _chosen(node: fx.Node, of: Layouts) -> tuple[fx.Node | None, int]:
    """The operand of a choice along an axis that is one value, and the axis: any other choice gives the same."""
    if node.target not in (*Family.SELECT.value, *Family.SLICE.value):
        return None, 0
    source = operand(node)
    dim = dimension(node, len(of(source)))
    return source if is_same(of(source)[dim]) else None, dim


def _lost(node: fx.Node, movement: Movement, of: Layouts) -> Blocked:
    """Why nothing of the result repeats."""
    for read, ref in read_along(movement, of, Kind.SAME):
        if read.how:
            return Blocked(read.how.format(f"the repeated axis {ref.axis}"))
    for way in movement.ways():
        if isinstance(way, Joined) and any(not is_full(of(ref.node)[ref.axis]) for ref in way.refs):
            return Blocked("rows that repeat are joined with other rows along the same axis")
        if isinstance(way, Range) and not is_full(of(way.ref.node)[way.ref.axis]):
            return Blocked(f"it selects along the repeated axis {way.ref.axis}")
    return _MIXES if len(tensors(node)) > 1 else Blocked("its operand does not repeat")


# --- calls whose arguments are sizes, or places along an axis --------------------------------------------------------


def _reshaped(source: fx.Node, needed: Layout, result: Layout) -> Plan:
    """A small tensor may need a copy where the large one was a view."""
    sizes = [kept_size(entry) for entry in result]
    return Plan((result,), {source: needed}, computes=False, args=(source, sizes), target=aten.reshape.default)


def _repetition(node: fx.Node, result: Layout, of: Layouts) -> Plan | Blocked:
    """The small tensor is the operand's; leading axes that are new get size one by a view."""
    source = operand(node)
    if not all(map(is_simple, result)):
        return Blocked("the axis is repeated both around and inside its values")
    if len(result) == len(of(source)):
        return Plan((result,), {source: of(source)}, computes=False, forwards=source)
    return _reshaped(source, of(source), result)
