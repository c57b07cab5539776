"""A graph below a list of entries, restricted to those that are kept.

Every value below holds afterwards what it held at the places of kept entries, and nothing else has changed: where
values are computed one by one nothing has to be known of what they mean. Only attention looks across entries, and
attends to those that are left.
"""

from __future__ import annotations

import operator
from typing import Any

import sympy
import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.passes.adaptive_context.kept_entries.calls import Call, Refused
from lightint_compile.passes.adaptive_context.kept_entries.lengths import Lengths, Untold
from lightint_compile.passes.adaptive_context.kept_entries.pulling import Pulling
from lightint_compile.passes.adaptive_context.kept_entries.runs import ENTRIES, Axis, Runs, extent, is_free
from lightint_compile.passes.analysis.axes.movement import Movement, Ref
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.ir.effects import is_pure
from lightint_compile.passes.ir.fake_values import Size, another, described, evaluated, shape_of, size_of
from lightint_compile.passes.ir.op_arguments import results_in
from lightint_compile.passes.ir.program import Program, fake_mode_of
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.sizes import same

aten = torch.ops.aten


class Restriction:
    """Restricts what is computed from ``entries`` [n].

    Args:
        entries: a list of which some may be left out: numbers of frames.
        kept: the places [u] of those that are kept, computed in front of every use of ``entries``.
    """

    def __init__(self, program: Program, rewriter: Rewriter, entries: fx.Node, kept: fx.Node) -> None:
        self._program, self._rewriter, self._entries, self._kept = program, rewriter, entries, kept
        count = entries.meta["val"].shape[0]
        assert isinstance(count, int)
        self._count = count
        #: Of every axis of a value its runs, where some of it belongs to entries; of several values, a list of these.
        self._forms: dict[fx.Node, Any] = {entries: (ENTRIES,)}
        self._old: dict[fx.Node, Any] = {entries: entries.meta["val"]}
        self._known: dict[Any, Any] = {}

    def apply(self) -> int:
        """Rewrite the graph; how many calls follow what is kept.

        Raises:
            Refused: something depends on the entries in a way that cannot be followed. The graph is half rewritten.
        """
        below = self._below()
        movements = {node: self._movement(node) for node in below}
        picked = self._pick()
        self._lengths = Lengths(self._program, self._rewriter, self._kept, picked, self._count)
        self._pulling = Pulling(self._rewriter, self._lengths, {*below, picked}, self._count)
        for node in below:
            try:
                self._follow(node, movements[node])
            except Untold as untold:
                raise Refused(node, str(untold)) from untold
        self._check_results()
        self._program.changed()
        return len(below)

    def _below(self) -> list[fx.Node]:
        reached = {self._entries}
        for node in self._program.graph.nodes:
            if node.op != "output" and any(source in reached for source in node.all_input_nodes):
                reached.add(node)
        return [node for node in self._program.graph.nodes if node in reached and node is not self._entries]

    def _movement(self, node: fx.Node) -> Movement | None:
        if node.target is operator.getitem:
            return None
        if not is_pure(node):
            raise Refused(node, f"{node.target} does more than to compute a value from frames of the memory")
        found = movement_of(node) if node.op == "call_function" else None
        if found is None:
            raise Refused(node, f"nothing says how {node.target} treats the frames of the memory")
        return found

    def _pick(self) -> fx.Node:
        """The entries that are kept, behind both their list and the decision; everything reads these instead."""
        order = {node: place for place, node in enumerate(self._program.graph.nodes)}
        last = max(self._entries, self._kept, key=order.__getitem__)
        early = [user for user in self._entries.users if order[user] < order[last]]
        if early:
            raise Refused(early[0], "the frames of the memory are read before it can be decided which of them are kept")
        with self._rewriter.at(last, rule="kept-frames", after=True, like=self._entries):
            picked = self._rewriter.call(aten.index_select.default, self._entries, 0, self._kept)
        self._entries.replace_all_uses_with(picked, lambda user: user is not picked, propagate_meta=False)
        return picked

    # --- one call ---------------------------------------------------------------------------------------------------

    def _follow(self, node: fx.Node, movement: Movement | None) -> None:
        self._old[node] = node.meta["val"]
        if movement is None:
            source, place = node.args
            forms = self._forms.get(source)  # type: ignore[arg-type]
            self._forms[node] = forms[place] if forms is not None else None
        else:
            call = Call(self, node, movement)
            outputs = call.outputs()
            for operand, new in call.operands(self._pulling).items():
                node.replace_input_with(operand, new)
            call.tell_sizes(outputs, self._lengths)
            many = isinstance(node.meta["val"], (tuple, list))
            self._forms[node] = [tuple(each) for each in outputs] if many else tuple(outputs[0])
        node.meta["val"] = self._value(node)
        self._check(node)

    def _value(self, node: fx.Node) -> Any:
        key = (node.target, described(node.args), described(node.kwargs))
        if key not in self._known:
            mode = fake_mode_of(self._program.graph.nodes)
            self._known[key] = evaluated(node.target, node.args, node.kwargs, mode)
        node.target, value = self._known[key]
        return another(value)

    def _check(self, node: fx.Node) -> None:
        """Every axis is as long as its runs say: what was followed and what PyTorch computes are the same."""
        kept = size_of(self._kept.meta["val"].shape[0])
        forms = self._forms[node] if isinstance(node.meta["val"], (tuple, list)) else [self._forms[node]]
        for own, new, old in zip(forms, results_in(node), pytree.tree_leaves(self._old[node]), strict=True):
            for axis, (size, before) in enumerate(zip(shape_of(new), shape_of(old), strict=True)):
                runs = None if own is None else own[axis]
                expected = before if runs is None else extent(runs, kept)
                if not same(sympy.sympify(size), sympy.sympify(expected)):
                    raise Refused(node, f"its axis {axis} is {size} long, where {expected} were to be followed")

    def _check_results(self) -> None:
        output = self._program.graph.output_node()
        for node in output.all_input_nodes:
            if any(not is_free(runs) for runs in self._forms.get(node) or () if runs is not None):
                raise Refused(node, "a result has values for every frame of the memory")

    # --- what calls ask ---------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Entries there are."""
        return self._count

    def form(self, ref: Ref) -> Runs | None:
        """The runs of an operand's axis."""
        forms = self._forms.get(ref.node)
        return None if forms is None else forms[ref.axis]

    def axis(self, ref: Ref) -> Axis:
        """The runs of an operand's axis, or its size."""
        return self.form(ref) or self.size(ref)

    def size(self, ref: Ref) -> Size:
        """The length of an operand's axis with all entries."""
        return self.shape(ref.node)[ref.axis]

    def shape(self, node: fx.Node) -> tuple[Size, ...]:
        """The sizes of a tensor with all entries."""
        found = self._old.get(node, node.meta["val"])
        assert isinstance(found, torch.Tensor)
        return shape_of(found)
