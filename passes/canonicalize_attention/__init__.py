"""Every spelling of attention becomes one node; see docs/passes/canonicalize-attention.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.fx as fx

from lightint_compile.passes.analysis.axes.attention import dialect_of
from lightint_compile.passes.analysis.flex_calls import FlexCall
from lightint_compile.passes.analysis.samples import folded_form
from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.canonicalize_attention.axes import Axes, resolved
from lightint_compile.passes.canonicalize_attention.build import SDPA, GraphBuilder, build
from lightint_compile.passes.canonicalize_attention.check import check
from lightint_compile.passes.canonicalize_attention.flex import is_plain, unmasked
from lightint_compile.passes.canonicalize_attention.fused_calls import fused_site
from lightint_compile.passes.canonicalize_attention.guard import (
    check_mutation,
    inductor_guard,
    near_attention,
    reshape_views,
)
from lightint_compile.passes.canonicalize_attention.masks import is_as_built, needed
from lightint_compile.passes.canonicalize_attention.plan import Plan, plan_of, sources_of
from lightint_compile.passes.canonicalize_attention.readers import erase_dead_readers, is_dead
from lightint_compile.passes.canonicalize_attention.remarks import applied, missed
from lightint_compile.passes.canonicalize_attention.samples import unfold_samples
from lightint_compile.passes.canonicalize_attention.site import Site, spelled_site
from lightint_compile.passes.canonicalize_attention.spellings import SOFTMAX, SOFTMAX_ENDS
from lightint_compile.passes.ir.matching import MatchError, MatchResult, match
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Numerics, Remark
from lightint_compile.passes.ir.rewriter import Rewriter

__all__ = ["CanonicalizeAttention", "inductor_guard"]


@dataclass(frozen=True, kw_only=True)
class CanonicalizeAttention(Pass):
    """Find every attention, prove it, and write it as one call that later passes and kernels understand.

    The result is ``aten.scaled_dot_product_attention`` in four dimensions: query ``[batch, heads, tokens, head_dim]``,
    key and value with as many heads or fewer (``enable_gqa``), the scale as a number, at most one mask, or the causal
    flag. A match is applied only after its axes have been unified (``site.py``), its readers checked, and the matched
    nodes and their replacement have given the same float64 numbers (``check.py``). A near miss is a ``missed`` remark.
    """

    name: ClassVar[str] = "canonicalize-attention"
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES

    def run(self, program: Program) -> PassResult:
        """See :class:`Pass`."""
        rewriter = Rewriter(program, self.name)
        done: list[Remark] = []
        misses: list[tuple[fx.Node, MatchResult]] = []
        for node in list(program.graph.nodes):
            if (form := folded_form(node)) is None:
                continue
            try:
                done.append(unfold_samples(node, form, rewriter))
            except MatchError as error:
                misses.append((node, MatchResult(failure=error.failure)))
        for node in list(program.graph.nodes):
            call = FlexCall.of(node)
            done.extend([unmasked(call, rewriter)] if call is not None and is_plain(call) else [])
        for node in list(program.graph.nodes):
            if node._erased or not _is_anchor(node):
                continue
            try:
                remark = _rewrite(node, rewriter)
            except MatchError as error:
                misses.extend(_near_miss(node, error))
            else:
                done.extend([remark] if remark is not None else [])
        if done:
            program.graph_module.recompile()
        return PassResult(bool(done), (*done, *missed(misses)))


def _is_anchor(node: fx.Node) -> bool:
    if node.op != "call_function" or folded_form(node) is not None:
        return False
    return node.target in SOFTMAX_ENDS or dialect_of(node) is not None


def _rewrite(node: fx.Node, rewriter: Rewriter) -> Remark | None:
    """Rewrite the attention at ``node``; ``None`` when there is none, or when it is as it should be.

    Raises:
        MatchError: there is something like one, which cannot be rewritten.
    """
    site = spelled_site(node) if node.target in SOFTMAX_ENDS else fused_site(node)
    if site is None:
        return None
    plan = plan_of(site)
    if _is_settled(site, plan):
        return None
    check_mutation(site)
    check(site, plan)
    output = site.outputs[plan.output][0]
    with rewriter.at(output, rule=site.rule):
        new = build(GraphBuilder(rewriter, site), site, plan)
    remark = applied(site, plan, new)
    for gone in (*site.interior, *(node for node, _ in site.outputs[: plan.output])):
        erase_dead_readers(gone)
    rewriter.replace(output, new)
    reshape_views(new)
    return remark


def _is_settled(site: Site, plan: Plan) -> bool:
    """Whether the call is already the one that would be built."""
    fused = site.fused
    if fused is None or fused.node.target is not SDPA or plan.output != 0 or plan.grouped != fused.grouped:
        return False
    wanted = (plan.query_axes(site), plan.key_axes(site), plan.value_axes(site), plan.output_axes(site))
    paths = (site.query, site.key, site.value)
    have = (*(path.axes[-1] for path in paths), site.outputs[0][1])
    same_tensors = sources_of(site, plan) == tuple(path.operand for path in paths)
    masks, causal = needed(site.masks, plan.mask_axes(site))
    same_masks = not causal and len(masks) == len(site.masks) and all(map(is_as_built, site.masks, masks))
    return same_tensors and same_masks and all(map(_same, have, wanted))


def _same(have: Axes, wanted: Axes) -> bool:
    return resolved(have) == resolved(wanted)


def _near_miss(node: fx.Node, error: MatchError) -> list[tuple[fx.Node, MatchResult]]:
    """The failed attempt with the nodes it had matched; nothing for a softmax that is no part of an attention."""
    if is_dead(node) or (dialect_of(node) is None and not near_attention(node)):
        return []
    found = match(SOFTMAX, node)
    return [(node, MatchResult(found.bindings, found.tags, found.nodes, error.failure))]
