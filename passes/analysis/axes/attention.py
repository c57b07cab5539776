"""Operators that are attention in one call, PyTorch's and those of flash attention packages, and how they move axes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch.fx as fx

from lightint_compile.passes.analysis.axes.movement import Across, Along, Movement, New, Read, Ref, Way
from lightint_compile.passes.analysis.axes.moving import aligned, refs_of, whole, wide
from lightint_compile.passes.ir.op_arguments import arguments, rank_of, results_in, sizes_of, tensors
from lightint_compile.passes.ir.sizes import same

#: Batch, tokens, heads, width as flash attention packages have it, to batch, heads, tokens, width. Its own inverse.
_TOKENS_FIRST = (0, 2, 1, 3)


@dataclass(frozen=True)
class Dialect:
    """Where a fused operator keeps what; argument names are those of its schema.

    Attributes:
        causal_at_end: the causal triangle ends at the last key, not at the query's own number.
        order: the permutation that puts an operand as batch, heads, tokens, width; ``None`` when it is so already.
        neutral: arguments that must have one of these values (``None`` and 0 always will do).
    """

    query: str = "query"
    key: str = "key"
    value: str = "value"
    mask: str = ""
    scale: str = "scale"
    causal: str = "is_causal"
    causal_at_end: bool = False
    order: tuple[int, ...] | None = None
    neutral: tuple[tuple[str, tuple[Any, ...]], ...] = ()


_DROPOUT = ("dropout_p", (0.0,))
_WINDOW = (("window_size_left", (-1,)), ("window_size_right", (-1,)), ("softcap", ()), ("alibi_slopes", ()))
_CACHED = tuple((name, ()) for name in ("k_new", "v_new", "qv", "seqused_q", "seqused_k", "page_table", "rotary_cos"))
_PACKAGE = Dialect("q", "k", "v", scale="softmax_scale", causal="causal", causal_at_end=True, order=_TOKENS_FIRST)

#: Operators by qualified name; a package's operator counts when the package has registered it.
DIALECTS: dict[str, Dialect] = {
    "aten::scaled_dot_product_attention": Dialect(mask="attn_mask", neutral=(_DROPOUT,)),
    "aten::_scaled_dot_product_attention_math": Dialect(mask="attn_mask", neutral=(_DROPOUT, ("dropout_mask", ()))),
    "aten::_scaled_dot_product_flash_attention_for_cpu": Dialect(mask="attn_mask", neutral=(_DROPOUT,)),
    "aten::_scaled_dot_product_flash_attention": Dialect(neutral=(_DROPOUT,)),
    "aten::_scaled_dot_product_efficient_attention": Dialect(mask="attn_bias", neutral=(_DROPOUT,)),
    "aten::_scaled_dot_product_cudnn_attention": Dialect(mask="attn_bias", neutral=(_DROPOUT,)),
    "aten::_scaled_dot_product_fused_attention_overrideable": Dialect(mask="attn_bias", neutral=(_DROPOUT,)),
    "flash_attn::_flash_attn_forward": replace(_PACKAGE, neutral=(_DROPOUT, *_WINDOW)),
    "_diffusers_flash_attn_3::_flash_attn_forward": replace(_PACKAGE, neutral=_WINDOW),
    "flash_attn_3::_flash_attn_forward": replace(_PACKAGE, neutral=(*_WINDOW, *_CACHED)),
}


def dialect_of(node: fx.Node) -> Dialect | None:
    """How to read ``node``, if it calls a fused attention operator."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or node.op != "call_function":
        return None
    found = DIALECTS.get(schema.name)
    # Others register operators of a package's name with arguments of their own.
    return found if found and any(entry.name == found.query for entry in schema.arguments) else None


def attention(node: fx.Node, dialect: Dialect) -> Movement | None:
    """Rows of the query and columns of the value are free; batch and heads are broadcast; the rest is summed.

    A causal triangle makes rows depend on where they stand, and shared key heads do that to heads.
    """
    given = arguments(node)
    query, key, value = (cast(fx.Node, given[name]) for name in (dialect.query, dialect.key, dialect.value))
    if len({rank_of(source) for source in (query, key, value)}) != 1:
        return None
    rank = rank_of(query)
    order = dialect.order if dialect.order is not None else tuple(range(rank))
    if rank < 2 or len(order) != rank:
        return None
    refs = {source: [Ref(source, axis) for axis in order] for source in (query, key, value)}
    mask = given.get(dialect.mask)
    biased = [()] * rank if mask is None else list(map(refs_of, aligned([mask], rank)))
    ways: list[Way] = [
        Along(wide([*(refs[source][axis] for source in refs), *biased[axis]])) for axis in range(rank - 2)
    ]
    ways += [Along(wide([refs[query][-2], *biased[-2]])), Along((refs[value][-1],))]
    reads = [
        Read((refs[query][-1], refs[key][-1])),
        Read((refs[key][-2], refs[value][-2], *biased[-1])),
    ]
    if given.get(dialect.causal):
        ways[-2] = Across(refs[query][-2])
        reads.append(Read((refs[query][-2],), "a causal triangle runs along {}"))
    if rank > 2 and not same(sizes_of(query)[order[-3]], sizes_of(key)[order[-3]]):
        ways[-3] = Across(refs[query][-3])
        reads.append(Read(tuple(refs[source][-3] for source in refs), "heads share keys along {}"))
    known = {query, key, value, mask}
    reads.extend(whole([source for source in tensors(node) if source not in known]))
    result = tuple(ways[order.index(axis)] for axis in range(rank))
    others = [tuple(New() for _ in getattr(each, "shape", ())) for each in results_in(node)[1:]]
    return Movement((result, *others), tuple(reads), stretches=False)
