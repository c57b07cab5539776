import math

import pytest
import torch
from attention_cases import SITES
from hypothesis import given, settings
from hypothesis import strategies as st

from lightint_compile import kernels
from lightint_compile.kernels import reference
from lightint_compile.kernels.tiles import Layout, forced_blocks, token_map


def pools_of(site, dtype=torch.float64):
    query, key, _ = site.tensors(dtype)
    context = site.layout.context_tokens
    pieces = key.split([site.prefix, context, site.layout.current_tokens], 2)
    key_pools = [kernels.pool_tiles(pieces[2], grid=site.query_grid, tile=site.tile)]
    if context:
        key_pools.insert(0, kernels.prepare_context(pieces[1], grid=site.layout.context_grid, tile=site.tile))
    return kernels.pool_tiles(query, grid=site.query_grid, tile=site.tile), key_pools


def select(site, **policy):
    grids = {"query_grid": site.query_grid, "key_grid": site.key_grid, "tile": site.tile}
    return kernels.select_blocks(*pools_of(site), **grids, **policy)


def kept(index, count, blocks):
    listed = torch.arange(index.shape[-1]) < count[..., None]
    return torch.zeros(*index.shape[:-1], blocks + 1).scatter(-1, torch.where(listed, index, blocks).long(), 1)[
        ..., :-1
    ]


policies = st.fixed_dictionaries(
    {
        "density": st.floats(0.01, 1.0),
        "coverage": st.one_of(st.none(), st.floats(0.05, 1.0)),
        "protect_frames": st.integers(0, 9),
        "neighbours": st.integers(0, 2),
    }
)


@given(st.sampled_from(sorted(SITES)), policies)
@settings(max_examples=40, deadline=None)
def test_lists_are_ascending_complete_and_within_budget(name, policy):
    site = SITES[name]
    layout = site.layout
    index, count = select(site, **policy)
    assert index.dtype == count.dtype == torch.int32
    assert index.shape[-1] == layout.list_width(policy["density"], policy["protect_frames"], policy["neighbours"])
    forced = forced_blocks(layout, policy["protect_frames"], policy["neighbours"])
    least, cap = forced.sum(-1), forced.sum(-1).clamp(min=layout.budget(policy["density"]))
    assert ((count >= least) & (count <= cap)).all()
    if policy["coverage"] is None:
        assert (count == cap).all()
    assert kept(index, count, layout.key_blocks).bool().masked_fill(~forced, True).all()
    listed = torch.arange(index.shape[-1]) < count[..., None]
    pairs = listed[..., 1:]
    assert (index.diff(dim=-1)[pairs] > 0).all()


def test_the_best_scores_are_kept():
    site = SITES["ragged"]
    query_pool, key_pools = pools_of(site)
    index, count = select(site, density=0.4)
    scores = reference.block_scores(query_pool, torch.cat(key_pools, 2), site.layout, site.head_dim**-0.5)
    chosen = kept(index, count, site.layout.key_blocks).bool()
    optional = ~forced_blocks(site.layout, 0, 1)
    worst = scores.masked_fill(~(chosen & optional), torch.inf).amin(-1)
    best = scores.masked_fill(chosen, -torch.inf).amax(-1)
    assert (worst >= best).all()


def test_coverage_keeps_the_shortest_prefix_that_holds_the_mass():
    site = SITES["aligned"]
    query_pool, key_pools = pools_of(site)
    index, count = select(site, density=1.0, coverage=0.8, neighbours=0, scale=3.0)
    scores = reference.block_scores(query_pool, torch.cat(key_pools, 2), site.layout, 3.0)
    mass = scores.softmax(-1)
    chosen = kept(index, count, site.layout.key_blocks).bool()
    held = mass.masked_fill(~chosen, 0).sum(-1)
    smallest = mass.masked_fill(~(chosen & ~forced_blocks(site.layout, 0, 0)), torch.inf).amin(-1)
    assert (held >= 0.8).all()
    assert ((held - smallest < 0.8) | (count == 1)).all()
    assert count.unique().numel() > 1, "a coverage that never adapts tests nothing"


def test_border_tiles_are_not_favoured_by_their_few_tokens():
    """Equal keys everywhere: a tile of half the tokens holds half the mass, and full tiles come first."""
    layout = Layout((0, 1), 4, 6, (1, 4, 4))  # a full tile and one of half the width
    ones = torch.ones(1, 1, 2, 9, dtype=torch.float64)
    ones[..., -1] = 0
    mass = reference.block_scores(ones, ones, layout, 1.0).softmax(-1)
    torch.testing.assert_close(mass[0, 0, 0], torch.tensor([2 / 3, 1 / 3], dtype=torch.float64))


@pytest.mark.parametrize(("deviation", "tolerance"), [(0.5, 0.05), (2.0, 0.3), (3.0, 0.8), (6.0, 3.0)])
def test_spread_keys_hold_as_much_more_mass_as_normal_numbers_do(deviation, tolerance):
    """Keys of one mean: the score exceeds that of equal keys by the log of the mean exponential of their logits."""
    generator = torch.Generator().manual_seed(0)
    layout, dim = Layout((0, 4), 8, 8 * 40, (4, 8, 4)), 8
    query = torch.ones(1, 1, layout.current_tokens, dim, dtype=torch.float64)
    spread = torch.randn(query.shape, generator=generator, dtype=torch.float64) * deviation / dim**0.5
    query_pool, key_pool = (reference.pool_tiles(part, layout.current_grid, layout.tile) for part in (query, spread))
    score = reference.block_scores(query_pool, key_pool, layout, 1.0)[0, 0, 0]
    tokens = token_map(layout.current_grid, layout.tile)[0]
    exact = (spread.sum(-1)[0, 0][tokens]).logsumexp(-1)
    # 128 samples stay below the limit of many, by more the rarer those are that make the mean.
    assert -0.05 < float((score - exact).mean()) < tolerance
    equal = math.log(128)
    assert float((exact - equal).mean()) > 2 * abs(float((score - exact).mean()))


@pytest.mark.parametrize("name", ["ragged", "aligned"])
def test_prepared_context_gives_the_same_attention(name):
    site = SITES[name]
    query, key, value = site.tensors(torch.float64)
    index, count = select(site, density=0.4, protect_frames=2)
    split = kernels.block_sparse_attention(query, key, value, index, count, **site.grids)
    with kernels.using("gather"):
        settings = {"density": 0.4, "protect_frames": 2, "skipped_means": 0, **site.grids}
        whole = kernels.sparse_attention(query, key, value, **settings)
    torch.testing.assert_close(split, whole)
