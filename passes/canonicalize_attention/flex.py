"""``flex_attention`` without a mask, and without a change of scores, is plain attention.

PyTorch writes a mask that is always true, and one block that holds everything, where it is given no mask.
"""

from __future__ import annotations

from lightint_compile.passes.analysis.flex_calls import FlexCall
from lightint_compile.passes.canonicalize_attention.build import SDPA
from lightint_compile.passes.canonicalize_attention.guard import reshape_views
from lightint_compile.passes.ir.op_arguments import sizes_of
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind, at
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.sizes import same


def is_plain(call: FlexCall) -> bool:
    """Whether a call computes nothing but attention of every query to every key."""
    batches = (sizes_of(each)[0] for each in (call.key, call.value))
    alike = all(same(sizes_of(call.query)[0], batch) for batch in batches)
    more = call.changes_scores or call.reads_more or not call.allows_all or not call.is_one_block
    return alike and not more


def unmasked(call: FlexCall, rewriter: Rewriter) -> Remark:
    """Replace a plain call."""
    result = call.results[0]
    with rewriter.at(call.node, rule="flex-attention"):
        operands = (call.query, call.key, call.value)
        new = rewriter.call(SDPA, *operands, scale=call.scale, enable_gqa=call.is_grouped)
    remark = Remark(
        kind=RemarkKind.APPLIED,
        pass_name="canonicalize-attention",
        rule="flex-attention",
        message="flex_attention without a mask becomes one scaled_dot_product_attention",
        args={"node": new.name},
        numerics=Numerics.EXACT,
        **at(result),
    )
    rewriter.replace(result, new)
    reshape_views(new)
    for each in (*call.results.values(), call.node):
        rewriter.erase_unused(each)
    return remark
