"""Lengths of axes with entries, and the places of the values that are kept, as nodes of a graph."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.adaptive_context.kept_entries.runs import Runs, extent
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.frame_numbers import number_node
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.sizes import total

aten = torch.ops.aten


class Untold(Exception):  # noqa: N818 - an answer, no error
    """A size that the inputs of the program do not tell."""


class Lengths:
    """Nodes in front of ``anchor`` that say how long an axis is, and which of its values are kept.

    Args:
        kept: the places [u] of the entries that are kept, int64.
        anchor: what every node that needs a length comes behind.
        entries: how many there are to keep from.
    """

    def __init__(self, program: Program, rewriter: Rewriter, kept: fx.Node, anchor: fx.Node, entries: int) -> None:
        self._program, self._rewriter, self._kept, self._anchor = program, rewriter, kept, anchor
        self._entries = entries
        self._numbers: dict[Size, Any] = {}
        self._lengths: dict[Runs, Any] = {}
        self._places: dict[Runs, fx.Node] = {}
        self.count = self._call(aten.sym_size.int, kept, 0)

    def of(self, runs: Runs) -> Any:
        """The number of values along an axis, a node or a number."""
        if runs not in self._lengths:
            fixed = total(run.size for run in runs.runs if not run.of_entries)
            each = total(run.size for run in runs.runs if run.of_entries)
            length = self._sum(self.number(fixed), self._times(self.number(each), self.count))
            self._lengths[runs] = self._times(self.number(runs.outer), length)
        return self._lengths[runs]

    def number(self, size: Size) -> Any:
        """A size that does not depend on what is kept, a node or a number.

        Raises:
            Untold: the inputs do not tell it.
        """
        if size not in self._numbers:
            found = number_node(self._program, size, self._call)
            if found is None:
                raise Untold(f"the size {size} cannot be told from the inputs")
            self._numbers[size] = found
        return self._numbers[size]

    def places(self, runs: Runs) -> fx.Node:
        """The places of the kept values among all, int64 [length]."""
        if runs not in self._places:
            self._places[runs] = self._placed(runs)
        return self._places[runs]

    def _placed(self, runs: Runs) -> fx.Node:
        parts: list[fx.Node] = []
        start: Size = 0
        for run in runs.runs:
            parts.append(self._of_entries(run.size, start) if run.of_entries else self._range(start, run.size))
            start = total([start, extent(Runs((run,)), self._entries)])
        found = self._call(aten.cat.default, parts) if len(parts) > 1 else parts[0]
        if runs.outer == 1:
            return found
        times = self._call(aten.mul.Tensor, self._range(0, runs.outer), self.number(start))
        return self._flat(self._call(aten.add.Tensor, self._call(aten.unsqueeze.default, times, 1), found))

    def _of_entries(self, each: Size, start: Size) -> fx.Node:
        """The places of the values of kept entries, of which every one has ``each``."""
        first = self._kept if each == 1 else self._call(aten.mul.Tensor, self._kept, self.number(each))
        if start != 0:
            first = self._call(aten.add.Tensor, first, self.number(start))
        if each == 1:
            return first
        return self._flat(
            self._call(aten.add.Tensor, self._call(aten.unsqueeze.default, first, 1), self._range(0, each))
        )

    def _range(self, start: Size, count: Size) -> fx.Node:
        device = self._kept.meta["val"].device
        bounds = self.number(start), self.number(total([start, count]))
        return self._call(aten.arange.start, *bounds, dtype=torch.int64, device=device)

    def _flat(self, of: fx.Node) -> fx.Node:
        return self._call(aten.reshape.default, of, [-1])

    def _times(self, left: Any, right: Any) -> Any:
        if 1 in (left, right) or 0 in (left, right):
            return right if left == 1 else left if right == 1 else 0
        return self._call(operator.mul, left, right) if _is_node(left, right) else left * right

    def _sum(self, left: Any, right: Any) -> Any:
        if 0 in (left, right):
            return right if left == 0 else left
        return self._call(operator.add, left, right) if _is_node(left, right) else left + right

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with self._rewriter.at(self._anchor, rule="kept-frames"):
            return self._rewriter.call(target, *args, **kwargs)


def _is_node(*values: Any) -> bool:
    return any(isinstance(value, fx.Node) for value in values)
