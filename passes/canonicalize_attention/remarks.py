"""What was done with a site, as a sentence and as data."""

from __future__ import annotations

from collections.abc import Iterable

import torch.fx as fx

from lightint_compile.passes.canonicalize_attention.axes import atoms, size_of
from lightint_compile.passes.canonicalize_attention.masks import needed
from lightint_compile.passes.canonicalize_attention.plan import Plan
from lightint_compile.passes.canonicalize_attention.site import Site
from lightint_compile.passes.ir.matching import MatchResult
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind, at, generic_path, module_path_of

PASS_NAME = "canonicalize-attention"


def applied(site: Site, plan: Plan, new: fx.Node) -> Remark:
    """The remark for a rewrite; ``new`` is the fused node."""
    notes = list(_notes(site, plan))
    flops = _flops(site, plan)
    return Remark(
        kind=RemarkKind.APPLIED,
        pass_name=PASS_NAME,
        rule=site.rule,
        message="; ".join([f"{_spelling(site)} becomes one scaled_dot_product_attention", *notes]),
        args=_bindings(site, plan) | {"node": new.name},
        flops_before=flops,
        flops_after=flops,
        numerics=numerics_of(site, plan),
        **at(site.result),
    )


def numerics_of(site: Site, plan: Plan) -> Numerics:
    """``exact`` when only the kernel changes; else a factor or a cast moves, or rows that are all masked may differ."""
    moved = any(path.factor() != 1.0 or path.dtype() != path.dtype(-1) for path in (site.query, site.key))
    return Numerics.REASSOCIATES if moved or may_differ_on_masked_rows(site, plan) else Numerics.EXACT


def may_differ_on_masked_rows(site: Site, plan: Plan) -> bool:
    """Whether a query with every key masked would give NaN before and zero after."""
    masks, _ = needed(site.masks, plan.mask_axes(site))
    return site.nan_rows and any(not part.swallow for part in masks)


def missed(results: Iterable[tuple[fx.Node, MatchResult]]) -> list[Remark]:
    """One remark for each kind of failure at sibling modules; only its first reason is formatted."""
    groups: dict[tuple[str, str], list[tuple[fx.Node, MatchResult]]] = {}
    for anchor, result in results:
        assert result.failure is not None
        groups.setdefault((result.failure.code, generic_path(module_path_of(anchor))), []).append((anchor, result))
    return [_missed(group) for group in groups.values()]


def _missed(group: list[tuple[fx.Node, MatchResult]]) -> Remark:
    anchor, result = group[0]
    failure = result.failure
    assert failure is not None
    reason, hint = failure.render()
    place = failure.node if failure.node is not None else anchor
    where = at(place) if place.op == "call_function" else at(anchor)
    return Remark(
        kind=RemarkKind.MISSED,
        pass_name=PASS_NAME,
        rule=failure.code,
        message=f"attention near {anchor.name}: matched {len(result.nodes)} nodes, stopped at {place.name}: {reason}",
        hint=hint,
        args={"matched": len(result.nodes), "node": place.name, "nodes": [node.name for node in result.nodes]},
        count=len(group),
        **where,
    )


def _spelling(site: Site) -> str:
    return site.rule.replace("-", " ") if site.fused is None else f"a call of {site.rule}"


def _notes(site: Site, plan: Plan) -> Iterable[str]:
    if plan.grouped:
        yield "repeated key and value heads are grouped"
    if site.query.factor() != 1.0 or site.key.factor() != 1.0:
        yield "the scale moves into the operator"
    masks, causal = needed(site.masks, plan.mask_axes(site))
    if len(masks) + causal < len(site.masks):
        yield "a mask that lets everything through is left out"
    if may_differ_on_masked_rows(site, plan):
        yield "a query with every key masked gives 0 instead of NaN"


def _bindings(site: Site, plan: Plan) -> dict[str, object]:
    names = ("batch", "heads", "query_tokens", "head_dim")
    sizes = {name: _plain(size_of(axis)) for name, axis in zip(names, plan.query_axes(site), strict=True)}
    sizes |= {"key_tokens": _plain(size_of(site.key_axis)), "key_heads": _plain(size_of(plan.key_heads))}
    return sizes | {"scale": site.scale, "masks": len(site.masks), "causal": site.causal}


def _plain(size: object) -> int | str:
    return size if isinstance(size, int) else str(size)


def _flops(site: Site, plan: Plan) -> int | None:
    """Two products, two operations a multiply-add; ``None`` with a symbolic size."""
    rows = size_of((*atoms(plan.rows[0]), *atoms(plan.rows[1]), *site.query_axis, *site.key_axis))
    width = size_of(site.depth_axis) + size_of(site.value_axis)
    flops = 2 * rows * width
    return flops if isinstance(flops, int) else None
