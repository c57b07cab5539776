"""``lightint::partial_attention`` and ``merge_attention``: attention to some of the keys, and two such results as one.

A softmax over all keys follows from softmaxes over parts of them, where each part also says the log of the sum of its
exponentials (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). Ring Attention (Liu, Zaharia
and Abbeel, 2023) lets the parts lie on several devices. Partial attention is PyTorch's fused operator of the device,
which computes that log anyway; merging is written in plain operators, so that Inductor makes one kernel of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.nn import functional as F

from lightint_compile.errors import InputError

from .checks import no_gradient
from .tiles import accumulate_dtype

SCHEMAS = (
    "partial_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float? scale) -> (Tensor, Tensor)",
    "merge_attention(Tensor out, Tensor mass, Tensor other, Tensor other_mass) -> (Tensor, Tensor)",
)

aten = torch.ops.aten

_FLASH_CAPABILITY = (8, 0)
_FLASH_DIM = 256

_library = Library("lightint", "FRAGMENT")


def partial_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention to keys that are a part of all, and the log of the sum of exponentials of its scores.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key, value: ``[batch or 1, key heads, keys, ...]`` of the query's dtype; the heads are a multiple of theirs.
        mask: broadcasts to ``[batch, heads, queries, keys]``; bool (True takes part), or numbers added to the scores.
        scale: of the scores; ``head_dim ** -0.5`` unless given.

    Returns:
        ``[batch, heads, queries, value_dim]`` of the query's dtype, with the memory of a contiguous ``[batch, queries,
        heads, value_dim]``, and ``[batch, heads, queries]`` in float32 (float64 for float64). A query that no key takes
        part for has zeros, and ``-inf``.

    Raises:
        InputError: tensors that do not fit together, or a gradient that is asked for.
    """
    return torch.ops.lightint.partial_attention(query, key, value, mask, scale)


def merge_attention(out: Tensor, mass: Tensor, other: Tensor, other_mass: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to two parts of the keys, from what :func:`partial_attention` gave for each.

    Args:
        out, other: ``[batch, heads, queries, value_dim]`` of any dtype.
        mass, other_mass: ``[batch, heads, queries]`` float32 or float64.

    Returns:
        ``out`` in the dtype of ``mass``, and ``mass``, of both; they can be merged with a third.
    """
    return torch.ops.lightint.merge_attention(out, mass, other, other_mass)


def _merged(out: Tensor, mass: Tensor, other: Tensor, other_mass: Tensor) -> tuple[Tensor, Tensor]:
    # Exponents are never above 0, so nothing overflows. Without any key on either side both weights are 0.
    peak = torch.maximum(mass, other_mass)
    peak = torch.where(peak == -math.inf, 0.0, peak)
    weight, other_weight = (mass - peak).exp(), (other_mass - peak).exp()
    total = weight + other_weight
    share = torch.where(total == 0.0, 0.0, 1.0 / total)
    mine, others = ((each * share).unsqueeze(-1) for each in (weight, other_weight))
    return out.to(mass.dtype) * mine + other.to(mass.dtype) * others, peak + total.log()


# --- attention to a part ---------------------------------------------------------------------------------------------


def _attended(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    _check(query, key, value, mask)
    key, value = (each.expand(query.shape[0], -1, -1, -1) for each in (key, value))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    way = _way(query, key, value, masked=mask is not None)
    out, mass = way(query, key, value, None if mask is None else _bias(mask, query.dtype), factor)
    if mask is not None:  # operators differ in what they say of a query that no key takes part for
        alone = (~mask if mask.dtype == torch.bool else mask == -math.inf).all(-1, keepdim=True)
        out, mass = out.masked_fill(alone, 0.0), mass.masked_fill(alone[..., 0], -math.inf)
    return _stored(out.to(query.dtype)), mass.to(accumulate_dtype(query.dtype)).contiguous()


def _way(query: Tensor, key: Tensor, value: Tensor, *, masked: bool) -> _Way:
    """The operator of the device that takes such tensors; plain products where none does."""
    dim, narrow = query.shape[-1], query.dtype in (torch.float16, torch.bfloat16)
    alike, some = value.shape[-1] == dim, 0 not in (*query.shape, *key.shape)
    if query.device.type == "cpu" and alike and some:
        return _on_cpu
    if query.device.type != "cuda" or not some or torch.version.hip:
        return _plain
    if not masked and narrow and alike and dim % 8 == 0 and dim <= _FLASH_DIM and _has_flash(query.device):
        return _flash
    aligned = 8 if narrow else 4
    fits = (narrow or query.dtype == torch.float32) and dim % aligned == 0 and value.shape[-1] % aligned == 0
    return _efficient if fits else _plain


def _has_flash(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= _FLASH_CAPABILITY


def _on_cpu(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    spread = None if bias is None else bias.expand(*query.shape[:3], key.shape[2])
    key, value = _for_each_head(query, key, value)
    found: tuple[Tensor, Tensor] = aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=spread, scale=scale
    )
    return found


def _flash(query: Tensor, key: Tensor, value: Tensor, _: None, scale: float) -> tuple[Tensor, Tensor]:
    query, key, value = map(_side_by_side, (query, key, value))
    found = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False, False, scale=scale)
    return found[0], found[1]


def _efficient(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    spread = None if bias is None else _aligned(bias, key.shape[2]).expand(*query.shape[:3], -1)
    key, value = _for_each_head(query, key, value)
    query, key, value = map(_side_by_side, (query, key, value))
    found = aten._scaled_dot_product_efficient_attention(query, key, value, spread, True, 0.0, False, scale=scale)
    return found[0], found[1][:, :, : query.shape[2]]  # the operator rounds the number of queries up


def _plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    wide = accumulate_dtype(query.dtype)
    query, key, value = (each.to(wide) for each in (query, *_for_each_head(query, key, value)))
    scores = query @ key.transpose(-2, -1) * scale
    scores = scores if bias is None else scores + bias
    mass = scores.logsumexp(-1)
    return (scores - torch.where(mass == -math.inf, 0.0, mass)[..., None]).exp() @ value, mass


_Way = Callable[[Tensor, Tensor, Tensor, Any, float], tuple[Tensor, Tensor]]
"""Attention under numbers that are added to the scores, or none, and the log of the sum of exponentials."""


def _for_each_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with as many heads as the queries: one that several share is written out."""
    groups = query.shape[1] // key.shape[1]
    return (key, value) if groups == 1 else (key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers that are added to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -math.inf)


def _aligned(bias: Tensor, keys: int) -> Tensor:
    """A bias of all keys whose rows begin where the operator can read them in words of 16 values."""
    bias = bias.expand(*bias.shape[:-1], keys)
    if bias.stride(-1) == 1 and all(step % 16 == 0 for step in bias.stride()[:-1]):
        return bias
    return F.pad(bias, (0, -keys % 16))[..., :keys]


def _side_by_side(heads: Tensor) -> Tensor:
    return heads if heads.stride(-1) == 1 else heads.contiguous()


def _stored(out: Tensor) -> Tensor:
    """In the stated memory order, copied only if it is not so already."""
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if {query.dim(), key.dim(), value.dim()} != {4} or key.shape[:3] != value.shape[:3]:
        raise InputError("queries, keys and values are not [batch, heads, tokens, ...]", why=shapes)
    if key.shape[3] != query.shape[3] or key.shape[0] not in (1, query.shape[0]) or query.shape[1] % key.shape[1]:
        raise InputError("queries and keys do not fit together", where="partial_attention", why=shapes)
    if len({query.dtype, key.dtype, value.dtype}) > 1:
        raise InputError("queries, keys and values differ in dtype", where="partial_attention", why=str(key.dtype))
    if mask is not None and mask.dim() > 4:
        raise InputError("the mask has more axes than scores", where="partial_attention", why=str(tuple(mask.shape)))


def _fake(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> tuple[Tensor, Tensor]:
    _check(query, key, value, mask)
    batch, heads, tokens, _ = query.shape
    out = query.new_empty((batch, tokens, heads, value.shape[3])).transpose(1, 2)
    return out, query.new_empty((batch, heads, tokens), dtype=accumulate_dtype(query.dtype))


for _schema in SCHEMAS:
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("partial_attention", _attended, "CompositeExplicitAutograd")
torch.library.register_fake("lightint::partial_attention", _fake, lib=_library)
torch.library.register_autograd("lightint::partial_attention", no_gradient, lib=_library)
_library.impl("merge_attention", _merged, "CompositeImplicitAutograd")
