from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from differential import trace_function
from torch import Tensor

from lightint_compile.passes.analysis.attention_sites import AttentionSite, AttentionSites, MaskKind, SiteKind, SpanKind

QUERY = torch.zeros(1, 4, 64, 8)


def patches(video: Tensor) -> Tensor:
    """[1, 32, T, H, W] to heads [1, 4, tokens, 8]; a convolution of kernel one says what the axes are."""
    return F.conv3d(video, torch.zeros(32, 32, 1, 1, 1)).flatten(2).transpose(1, 2).view(1, -1, 4, 8).transpose(1, 2)


def only_site(function: Callable[..., Any], **arguments: Tensor) -> AttentionSite:
    (site,) = trace_function(function, arguments).fact(AttentionSites)
    return site


CURRENT = torch.zeros(1, 32, 4, 4, 4)
CONTEXT = torch.zeros(1, 32, 8, 4, 4)
TEXT = torch.zeros(1, 4, 5, 8)


def test_operands_scale_and_layout():
    def attend(query: Tensor, key: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query.transpose(1, 2), key, key, scale=0.5)

    site = only_site(attend, query=torch.zeros(1, 64, 4, 8), key=QUERY)
    assert (site.query_heads, site.key_heads, site.head_dim, site.scale) == (4, 4, 8, 0.5)
    assert site.tokens_first
    assert not site.grouped
    assert [node.name for node in site.producers if node] == ["query", "key", "key"]


def test_the_scale_is_that_of_the_head_dim_when_none_is_stated():
    site = only_site(lambda query: F.scaled_dot_product_attention(query, query, query), query=QUERY)
    assert site.scale == pytest.approx(8**-0.5)
    assert not site.tokens_first


def test_grouped_heads():
    def attend(query: Tensor, key: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, key, enable_gqa=True)

    site = only_site(attend, query=QUERY, key=QUERY[:, :2])
    assert site.grouped
    assert (site.query_heads, site.key_heads) == (4, 2)


@pytest.mark.parametrize(
    ("mask", "kind"),
    [(torch.zeros(1, 1, 1, 64), MaskKind.ADDITIVE), (torch.ones(64, 64, dtype=torch.bool), MaskKind.BOOLEAN)],
)
def test_masks(mask: Tensor, kind: MaskKind):
    def attend(query: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, query, query, attn_mask=mask)

    site = only_site(attend, query=QUERY, mask=mask)
    assert (site.mask_kind, site.mask_shape) == (kind, tuple(mask.shape))


def test_causal_is_a_kind_of_its_own():
    site = only_site(lambda query: F.scaled_dot_product_attention(query, query, query, is_causal=True), query=QUERY)
    assert site.mask_kind is MaskKind.CAUSAL


def test_text_context_and_current_keys_of_a_denoising_step():
    def attend(current: Tensor, context: Tensor, text: Tensor) -> Tensor:
        query = patches(current)
        key = torch.cat([text, patches(context), query], 2)
        return F.scaled_dot_product_attention(query, key, key)

    site = only_site(attend, current=CURRENT, context=CONTEXT, text=TEXT)
    assert site.kind is SiteKind.DENOISE
    assert [(span.kind, span.length) for span in site.key_spans] == [
        (SpanKind.TEXT, 5),
        (SpanKind.CONTEXT, 128),
        (SpanKind.CURRENT, 64),
    ]
    assert (str(site.query_grid), str(site.key_grid)) == ("4x4x4", "12x4x4")
    assert [piece.length for piece in site.key_pieces] == [5, 128, 64]


def test_a_concatenation_is_seen_through_permutations():
    def attend(current: Tensor, text: Tensor) -> Tensor:
        query = patches(current)
        key = torch.cat([query.transpose(1, 2), text.permute(0, 2, 1, 3)], 1).transpose(1, 2)
        return F.scaled_dot_product_attention(query, key, key)

    site = only_site(attend, current=CURRENT, text=TEXT)
    assert site.kind is SiteKind.PREFILL
    assert [(piece.length, piece.layout) for piece in site.key_pieces] == [(64, ((0, 2, 1, 3),)), (5, ((0, 2, 1, 3),))]
    assert str(site.key_axis) == "4x4x4 | 5"


def test_text_cross_attention_is_recognised_as_such():
    def attend(current: Tensor, text: Tensor) -> Tensor:
        key = F.linear(text, torch.ones(8, 8))
        return F.scaled_dot_product_attention(patches(current), key, key)

    site = only_site(attend, current=CURRENT, text=TEXT)
    assert site.kind is SiteKind.CROSS
    assert site.reason == "cross-attention: the keys are tokens of text"


def given(query: Tensor, cache: Tensor) -> Tensor:
    return cache


def scattered(query: Tensor, cache: Tensor) -> Tensor:
    return torch.cat([cache, cache, cache.repeat(1, 1, 30, 1)], 2).slice_scatter(query, 2, 0, 64)


def copied(query: Tensor, cache: Tensor) -> Tensor:
    return cache.repeat(1, 1, 30, 1).index_copy(2, torch.arange(64), query)


@pytest.mark.parametrize("keys", [given, scattered, copied], ids=lambda keys: keys.__name__)
def test_attention_over_a_cache_is_not_called_cross_attention(keys: Callable[..., Tensor]):
    def attend(current: Tensor, cache: Tensor) -> Tensor:
        query = patches(current)
        query = F.linear(query, torch.ones(8, 8))
        key = keys(query, cache)
        return F.scaled_dot_product_attention(query, key, key)

    site = only_site(attend, current=CURRENT, cache=TEXT)
    assert site.kind is SiteKind.CACHE and "cross-attention" not in site.reason and "cannot be told" in site.reason
    assert ("queries' own tokens" in site.reason) == (keys is not given)


def test_what_is_no_block_of_frames_has_a_reason():
    def other_plane(current: Tensor, context: Tensor) -> Tensor:
        key = torch.cat([patches(context), patches(current)], 2)
        return F.scaled_dot_product_attention(patches(current), key, key)

    def context_last(current: Tensor, context: Tensor) -> Tensor:
        query = patches(current)
        key = torch.cat([query, patches(context)], 2)
        return F.scaled_dot_product_attention(query, key, key)

    def torn(current: Tensor, context: Tensor, text: Tensor) -> Tensor:
        query = patches(current)
        key = torch.cat([patches(context), text, query], 2)
        return F.scaled_dot_product_attention(query, key, key)

    site = only_site(other_plane, current=CURRENT, context=torch.zeros(1, 32, 8, 2, 2))
    assert (site.kind, site.query_grid) == (SiteKind.OTHER, None)
    assert site.reason.startswith("several grids share the axes")
    site = only_site(context_last, current=CURRENT, context=CONTEXT)
    assert site.reason.startswith("the queries' frames are not the last keys")
    site = only_site(torn, current=CURRENT, context=CONTEXT, text=TEXT)
    assert site.reason.startswith("tokens without a grid lie between frames")


def test_no_attention_gives_an_empty_fact():
    fact = trace_function(lambda tensor: tensor + 1, {"tensor": QUERY}).fact(AttentionSites)
    assert len(fact) == 0
