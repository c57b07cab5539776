"""distinct-rows: of an input with a value a token, the rows that differ are found in every call."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from lightint_compile.passes.analysis.per_token import PerToken, per_token_inputs
from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.ir.chunk_plan import first_place
from lightint_compile.passes.ir.decision_points import DecisionPoint, RowsPoint, is_outlined
from lightint_compile.passes.ir.fresh_sizes import bounds, fresh_size
from lightint_compile.passes.ir.program import Program, fake_mode_of
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind, at
from lightint_compile.passes.ir.rewriter import Rewriter

aten = torch.ops.aten

POINT = "distinct_rows"
"""The name of the point that is asked, and of its module."""

FEWEST = 64
"""Rows from which on the question is worth its answer: a video has fewer latent frames, and an image more tokens."""

TYPICAL = 2
"""Rows that a report counts with: those of a clean first frame or context, and the rest."""

_MOST = 1 << 30
"""Rows of an input whose number has no bound."""


@dataclass(frozen=True, kw_only=True)
class DistinctRows(Pass):
    """Asks the driver which rows of a per-token timestep differ, and picks all rows from these.

    Models that keep a first frame or a context clean are given a timestep for every token: thousands of values, two of
    which differ. The embedding of a number and the products behind it then run on the rows there are
    (:class:`~passes.sink_row_repeats.SinkRowRepeats`, which has to follow). Any number of rows may differ.
    """

    name: ClassVar[str] = "distinct-rows"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, program: Program) -> PassResult:
        """See :meth:`~passes.base.Pass.run`."""
        if POINT in dict(program.graph_module.named_children()) or is_outlined(program.graph_module, program.graph):
            return PassResult(False)
        inputs = list(per_token_inputs(program, FEWEST))
        found = [each for each in inputs if each.is_worth]
        remarks = [_applied(each) if each.is_worth else _missed(each) for each in inputs]
        if found:
            _ask(program, found)
        return PassResult(bool(found), tuple(remarks))


def _ask(program: Program, found: Sequence[PerToken]) -> None:
    point = DecisionPoint(RowsPoint(tuple(each.axis for each in found)))
    program.graph_module.add_submodule(POINT, point)
    nodes = tuple(each.node for each in found)
    with program.graph.inserting_before(first_place(program.graph, nodes)):
        asked = program.graph.call_module(POINT, nodes)
        elements = [program.graph.call_function(operator.getitem, (asked, place)) for place in range(2 * len(found))]
    values = [value for number, each in enumerate(found) for value in _numbers(program, each, number)]
    asked.meta["val"] = tuple(values)
    for element, value in zip(elements, values, strict=True):
        element.meta["val"] = value
    rewriter = Rewriter(program, DistinctRows.name)
    for each, first, number in zip(found, elements[::2], elements[1::2], strict=True):
        with rewriter.at(elements[-1].next, rule="rows"):
            few = rewriter.call(aten.index_select.default, each.node, each.axis, first)
            rows = rewriter.call(aten.index_select.default, few, each.axis, number)
        for reader in each.readers:
            reader.replace_input_with(each.node, rows)


def _numbers(program: Program, each: PerToken, place: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fake values of the first of every run of rows, and of the run of every row."""
    length = each.tensor.shape[each.axis]
    most = bounds(length)[1] if isinstance(length, torch.SymInt) else int(length)
    size = fresh_size(program, f"rows_{place}", min(most or _MOST, _MOST), TYPICAL)
    with fake_mode_of(program.graph.nodes):
        return tuple(torch.empty((rows,), dtype=torch.int64, device=each.tensor.device) for rows in (size, length))  # type: ignore[return-value]


def _applied(each: PerToken) -> Remark:
    told = "those that differ are found in every call, by one small read"
    return Remark(
        kind=RemarkKind.APPLIED,
        pass_name=DistinctRows.name,
        rule="per-token-input",
        message=f"{each.path} has {each.rows} rows, one a token: {told}",
        args={"input": each.path, "rows": each.rows, "counted_with": TYPICAL},
        numerics=Numerics.EXACT,
    )


def _missed(each: PerToken) -> Remark:
    assert each.blocked is not None
    node, reason, flops = each.blocked
    return Remark(
        kind=RemarkKind.MISSED,
        pass_name=DistinctRows.name,
        rule="per-token-input",
        message=f"the rows of {each.path} are told apart up to {node.target} and no further: {reason}",
        hint=f"compute what follows {node.target} row by row",
        flops_before=flops,
        **at(node),
    )
