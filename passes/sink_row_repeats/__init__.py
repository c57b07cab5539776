"""``rowwise_op(repeat(x))`` becomes ``repeat(rowwise_op(x))``: what depends on the frame only is computed once a frame.

World models condition every token on its frame: timestep, action and camera are repeated to all tokens of the frame and
then run through linears, norms and small matrix products. The values are those of the frame, so the work is done
``tokens_per_frame`` times over. The rewrite moves the repetition after that work, to where rows start to differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import Picks, extent
from lightint_compile.passes.analysis.axes.plans import Blocked
from lightint_compile.passes.analysis.per_token import PerToken, per_token_inputs
from lightint_compile.passes.analysis.row_repeats.analysis import Analysis, analyse
from lightint_compile.passes.analysis.row_repeats.layout import describe, kept_size, picks_of, repeats
from lightint_compile.passes.analysis.row_repeats.needs import lost_products, needed
from lightint_compile.passes.analysis.row_repeats.picks import every
from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.ir.fake_values import refresh
from lightint_compile.passes.ir.flops import flops_of
from lightint_compile.passes.ir.fresh_sizes import is_decided
from lightint_compile.passes.ir.looks import Looks
from lightint_compile.passes.ir.memory_sharing import alias_source, output_memory
from lightint_compile.passes.ir.node_queries import is_element
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind, at
from lightint_compile.passes.sink_row_repeats.emit import Emission

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class SinkRowRepeats(Pass):
    """Moves repetitions along an axis past the rowwise operations that follow, so that these run on fewer rows.

    Spellings seen in practice: ``repeat_interleave``, ``repeat``, ``expand`` with a reshape, an index that repeats.
    Values are those of the same operations on fewer rows.

    Attributes:
        report_inputs: also say which inputs are given a row a token and would be cheaper a row a frame.
    """

    name: ClassVar[str] = "sink-row-repeats"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    report_inputs: bool = True

    def run(self, program: Program) -> PassResult:
        """See :meth:`~passes.base.Pass.run`."""
        looks = program.memory(Looks)
        supposed = analyse(program.graph, picks=every, looks=looks)
        worth = _worth_following(program.graph, supposed)
        analysis = supposed
        if worth != _picks(supposed):
            analysis = analyse(program.graph, picks=worth.__contains__, like=supposed, looks=looks)
        ends = _ends(program.graph, analysis)
        remarks = list(_missed(program, supposed))
        if ends:
            remarks = [*_rewrite(program, analysis, ends), *remarks]
        if self.report_inputs:
            remarks.extend(_per_token(each) for each in per_token_inputs(program) if each.is_worth)
        return PassResult(bool(ends), tuple(remarks))


def _picks(analysis: Analysis, nodes: Iterable[fx.Node] | None = None) -> set[Picks]:
    """What some nodes are picked from, or any."""
    layouts = [analysis.sunk[node].plan.result for node in (analysis.sunk if nodes is None else nodes)]
    return {picks for layout in layouts for entry in layout for picks in picks_of(entry)}


def _worth_following(graph: fx.Graph, supposed: Analysis) -> set[Picks]:
    """Of all picks those on whose rows products run; elementwise work on fewer rows does not pay for an index."""
    return _picks(supposed, filter(flops_of, needed(_ends(graph, supposed), supposed)))


def _ends(graph: fx.Graph, analysis: Analysis) -> list[fx.Node]:
    """Values computed on repeated rows that something reads with every row written out, in graph order.

    A view that the caller gets stays one: it shares memory with what it views, as it did.
    """
    returned = {node for node in output_memory(graph) if alias_source(node) is not None}
    returned |= {node.all_input_nodes[0] for node in returned if is_element(node)}

    def reads_all(user: fx.Node, node: fx.Node) -> bool:
        operands = analysis.sunk[user].plan.operands if user in analysis.sunk and user not in returned else {}
        return not repeats(operands.get(node, ()))

    return [
        node
        for node in graph.nodes
        if node in analysis.sunk
        and node not in returned
        and analysis.sunk[node].works
        and tensor_of(node) is not None
        and any(reads_all(user, node) for user in node.users)
    ]


def _rewrite(program: Program, analysis: Analysis, ends: list[fx.Node]) -> list[Remark]:
    emission = Emission(program, analysis, SinkRowRepeats.name)
    wanted = needed(ends, analysis)
    remarks, made, stop, returned = [], [], set(ends), output_memory(program.graph)
    for node in [node for node in program.graph.nodes if node in wanted]:
        small = emission.compute(node, rule=_rule_of(node))
        if flops_of(node):
            remarks.append(_applied(program, node, small, analysis))
        if node in stop:
            made.append(emission.write_out(node, returned=node in returned))
    remarks.extend(_pointwise(ends, analysis))
    emission.erase(ends)
    refresh(program, made)
    return remarks


def _rule_of(node: fx.Node) -> str:
    return str(getattr(node.target, "overloadpacket", node.target)).removeprefix("aten.")


def _applied(program: Program, node: fx.Node, small: fx.Node, analysis: Analysis) -> Remark:
    layout, rule = analysis.sunk[node].plan.result, _rule_of(node)
    before, after = describe(layout, extent), describe(layout, kept_size)
    if any(is_decided(kept_size(entry), program) for entry in layout):
        after = "the distinct"
    return Remark(
        kind=RemarkKind.APPLIED,
        pass_name=SinkRowRepeats.name,
        rule=rule,
        message=f"{rule} runs on {after} rows instead of {before}, and its result is repeated",
        args={"rows_before": before, "rows_after": after},
        flops_before=flops_of(node),
        flops_after=flops_of(small),
        numerics=Numerics.EXACT,
        **at(node),
    )


def _pointwise(ends: list[fx.Node], analysis: Analysis) -> Iterator[Remark]:
    """One remark a place for repeated values with only elementwise arithmetic after them."""
    for node in ends:
        chain = needed([node], analysis)
        if any(flops_of(other) for other in chain):
            continue
        layout = analysis.sunk[node].plan.result
        before, after = describe(layout, extent), describe(layout, kept_size)
        yield Remark(
            kind=RemarkKind.APPLIED,
            pass_name=SinkRowRepeats.name,
            rule="pointwise",
            message=f"elementwise work runs on {after} rows instead of {before}, and its result is repeated",
            args={"rows_before": before, "rows_after": after},
            numerics=Numerics.EXACT,
            **at(node),
        )


def _missed(program: Program, analysis: Analysis) -> Iterator[Remark]:
    """Where repeated rows met an operation that does not keep them apart, and products were lost by that.

    Every pick is followed in ``analysis``: one that ends in front of the first product is a miss as well.
    """
    for node, flops in lost_products(program, analysis, every).items():
        yield _miss(node, analysis.blocked[node], flops)


def _miss(node: fx.Node, blocked: Blocked, flops: int) -> Remark:
    return Remark(
        kind=RemarkKind.MISSED,
        pass_name=SinkRowRepeats.name,
        rule=_rule_of(node),
        message=f"rows repeat up to {node.target} and no further: {blocked.reason}",
        hint=f"compute what follows on the rows that differ, and repeat it after {_rule_of(node)}",
        flops_before=flops,
        **at(node),
    )


def _per_token(given: PerToken) -> Remark:
    """What is left to save after the rewrite, where distinct-rows did not ask which rows differ."""
    path = given.path
    return Remark(
        kind=RemarkKind.ANALYSIS,
        pass_name=SinkRowRepeats.name,
        rule="per-token-input",
        message=f"{path} has {given.rows} values, one a token, and its embedding is computed for each",
        hint=f"pass {path} a value a frame and repeat it to tokens inside the model: the embedding then runs on frames",
        args={"input": path, "rows": given.rows},
        flops_before=given.flops,
    )
