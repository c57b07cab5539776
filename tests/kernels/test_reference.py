"""The specification against independent formulas: SDPA with an expanded mask, and the published kernels' output."""

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attention_cases import SITES, random_lists

from lightint_compile import kernels
from lightint_compile.kernels import reference
from lightint_compile.kernels.spans import from_tiles, split_spans, to_tiles
from lightint_compile.kernels.tiles import key_token_map, token_map

GOLDEN = Path(__file__).parents[1] / "data/light_interaction_tiny.npz"


def attend(site, query, key, value, index, count):
    spans = split_spans([key], site.layout), split_spans([value], site.layout)
    return reference.attend(query, *spans, index, count, site.layout, site.head_dim**-0.5)


def expanded_mask(site, index, count):
    """Which key each query sees, token by token, from the lists alone."""
    layout, mask = site.layout, torch.zeros(site.batch, site.heads, site.layout.current_tokens, site.layout.key_tokens)
    mask[..., : site.prefix] = 1
    query_tokens, query_valid = token_map(site.query_grid, site.tile)
    key_tokens, key_valid = key_token_map(layout)
    for b, h, i in np.ndindex(site.batch, site.heads, layout.query_tiles):
        for block in index[b, h, i, : count[b, h, i]].tolist():
            rows, columns = query_tokens[i][query_valid[i]], key_tokens[block][key_valid[block]] + site.prefix
            mask[b, h, rows[:, None], columns[None]] += 1
    return mask


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("kind", ["none", "mixed", "all", "permuted", "duplicate"])
def test_attention_is_sdpa_over_the_listed_tokens(name, kind):
    site = SITES[name]
    query, key, value = site.tensors(torch.float64)
    index, count = random_lists(site, kind)
    bias = expanded_mask(site, index, count).double().log()
    key_all, value_all = (part.repeat_interleave(site.heads // site.key_heads, 1) for part in (key, value))
    expected = F.scaled_dot_product_attention(query, key_all, value_all, bias)
    empty = bias.isneginf().all(-1, keepdim=True)
    torch.testing.assert_close(attend(site, query, key, value, index, count), expected.masked_fill(empty, 0.0))


def test_pooling_counts_the_tokens_that_exist():
    site = SITES["ragged"]
    query, _, _ = site.tensors(torch.float64)
    pools = kernels.pool_tiles(query, grid=site.query_grid, tile=site.tile)
    for i, (tokens, valid) in enumerate(zip(*token_map(site.query_grid, site.tile), strict=True)):
        inside = query[:, :, tokens[valid]]
        torch.testing.assert_close(pools[:, :, i, :-1], inside.mean(2))
        torch.testing.assert_close(pools[:, :, i, -1], inside.var(2, correction=0).mean(-1))


def generate(name, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


class Published:
    """The published rule, flaws included: empty slots join means and softmax as zeros, and so does text padding."""

    tile, dim = (4, 8, 4), 128

    def __init__(self, query, key, value, query_frames, key_frames):
        self.grids = (query_frames, 6, 10), (key_frames, 6, 10)
        self.query, self.key, self.value = (
            generate(name, 2, 2, frames * 60, 128)
            for name, frames in ((query, query_frames), (key, key_frames), (value, key_frames))
        )
        self.text = [generate(name, 2, 2, 70, 128) for name in ("kt", "vt")]

    def scores(self):
        query, key = (
            to_tiles(t, g, self.tile).sum(3) / 128 for t, g in zip((self.query, self.key), self.grids, strict=True)
        )
        return query @ key.mT / math.sqrt(128)

    def output(self, keep):
        tiled = to_tiles(self.query, self.grids[0], self.tile)
        key, value = (
            torch.cat([F.pad(text, (0, 0, 0, 58)), to_tiles(part, self.grids[1], self.tile).flatten(2, 3)], 2)
            for text, part in zip(self.text, (self.key, self.value), strict=True)
        )
        mask = F.pad(keep.repeat_interleave(128, -1), (128, 0), value=True)[:, :, :, None]
        result = F.scaled_dot_product_attention(tiled, key[:, :, None], value[:, :, None], mask)
        return from_tiles(result, self.grids[0], self.tile)

    def corrected(self, keep):
        count = keep.sum(-1, dtype=torch.int32)
        index = torch.where(keep, torch.arange(keep.shape[-1]), 99).sort(-1).values.int()
        key, value = (torch.cat([t, p], 2) for t, p in zip(self.text, (self.key, self.value), strict=True))
        query_grid, key_grid = self.grids
        return kernels.block_sparse_attention(
            self.query, key, value, index, count, query_grid=query_grid, key_grid=key_grid, prefix=70, tile=self.tile
        )


@pytest.mark.parametrize("case", ["decode", "prefill"])
def test_published_kernels_are_reproduced_by_their_rule_and_corrected_by_ours(case):
    golden = torch.from_numpy(np.load(GOLDEN)[case])
    if case == "decode":  # the current row protected, 0.35 of the six others
        site = Published("q", "k", "v", 4, 12)
        top = site.scores()[..., :6].topk(2).indices
        keep = torch.zeros(2, 2, 3, 9, dtype=torch.bool).scatter(-1, top, True)
        keep[..., 6:] = True
    else:  # at least seven of six blocks
        site = Published("qp", "kp", "vp", 8, 8)
        keep = torch.ones(2, 2, 6, 6, dtype=torch.bool)
    torch.testing.assert_close(site.output(keep), golden, atol=1e-6, rtol=0)
    assert (site.corrected(keep) - golden).abs().max() > 1e-3
