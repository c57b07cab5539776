"""A decision on context that arrives as an input: every input with one entry a frame is read at the chosen frames."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.adaptive_context.context_input import ContextInput
from lightint_compile.passes.analysis.world import FRAMES
from lightint_compile.passes.ir.chunk_plan import first_place, insert_plan
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.fresh_sizes import Resize, check_unconditional, fresh_size
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.rewriter import Rewriter

aten = torch.ops.aten


def decide_on_input(
    program: Program, given: ContextInput, policy: Policy, intrinsics: fx.Node | None
) -> dict[str, Any]:
    """Insert the plan and the reads, and rename sizes below them; gives what is worth a remark.

    Raises:
        PassError: something follows the number of context frames without being read at the chosen ones.
    """
    size = fresh_size(program, "context_frames", policy.memory, policy.typical_context)
    renames = {symbol: size + more for symbol, more in given.lengths.items()}
    check_unconditional(renames, given.context)
    subset = _Subset(program, given)
    index = subset.plan(policy, size, intrinsics)
    reads = [subset.read(node, axis, chunk) for node, axis, chunk in given.per_frame]
    counts = subset.counts()
    renamed = Resize(program, renames).below([index, *reads, *counts])
    return {"inputs": [entry.node.name for entry in given.per_frame], "nodes_renamed": renamed}


class _Subset:
    """Writes the new front of a graph, one node after another."""

    def __init__(self, program: Program, given: ContextInput) -> None:
        self._program, self._given, self._graph = program, given, program.graph
        self._rewriter = Rewriter(program, "adaptive-context")
        self._place = first_place(self._graph, tuple(program.placeholders()))
        self._own: set[fx.Node] = set()
        self._both: fx.Node | None = None

    def plan(self, policy: Policy, size: torch.SymInt, intrinsics: fx.Node | None) -> fx.Node:
        """The decision; gives the positions [u] of the chosen frames."""
        given = self._given
        cameras = given.cameras
        if given.coming is not None:
            cameras = self._call(aten.cat.default, [given.cameras, given.coming], -3)
        self._frames = self._call(aten.sym_size.int, given.context, FRAMES)
        self._after = self._call(aten.arange.default, policy.chunk, device=given.context.meta["val"].device)
        positions = self._after.meta["val"]
        self._index = insert_plan(
            self._program, policy, (cameras, given.context), size, positions, intrinsics=intrinsics
        )
        self._own |= {self._index, *self._index.all_input_nodes}
        self._count = self._call(aten.sym_size.int, self._index, 0)
        return self._index

    def read(self, node: fx.Node, axis: int, chunk: bool) -> fx.Node:
        """An input at the chosen frames, and at those of the chunk where they follow; everything reads that instead."""
        read = self._call(aten.index_select.default, node, axis, self._with_chunk() if chunk else self._index)
        node.replace_all_uses_with(read, delete_user_cb=lambda user: user not in self._own, propagate_meta=False)
        return read

    def counts(self) -> list[fx.Node]:
        """Numbers of frames that the capture took as arguments, from the number of chosen frames instead."""
        made = [self._count]
        for node in self._program.placeholders():
            more = self._given.lengths.beyond(node.meta["val"]) if _is_size(node) else None
            if more is not None and node.users:
                made.append(self._call(operator.add, self._count, more) if more else self._count)
                node.replace_all_uses_with(made[-1], propagate_meta=False)
        return made

    def _with_chunk(self) -> fx.Node:
        if self._both is None:
            following = self._call(aten.add.Tensor, self._after, self._frames)
            self._both = self._call(aten.cat.default, [self._index, following])
        return self._both

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with self._graph.inserting_before(self._place):
            node = self._rewriter.call(target, *args, **kwargs)
        self._own.add(node)
        return node


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta["val"], torch.SymInt)
