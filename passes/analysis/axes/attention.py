"""Operators that are attention in one call, PyTorch's and those of flash attention packages, and how they move axes."""

from __future__ import annotations

import string
from dataclasses import dataclass, replace
from typing import Any, cast

import torch.fx as fx

from lightint_compile.passes.analysis.axes.movement import Across, Movement, New, Read, Ref
from lightint_compile.passes.analysis.axes.moving import contracted, whole
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
    rank = rank_of(query)
    order = dialect.order if dialect.order is not None else tuple(range(rank))
    if rank < 2 or len(order) != rank or {rank_of(key), rank_of(value)} != {rank}:
        return None
    leading, mask = string.ascii_lowercase[: rank - 2], given.get(dialect.mask)
    labels = ["".join(f"{leading}{own}"[axis] for axis in order) for own in ("QD", "KD", "KV", "QV")]
    operands = list(zip(labels, (query, key, value), strict=False))
    if mask is not None:
        operands.append((f"{leading}QK"[rank - rank_of(mask) :], mask))
    found, summed = contracted(operands, labels[-1])
    ways, reads = list(found), list(summed)
    rows, heads = order[-2], order[-3] if rank > 2 else 0
    if given.get(dialect.causal):
        ways[rows] = Across(Ref(query, rows))
        reads.append(Read((Ref(query, rows),), "a causal triangle runs along {}"))
    if rank > 2 and not same(sizes_of(query)[heads], sizes_of(key)[heads]):
        ways[heads] = Across(Ref(query, heads))
        reads.append(Read(tuple(Ref(source, heads) for source in (query, key, value)), "heads share keys along {}"))
    reads.extend(whole([source for source in tensors(node) if source not in (query, key, value, mask)]))
    others = [tuple(New() for _ in getattr(each, "shape", ())) for each in results_in(node)[1:]]
    return Movement((tuple(ways), *others), tuple(reads), stretches=False)
