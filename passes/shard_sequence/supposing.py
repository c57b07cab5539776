"""What a call reads besides: a value that every rank has is cut like the tokens that it meets."""

from __future__ import annotations

from collections.abc import Mapping

import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import Kind, Layout, extent, holds
from lightint_compile.passes.analysis.axes.movement import Along
from lightint_compile.passes.analysis.axes.plans import Blocked
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.ir.op_arguments import sizes_of
from lightint_compile.passes.ir.sizes import replaced, same
from lightint_compile.passes.shard_sequence.places import is_cut, whole


def supposed(node: fx.Node, reads: Mapping[fx.Node, Layout]) -> dict[fx.Node, Layout] | Blocked:
    """``reads``, and the other operands cut where they are aligned with an axis that is cut."""
    found, movement = dict(reads), movement_of(node)
    if movement is None:
        return found
    for way in movement.ways():
        refs = way.refs if isinstance(way, Along) else ()
        entries = [found[ref.node][ref.axis] for ref in refs if ref.node in found]
        entry = next((entry for entry in entries if holds(entry, Kind.BATCH)), None)
        for ref in refs if entry is not None else ():
            own = found.get(ref.node) or whole(ref.node)
            if holds(own[ref.axis], Kind.BATCH) or same(sizes_of(ref.node)[ref.axis], 1):
                continue
            assert entry is not None
            if is_cut(own) or not same(extent(own[ref.axis]), extent(entry)):
                return Blocked(f"{ref.node.name} is cut in another place")
            found[ref.node] = replaced(own, ref.axis, entry)
    return found
