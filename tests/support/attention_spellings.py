"""Spellings of attention, and near misses of them one edit away: the table that the matcher's tests run over."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

SIZES = {"b": 2, "h": 4, "g": 2, "s": 6, "t": 8, "d": 4, "e": 4, "n": 8, "r": 3, "1": 1}


@dataclass(frozen=True)
class Spelling:
    """``run(*tensors)`` computes attention; ``shapes`` names the dimensions of each tensor (``?``: a boolean mask).

    ``n`` is batch times heads, ``g`` the heads of key and value in grouped attention. ``scale``, ``mask`` and
    ``grouped`` are those of the one fused call that must come out; ``reason`` is the failure code of a negative.
    """

    name: str
    run: Callable[..., Any]
    shapes: str = "bhsd bhtd bhte"
    scale: float | None = 0.5
    mask: str = "none"
    grouped: bool = False
    reason: str = ""
    numerics: str = ""
    dynamic: bool = True


def tensors(spelling: Spelling, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    made = []
    for letters in spelling.shapes.split():
        shape = [SIZES[letter] for letter in letters.strip("?")]
        if letters.endswith("?"):
            keep = torch.rand(shape, generator=random) < 0.7
            keep[..., 0] = True
            made.append(keep)
        else:
            made.append(torch.randn(shape, generator=random).to(dtype))
    return made


def dynamic_dims(spelling: Spelling) -> tuple[dict[int, Any], ...]:
    return tuple(
        {dim: torch.export.Dim.AUTO for dim, letter in enumerate(letters.strip("?")) if letter in "st"}
        for letters in spelling.shapes.split()
    )


class Calls(torch.nn.Module):
    """A function as a module, which is what torch.export takes."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *args: torch.Tensor) -> Any:
        return self.run(*args)


def soft(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, dim=-1)


def causal_bias(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    keep = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    return torch.zeros(q.shape[-2], k.shape[-2], dtype=q.dtype).masked_fill(~keep, -math.inf)


def padded_by_view(q, k, v, keep):
    """DistilBERT's: what a batch element may see, spread over heads and queries by ``view`` and ``expand_as``."""
    scores = q @ k.mT * 0.5
    hidden = (keep == 0).view(q.shape[0], 1, 1, k.shape[2]).expand_as(scores)
    return soft(scores.masked_fill(hidden, -math.inf)) @ v


def triangle_of_a_head(q, k, v):
    """A constant mask that is the causal one in its first head only."""
    keep = torch.ones(q.shape[1], q.shape[2], k.shape[2], dtype=torch.bool)
    keep = torch.cat([keep[:1].tril(), keep[1:]])
    return soft((q @ k.mT * 0.5).masked_fill(~keep, -math.inf)) @ v


def exp_over_sum(q, k, v):
    scores = q @ k.transpose(-2, -1) * 0.5
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (weights / weights.sum(-1, keepdim=True)) @ v


def exp_minus_max(q, k, v):
    scores = q @ k.mT / 2.0
    weights = (scores - scores.max(-1, keepdim=True).values).exp()
    return (weights / weights.sum(-1, keepdim=True)) @ v


def logsumexp(q, k, v):
    scores = q @ k.mT * 0.5
    return torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True)) @ v


def fold(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, *x.shape[2:])


def bmm_folded(q, k, v):
    return torch.bmm(soft(torch.bmm(fold(q), fold(k).transpose(1, 2)) * 0.5), fold(v)).view(*q.shape[:3], v.shape[-1])


def all_seen(q, k):
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)


def baddbmm_folded(q, k, v):
    start = torch.empty(q.shape[0] * q.shape[1], q.shape[2], k.shape[2], dtype=q.dtype)
    scores = torch.baddbmm(start, fold(q), fold(k).transpose(1, 2), beta=0, alpha=0.5)
    return torch.bmm(soft(scores), fold(v)).reshape(*q.shape[:3], v.shape[-1])


def folded_mask_in_4d(q, k, v, m):
    scores = torch.bmm(fold(q), fold(k).mT).view(*q.shape[:3], k.shape[2]) * 0.5
    weights = soft(scores.masked_fill(~m, -math.inf)).view(-1, q.shape[2], k.shape[2])
    return torch.bmm(weights, fold(v)).view(*q.shape[:3], v.shape[-1]).transpose(1, 2).flatten(2)


def tokens_first(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return (
        (soft(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])) @ v).transpose(1, 2).reshape(q.shape[0], q.shape[2], -1)
    )


def grouped_expand(q, k, v):
    def repeat(x):
        b, g, t, d = x.shape
        return x[:, :, None].expand(b, g, q.shape[1] // g, t, d).reshape(b, q.shape[1], t, d)

    return soft(q @ repeat(k).mT * 0.5) @ repeat(v)


def grouped_tiled(q, k, v):
    return soft(q @ k.repeat(1, 2, 1, 1).mT * 0.5) @ v.repeat(1, 2, 1, 1)


def grouped_interleaved(q, k, v):
    return soft(q @ k.repeat_interleave(2, dim=1).mT * 0.5) @ v.repeat_interleave(2, dim=1)


POSITIVES = [
    Spelling("scale-after", lambda q, k, v: soft(q @ k.transpose(-2, -1) * 0.5) @ v, numerics="exact"),
    Spelling("divided", lambda q, k, v: soft(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])) @ v),
    Spelling("unscaled", lambda q, k, v: soft(q @ k.mT) @ v, scale=1.0),
    Spelling("scale-on-query", lambda q, k, v: soft((q * 0.5) @ k.mT) @ v, numerics="reassociates"),
    Spelling("scale-on-key", lambda q, k, v: soft(q @ (0.5 * k).mT) @ v),
    Spelling("scale-split", lambda q, k, v: soft((q * 0.5**0.5) @ (k.mT * 0.5**0.5)) @ v),
    Spelling("scale-twice", lambda q, k, v: soft((q / 2.0) @ k.mT * 3.0) @ v, scale=1.5),
    Spelling(
        "key-permuted", lambda q, k, v: soft(q @ k.permute(0, 2, 3, 1) * 0.5) @ v.permute(0, 2, 1, 3), "bhsd bthd bthe"
    ),
    Spelling("key-swapaxes", lambda q, k, v: soft(q @ k.swapaxes(2, 3) * 0.5) @ v),
    Spelling("key-stored-transposed", lambda q, k, v: soft(q @ k * 0.5) @ v, "bhsd bhdt bhte"),
    Spelling("key-first", lambda q, k, v: torch.softmax(k @ q.mT * 0.5, dim=-2).mT @ v),
    Spelling("key-permute-full", lambda q, k, v: soft(q @ k.permute(0, 1, 3, 2) * 0.5) @ v),
    Spelling("tokens-first", tokens_first, "bshd bthd bthe"),
    Spelling(
        "einsum",
        lambda q, k, v: torch.einsum("bhij,bhjd->bhid", soft(torch.einsum("bhid,bhjd->bhij", q, k) * 0.5), v),
    ),
    Spelling(
        "einsum-tokens-first",
        lambda q, k, v: torch.einsum("bhqk,bkhd->bqhd", soft(torch.einsum("bqhd,bkhd->bhqk", q * 0.5, k)), v),
        "bshd bthd bthe",
    ),
    Spelling(
        "einsum-dots",
        lambda q, k, v: torch.einsum("...ij,...jd->...id", soft(torch.einsum("...id,...jd->...ij", q, k) * 0.5), v),
    ),
    Spelling("bmm", bmm_folded),
    Spelling("baddbmm", baddbmm_folded),
    Spelling("folded-mask", folded_mask_in_4d, "bhsd bhtd bhte b11t?", mask="bool"),
    Spelling("three-dimensional", lambda q, k, v: torch.bmm(soft(torch.bmm(q, k.mT) * 0.5), v), "nsd ntd nte"),
    Spelling("two-dimensional", lambda q, k, v: soft(q @ k.T * 0.5) @ v, "sd td te"),
    Spelling("five-dimensional", lambda q, k, v: soft(q @ k.mT * 0.5) @ v, "brhsd brhtd brhte"),
    Spelling("bias", lambda q, k, v, m: soft(q @ k.mT * 0.5 + m) @ v, "bhsd bhtd bhte hst", mask="float"),
    Spelling("bias-before-scale", lambda q, k, v, m: soft((m + q @ k.mT) * 0.5) @ v, "bhsd bhtd bhte st", mask="float"),
    Spelling("penalty", lambda q, k, v, m: soft(q @ k.mT * 0.5 - m) @ v, "bhsd bhtd bhte b11t", mask="float"),
    Spelling(
        "baddbmm-bias",
        lambda q, k, v, m: torch.bmm(soft(torch.baddbmm(m, q, k.mT, beta=1, alpha=0.5)), v),
        "nsd ntd nte nst",
        mask="float",
    ),
    Spelling(
        "masked-fill",
        lambda q, k, v, m: soft((q @ k.mT * 0.5).masked_fill(~m, -math.inf)) @ v,
        "bhsd bhtd bhte b1st?",
        mask="bool",
        numerics="reassociates",
    ),
    Spelling(
        "masked-fill-lowest",
        lambda q, k, v, m: soft((q @ k.mT * 0.5).masked_fill(~m, torch.finfo(q.dtype).min)) @ v,
        "bhsd bhtd bhte st?",
        mask="float",
    ),
    Spelling(
        "where",
        lambda q, k, v, m: soft(torch.where(m, q @ k.mT * 0.5, -math.inf)) @ v,
        "bhsd bhtd bhte st?",
        mask="bool",
    ),
    Spelling(
        "where-tensor",
        lambda q, k, v, m: soft(torch.where(m, q @ k.mT * 0.5, torch.full((), -math.inf, dtype=q.dtype))) @ v,
        "bhsd bhtd bhte bhst?",
        mask="bool",
    ),
    Spelling(
        "mask-and-bias",
        lambda q, k, v, m, n: soft((q @ k.mT * 0.5 + n).masked_fill(~m, -math.inf)) @ v,
        "bhsd bhtd bhte b11t? hst",
        mask="float",
    ),
    Spelling(
        "fused-negated-mask",
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, ~m, scale=0.5),
        "bhsd bhtd bhte b1st?",
        mask="bool",
    ),
    Spelling("padded-by-view", padded_by_view, "bhsd bhtd bhte bt?", mask="bool"),
    Spelling(
        "padded-by-a-constant",
        lambda q, k, v: padded_by_view(q, k, v, torch.ones(q.shape[0], k.shape[2], dtype=torch.bool).tril()),
        mask="bool",
        dynamic=False,
    ),
    Spelling(
        "first-keys",
        lambda q, k, v: soft((q @ k.mT * 0.5).masked_fill(torch.arange(k.shape[2]) > 4, -math.inf)) @ v,
        mask="bool",
        dynamic=False,
    ),
    Spelling("triangle-of-a-head", triangle_of_a_head, mask="bool", dynamic=False),
    Spelling("causal-bias", lambda q, k, v: soft(q @ k.mT * 0.5 + causal_bias(q, k)) @ v, mask="causal", dynamic=False),
    Spelling(
        "causal-fill",
        lambda q, k, v: (
            soft((q @ k.mT * 0.5).masked_fill(~torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(), -math.inf))
            @ v
        ),
        mask="causal",
        numerics="exact",
    ),
    Spelling(
        "causal-compared",
        lambda q, k, v: (
            soft(torch.where(torch.arange(q.shape[2])[:, None] >= torch.arange(k.shape[2]), q @ k.mT * 0.5, -math.inf))
            @ v
        ),
        mask="causal",
        dynamic=False,
    ),
    Spelling(
        "mask-of-ones",
        lambda q, k, v: soft((q @ k.mT * 0.5).masked_fill(~all_seen(q, k), -math.inf)) @ v,
        numerics="exact",
    ),
    Spelling("bias-of-zeros", lambda q, k, v: soft(q @ k.mT * 0.5 + torch.zeros(q.shape[2], 1, dtype=q.dtype)) @ v),
    Spelling(
        "fused-mask-of-ones",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, all_seen(q, k).expand(q.shape[0], 1, -1, -1)),
        scale=None,
    ),
    Spelling(
        "fused-mask-of-all-but-one",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.arange(k.shape[2]).expand(q.shape[2], -1) != 1),
        mask="bool",
        scale=None,
    ),
    Spelling("upcast-softmax", lambda q, k, v: soft((q @ k.mT * 0.5).float()).to(q.dtype) @ v),
    Spelling("upcast-argument", lambda q, k, v: F.softmax(q @ k.mT * 0.5, dim=-1, dtype=torch.float32).type_as(v) @ v),
    Spelling("upcast-operands", lambda q, k, v: soft(q.float() @ k.float().mT * 0.5).to(v.dtype) @ v),
    Spelling("grouped-interleaved", grouped_interleaved, "bhsd bgtd bgte", grouped=True),
    Spelling("grouped-expand", grouped_expand, "bhsd bgtd bgte", grouped=True),
    Spelling("tiled-heads", grouped_tiled, "bhsd bgtd bgte", grouped=False),
    Spelling("one-key-head", lambda q, k, v: soft(q @ k.mT * 0.5) @ v, "bhsd b1td b1te", grouped=True),
    Spelling("shared-key", lambda q, k, v: soft(q @ k.mT * 0.5) @ v, "bhsd td te", grouped=True),
    Spelling(
        "one-query",
        lambda q, k, v: torch.einsum("bht,bhtd->bhd", soft(torch.einsum("bhd,bhtd->bht", q, k) * 0.5), v),
        "bhd bhtd bhte",
    ),
    Spelling("exp-over-sum", exp_over_sum),
    Spelling("exp-minus-max", exp_minus_max),
    Spelling("logsumexp", logsumexp),
    Spelling("log-softmax", lambda q, k, v: F.log_softmax(q @ k.mT * 0.5, dim=-1).exp() @ v),
    Spelling("maximum-taken-off", lambda q, k, v: soft((s := q @ k.mT * 0.5) - s.amax(-1, keepdim=True)) @ v),
    Spelling(
        "nan-to-zero",
        lambda q, k, v, m: soft((q @ k.mT * 0.5).masked_fill(~m, -math.inf)).nan_to_num(0.0) @ v,
        "bhsd bhtd bhte b1st?",
        mask="bool",
        numerics="exact",
    ),
    Spelling("no-dropout", lambda q, k, v: F.dropout(soft(q @ k.mT * 0.5), 0.0) @ v),
    Spelling("dropout-in-eval", lambda q, k, v: F.dropout(soft(q @ k.mT * 0.5), 0.3, training=False) @ v),
    Spelling("fused-scaled-query", lambda q, k, v: F.scaled_dot_product_attention(q * 0.5, k, v, scale=1.0)),
    Spelling("fused-default-scale", lambda q, k, v: F.scaled_dot_product_attention(q * 2.0, k, v), scale=1.0),
    Spelling(
        "fused-repeated-heads",
        lambda q, k, v: F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)),
        "bhsd bgtd bgte",
        scale=None,
        grouped=True,
    ),
    Spelling(
        "fused-folded",
        lambda q, k, v: F.scaled_dot_product_attention(fold(q), fold(k), fold(v), scale=0.3).view(
            *q.shape[:3], v.shape[-1]
        ),
        scale=0.3,
    ),
    Spelling(
        "fused-squeezed",
        lambda q, k, v: F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).squeeze(1),
        "nsd ntd nte",
        scale=None,
    ),
    Spelling("fused-plain", lambda q, k, v: F.scaled_dot_product_attention(q, k, v), scale=None),
]


def escaping_weights(q, k, v):
    weights = soft(q @ k.mT * 0.5)
    return weights @ v, weights


def escaping_scores(q, k, v):
    scores = q @ k.mT * 0.5
    return soft(scores) @ v, scores


def escaping_exp(q, k, v):
    weights = torch.exp(q @ k.mT * 0.5)
    return (weights / weights.sum(-1, keepdim=True)) @ v, weights


NEGATIVES = [
    Spelling("weights-returned", escaping_weights, reason="probabilities-escape"),
    Spelling("weights-read", lambda q, k, v: (w := soft(q @ k.mT * 0.5)) @ v + w.sum(), reason="probabilities-escape"),
    Spelling("scores-returned", escaping_scores, reason="scores-escape"),
    Spelling("exp-returned", escaping_exp, reason="scores-escape"),
    Spelling("query-softmax", lambda q, k, v: torch.softmax(q @ k.mT * 0.5, -2) @ v, reason="softmax-axis"),
    Spelling("head-softmax", lambda q, k, v: torch.softmax(q @ k.mT * 0.5, 1) @ v, reason="softmax-axis"),
    Spelling("wrong-value-axis", lambda q, k, v: soft(q @ k.mT * 0.5).mT @ v, "bhsd bhtd bhse", reason="softmax-axis"),
    Spelling(
        "tensor-scale", lambda q, k, v, m: soft(q @ k.mT * m) @ v, "bhsd bhtd bhte h11", reason="scale-not-constant"
    ),
    Spelling(
        "key-dependent-scale",
        lambda q, k, v, m: soft(q @ k.mT * m) @ v,
        "bhsd bhtd bhte t",
        reason="scale-not-constant",
    ),
    Spelling("soft-cap", lambda q, k, v: soft(torch.tanh(q @ k.mT * 0.5) * 5.0) @ v, reason="softcap"),
    Spelling("rectified", lambda q, k, v: soft(torch.relu(q @ k.mT * 0.5)) @ v, reason="chain"),
    Spelling("clamped", lambda q, k, v: soft((q @ k.mT * 0.5).clamp(-3, 3)) @ v, reason="chain"),
    Spelling(
        "fill-takes-part",
        lambda q, k, v, m: soft((q @ k.mT * 0.5).masked_fill(~m, -5.0)) @ v,
        "bhsd bhtd bhte st?",
        reason="fill-takes-part",
    ),
    Spelling(
        "fill-zero",
        lambda q, k, v, m: soft(torch.where(m, q @ k.mT * 0.5, 0.0)) @ v,
        "bhsd bhtd bhte st?",
        reason="fill-takes-part",
    ),
    Spelling(
        "masked-probabilities",
        lambda q, k, v, m: soft(q @ k.mT * 0.5).masked_fill(~m, 0.0) @ v,
        "bhsd bhtd bhte st?",
        reason="probabilities-changed",
    ),
    Spelling("gated-probabilities", lambda q, k, v: (soft(q @ k.mT * 0.5) * 2.0) @ v, reason="probabilities-changed"),
    Spelling("dropout", lambda q, k, v: F.dropout(soft(q @ k.mT * 0.5), 0.3) @ v, reason="dropout"),
    Spelling("dropout-on-scores", lambda q, k, v: soft(F.dropout(q @ k.mT * 0.5, 0.3)) @ v, reason="dropout"),
    Spelling(
        "heads-summed",
        lambda q, k, v: torch.einsum("bhij,bhjd->bid", soft(q @ k.mT * 0.5), v),
        reason="einsum-form",
    ),
    Spelling(
        "two-axes-summed",
        lambda q, k, v: torch.einsum("bij,bhjd->bhid", soft(torch.einsum("bhid,bhjd->bij", q, k) * 0.5), v),
        reason="einsum-form",
    ),
    Spelling(
        "negative-scale",
        lambda q, k, v, m: soft((q @ k.mT).masked_fill(~m, -math.inf) * -0.5) @ v,
        "bhsd bhtd bhte st?",
        reason="negative-scale",
    ),
    Spelling(
        "result-added",
        lambda q, k, v: torch.baddbmm(q, soft(torch.bmm(q, k.mT) * 0.5), v),
        "nsd ntd ntd",
        reason="chain",
    ),
    Spelling("softmax-twice", lambda q, k, v: soft(soft(q @ k.mT * 0.5)) @ v, reason="probabilities-changed"),
    Spelling(
        "fused-dropout",
        lambda q, k, v: F.scaled_dot_product_attention(q * 0.5, k, v, dropout_p=0.1),
        reason="dropout-p",
    ),
    Spelling("bias-from-weights", lambda q, k, v: soft((s := q @ k.mT) * 0.5 + s.tanh()) @ v, reason="scores-escape"),
    Spelling(
        "sum-without-exp",
        lambda q, k, v: ((s := (q @ k.mT).exp()) / s.sum(-2, keepdim=True)) @ v,
        reason="softmax-axis",
    ),
]

#: Not attention at all: no remark either.
UNRELATED = [
    Spelling("router", lambda x, w: soft(x @ w), "bsd de"),
    Spelling("classifier", lambda x: soft(x).argmax(-1), "bsd"),
    Spelling("gate", lambda x: soft(x) * x, "bsd"),
]
