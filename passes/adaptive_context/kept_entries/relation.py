"""Whether values that meet the entries nowhere stand for them all the same: as keys of an attention over them do."""

from __future__ import annotations

import operator

import torch.fx as fx

from lightint_compile.passes.adaptive_context.kept_entries.runs import Axis, Runs, cut, divided, regrouped
from lightint_compile.passes.analysis.axes.attention import dialect_of
from lightint_compile.passes.analysis.axes.movement import Along, Joined, Ref, Times
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.ir.op_arguments import sizes_of


def stands_for(node: fx.Node, axis: int, runs: Runs, entries: int) -> bool:
    """Whether an axis is joined from parts of which one has the values of entries alone, and nothing else."""
    seen: set[tuple[fx.Node, int, Runs]] = set()
    pending = [(Ref(node, axis), runs)]
    while pending:
        ref, own = pending.pop()
        if (*ref, own) in seen or ref.node.op != "call_function" or dialect_of(ref.node) is not None:
            continue
        seen.add((*ref, own))
        found = _sources(ref, own, entries)
        if found is None:
            return True
        pending.extend(found)
    return False


def _sources(ref: Ref, runs: Runs, entries: int) -> list[tuple[Ref, Runs]] | None:
    """The axes that an axis comes from, with their runs; ``None`` where it is joined from the runs themselves."""
    node, place = ref.node, 0
    if node.target is operator.getitem:
        node, place = node.args  # type: ignore[assignment]
    movement = movement_of(node)
    if movement is None:
        return []
    if movement.regroups is not None:
        axes: list[Axis] = list(sizes_of(node))
        axes[ref.axis] = runs
        before = regrouped(axes, sizes_of(movement.regroups), entries) or []
        return [(Ref(movement.regroups, axis), own) for axis, own in enumerate(before) if isinstance(own, Runs)]
    way = movement.outputs[place][ref.axis]
    if isinstance(way, Joined):
        parts = cut(runs, [sizes_of(each.node)[each.axis] for each in way.refs], entries) or []
        apart = len(parts) > 1 and all(len({run.of_entries for run in part.runs}) == 1 for part in parts)
        return None if apart else []
    if isinstance(way, Times) and way.ref is not None and not way.outside:
        inner = divided(runs, way.copies)
        return [] if inner is None else [(way.ref, inner)]
    wide = [each for each in way.refs if sizes_of(each.node)[each.axis] != 1] if isinstance(way, Along) else []
    return [(each, runs) for each in wide]
