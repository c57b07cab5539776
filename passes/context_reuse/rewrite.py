"""The rewrite: rows for the fresh frames, kept values in front of them, positions over both."""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.context_reuse.cuts import Cut
from lightint_compile.passes.context_reuse.fresh_rows import counts_frames
from lightint_compile.passes.context_reuse.scope import Scope, sources
from lightint_compile.passes.ir.decision_points import (
    DecisionPoint,
    KeepPoint,
    PlanPoint,
    RecallPoint,
    point_of,
)
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.fake_values import refresh
from lightint_compile.passes.ir.fresh_sizes import Resize, fresh_size
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.rewriter import KEPT_META, Rewriter

aten = torch.ops.aten


class Reuse:
    """Rewrites a program so that ``rows`` run for fresh frames and ``cuts`` are joined with what was kept.

    Args:
        inputs: what kept values depend on besides the frames.
        policy: that of the plan from now on.
    """

    def __init__(
        self,
        program: Program,
        scope: Scope,
        cuts: Sequence[Cut],
        rows: Sequence[fx.Node],
        inputs: Sequence[fx.Node],
        policy: Policy,
        pass_name: str,
    ) -> None:
        self._program, self._scope, self._cuts, self._rows = program, scope, cuts, rows
        self._inputs, self._policy = inputs, policy
        self._rewriter = Rewriter(program, pass_name)

    def rewrite(self) -> None:
        """Do it."""
        graph = self._program.graph
        fresh, counts = self._plan()
        made = self._copied(fresh, counts)
        joined = []
        for site, cut in enumerate(self._cuts):
            new = self._joined(site, cut, made[cut.node], counts)
            for user in [user for user in cut.node.users if user not in made]:
                user.replace_input_with(cut.node, new)
            joined.append(new)
        for node in reversed(self._rows):
            if not node.users:
                graph.erase_node(node)
        refresh(self._program, joined)

    def _plan(self) -> tuple[fx.Node, _Counts]:
        """The plan says which frames are fresh; it looks at all that tells whether a frame is the one that was kept."""
        root, plan = self._program.graph_module, self._scope.plan
        frames = sources(self._scope)
        spec = point_of(root, plan)
        assert isinstance(spec, PlanPoint)
        spec = dataclasses.replace(spec, policy=self._policy, frame_axes=tuple(axis for _, axis in frames))
        root.add_submodule(str(plan.target), DecisionPoint(spec))
        plan.args = (*plan.args[:2], tuple(node for node, _ in frames), tuple(self._inputs))
        newest = self._policy.clip  # what a typical chunk computes; costs are weighed by it
        size = fresh_size(self._program, "fresh_frames", self._policy.memory, newest)
        index = self._scope.index
        with root.graph.inserting_after(index):
            fresh = root.graph.call_function(operator.getitem, (plan, 2))
        fresh.meta.update({key: index.meta[key] for key in KEPT_META if key in index.meta})
        with self._mode(index):
            value = index.meta["val"]
            fresh.meta["val"] = torch.empty((size,), dtype=value.dtype, device=value.device)
        with self._rewriter.at(fresh, rule="frames", after=True):
            kept = self._rewriter.call(
                operator.sub,
                self._rewriter.call(aten.sym_size.int, index, 0),
                self._rewriter.call(aten.sym_size.int, fresh, 0),
            )
        self._in_order([kept.args[0], kept.args[1], kept], fresh)
        slots = self._slots_of(plan, fresh, kept)
        plan.meta["val"] = (index.meta["val"], None, fresh.meta["val"], slots.meta["val"])
        return fresh, _Counts(kept.args[0], kept, slots)  # type: ignore[arg-type]

    def _slots_of(self, plan: fx.Node, fresh: fx.Node, kept: fx.Node) -> fx.Node:
        """Where the kept frames are, the same for every site."""
        with self._program.graph.inserting_after(fresh):
            slots = self._program.graph.call_function(operator.getitem, (plan, 3))
        slots.meta.update({key: fresh.meta[key] for key in KEPT_META if key in fresh.meta})
        with self._mode(fresh):
            value = fresh.meta["val"]
            slots.meta["val"] = torch.empty((kept.meta["val"],), dtype=value.dtype, device=value.device)
        return slots

    def _in_order(self, nodes: Sequence[Any], after: fx.Node) -> None:
        for node in nodes:
            after.append(node)
            after = node

    def _mode(self, node: fx.Node) -> Any:
        return node.meta["val"].fake_mode

    def _copied(self, fresh: fx.Node, counts: _Counts) -> dict[fx.Node, fx.Node]:
        """``rows`` again, for fresh frames: the choice is the fresh ones, and their places are the last."""
        graph, index = self._program.graph, self._scope.index
        resize = Resize(self._program, {self._scope.size: fresh.meta["val"].shape[0]})
        made = {index: fresh}
        for node in self._rows:
            with graph.inserting_before(node):
                copied = made[node] = graph.node_copy(node, lambda old: made.get(old, old))
            copied.meta = copy.copy(node.meta)
            copied.meta["val"] = resize.renamed(node.meta["val"])
            if counts_frames(node, self._scope):
                copied.target, copied.args = aten.arange.start, (counts.kept, counts.all)
        del made[index]
        return made

    def _joined(self, site: int, cut: Cut, fresh: fx.Node, counts: _Counts) -> fx.Node:
        """What was kept and what is fresh, as the keys or values of all context frames."""
        self._keep(site, cut, fresh)
        kept = self._recalled(site, cut, fresh, counts)
        with self._rewriter.at(fresh, rule="keep", after=True):
            joined = self._rewriter.call(aten.cat.default, [kept, fresh], cut.axis)
        kept.append(joined)
        return joined

    def _keep(self, site: int, cut: Cut, fresh: fx.Node) -> None:
        point = KeepPoint(site, len(self._cuts), cut.axis, cut.frame_tokens)
        self._call(f"keep_{site}", point, (self._record, fresh), fresh).meta["val"] = None

    def _recalled(self, site: int, cut: Cut, fresh: fx.Node, counts: _Counts) -> fx.Node:
        """Kept values out of their slots; the axes of a frame are apart so that their grid is known, then flattened."""
        value, tail = fresh.meta["val"], len(cut.plane)
        sizes: list[Any] = [*value.shape[: cut.axis], None, *cut.plane, *value.shape[cut.axis + 1 :]]
        with self._rewriter.at(fresh, rule="keep", after=True):
            extents = {
                dim: self._rewriter.call(aten.sym_size.int, fresh, dim if dim < cut.axis else dim - tail)
                for dim, size in enumerate(sizes)
                if isinstance(size, torch.SymInt)
            }
            tokens = self._rewriter.call(operator.mul, counts.kept, cut.frame_tokens)
        shape = tuple(-1 if dim in extents else size for dim, size in enumerate(sizes))
        point = RecallPoint(site, shape, self._policy.slots, str(value.dtype).removeprefix("torch."), str(value.device))
        recalled = self._call(f"recall_{site}", point, (self._record, *extents.values()), fresh)
        real = [self._policy.slots if size is None else size for size in sizes]
        with self._mode(fresh):
            recalled.meta["val"] = torch.empty_strided(real, _strides(real), dtype=value.dtype, device=value.device)
        flat = [*(extents.get(dim, size) for dim, size in enumerate(sizes[: cut.axis])), tokens]
        flat += [extents.get(dim, sizes[dim]) for dim in range(cut.axis + 1 + tail, len(sizes))]
        with self._rewriter.at(fresh, rule="keep", after=True):
            picked = self._rewriter.call(aten.index_select.default, recalled, cut.axis, counts.slots)
            viewed = self._rewriter.call(aten.view.default, picked, flat)
        self._in_order([*extents.values(), tokens, recalled, picked, viewed], fresh)
        return viewed

    @property
    def _record(self) -> fx.Node:
        """The record of the plan, as a node."""
        plan, graph = self._scope.plan, self._program.graph
        for user in plan.users:
            if user.args[1:] == (1,):
                return user
        with graph.inserting_after(plan):
            record = graph.call_function(operator.getitem, (plan, 1))
        record.meta["val"] = None
        return record

    def _call(self, name: str, point: KeepPoint | RecallPoint, args: tuple[Any, ...], fresh: fx.Node) -> fx.Node:
        self._program.graph_module.add_submodule(name, DecisionPoint(point))
        with self._program.graph.inserting_after(fresh):
            return self._program.graph.create_node("call_module", name, args, name=name)


class _Counts:
    """Context frames as nodes: how many there are, how many in front are kept, and in which slots."""

    def __init__(self, everything: fx.Node, kept: fx.Node, slots: fx.Node) -> None:
        self.all, self.kept, self.slots = everything, kept, slots


def _strides(sizes: Sequence[Any]) -> list[Any]:
    """Contiguous strides as products of sizes, also where one of them turns out to be 0."""
    strides: list[Any] = []
    step: Any = 1
    for size in reversed(sizes):
        strides.insert(0, step)
        step = step * size
    return strides


def inputs_of(program: Program, cuts: Sequence[Cut], scope: Scope) -> list[fx.Node]:
    """The tensors that kept values depend on besides what belongs to a frame: text, weights."""
    known = {node for node, _ in sources(scope)} | {scope.plan}
    starts = (cut.node for cut in cuts if cut.node not in known)
    found = reached(starts, lambda node: (source for source in node.all_input_nodes if source not in known))
    return [node for node in program.placeholders() if node in found and isinstance(node.meta.get("val"), torch.Tensor)]


def policy_of(program: Program, plan: fx.Node) -> Policy:
    """The policy of a plan."""
    spec = point_of(program.graph_module, plan)
    assert isinstance(spec, PlanPoint)
    return spec.policy


def placed_before(graph: fx.Graph, nodes: Mapping[fx.Node, Any] | Sequence[fx.Node], place: fx.Node) -> bool:
    """Whether all of ``nodes`` come before ``place``."""
    waiting = set(nodes)
    for node in graph.nodes:
        if node is place:
            return not waiting
        waiting.discard(node)
    return False
