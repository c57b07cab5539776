"""Blocks that are not read take part by their means: what that is, when it is exact, and who computes it."""

import pytest
import torch
import torch.nn.functional as F
from attention_cases import SITES

from lightint_compile import kernels
from lightint_compile.kernels import reference
from lightint_compile.kernels.tiles import key_token_map

POLICIES = (
    {"density": 0.2, "neighbours": 0},
    {"density": 0.5, "coverage": 0.6},
    {"density": 0.3, "context_density": 0.1},
)
NAMES = ("aligned", "ragged", "odd-tile", "wide-tile")


def by_hand(site, query, key, value, policy):
    """Dense attention over every token that is read and one token for each block that is not."""
    layout, groups = site.layout, site.heads // site.key_heads
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    tokens, valid = key_token_map(layout)
    blocks = [t[v] for t, v in zip(tokens + layout.prefix, valid, strict=True)]
    means = [torch.stack([part[:, :, tokens].mean(2) for tokens in blocks], 2) for part in (key, value)]
    spread = torch.stack([key[:, :, tokens].var(2, correction=0).mean(-1, keepdim=True) for tokens in blocks], 2)
    query_pool = kernels.pool_tiles(query, grid=site.query_grid, tile=site.tile)
    grids = {"query_grid": site.query_grid, "key_grid": site.key_grid, "tile": site.tile}
    index, count = kernels.select_blocks(query_pool, [torch.cat([means[0], spread], -1)], **grids, **policy)
    read = reference.token_weights(index, count, layout).bool()
    skipped = reference.by_query(reference.multiplicity(index, count, layout) == 0, layout)
    logs = valid.sum(-1).to(key).log()
    bias = torch.cat([torch.where(read, 0.0, -torch.inf), torch.where(skipped, logs, -torch.inf)], -1)
    keys, values = (torch.cat([part, mean], 2) for part, mean in zip((key, value), means, strict=True))
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)


@pytest.mark.parametrize("implementation", ["reference", "gather"])
@pytest.mark.parametrize("policy", POLICIES, ids=["thin", "covering", "context"])
@pytest.mark.parametrize("name", NAMES)
def test_a_skipped_block_counts_as_its_mean(name, policy, implementation):
    site = SITES[name]
    tensors = site.tensors(torch.float64)
    with kernels.using(implementation):
        ours = kernels.sparse_attention(*tensors, **policy, **site.grids)
        without = kernels.sparse_attention(*tensors, **policy, skipped_means=False, **site.grids)
    expected = by_hand(site, *tensors, policy)
    torch.testing.assert_close(ours, expected)
    assert (without - expected).norm() > 0.05 * expected.norm()


@pytest.mark.parametrize("implementation", ["reference", "gather"])
@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_equal_keys_lose_nothing(name, implementation):
    """Then a mean stands for its block exactly, whatever the values are."""
    site = SITES[name]
    query, key, value = site.tensors(torch.float64)
    tokens, valid = key_token_map(site.layout)
    for slots, exist in zip(tokens + site.prefix, valid, strict=True):
        key[:, :, slots[exist]] = key[:, :, slots[exist][:1]]
    with kernels.using(implementation):
        ours = kernels.sparse_attention(query, key, value, density=0.1, neighbours=0, **site.grids)
    dense = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(ours, dense)


def test_rows_that_read_every_block_have_nothing_to_stand_for():
    site = SITES["ragged"]
    tensors = site.tensors(torch.float64)
    for implementation in ("reference", "gather"):
        with kernels.using(implementation):
            ours = kernels.sparse_attention(*tensors, density=0.1, neighbours=20, **site.grids)
        torch.testing.assert_close(ours, F.scaled_dot_product_attention(*tensors, enable_gqa=True))


def test_the_prepared_value_pool_is_what_stands_for_context():
    site = SITES["ragged"]
    layout, (query, key, value) = site.layout, site.tensors(torch.float64)
    cut = [layout.prefix, layout.context_tokens, layout.current_tokens]
    keys, values = key.split(cut, 2), value.split(cut, 2)
    pools = [kernels.prepare_context(p[1], grid=layout.context_grid, tile=site.tile) for p in (keys, values)]
    settings = {"density": 0.3, "neighbours": 0, **site.grids}
    with kernels.using("gather"):
        right = kernels.sparse_attention_prepared(query, keys, values, *pools, **settings)
        wrong = kernels.sparse_attention_prepared(query, keys, values, pools[0], -pools[1], **settings)
        dropped = [
            kernels.sparse_attention_prepared(query, keys, values, pools[0], p, skipped_means=False, **settings)
            for p in (pools[1], -pools[1])
        ]
    torch.testing.assert_close(right, kernels_whole(query, key, value, settings))
    assert not torch.allclose(right, wrong)
    torch.testing.assert_close(*dropped)


def kernels_whole(query, key, value, settings):
    with kernels.using("reference"):
        return kernels.sparse_attention(query, key, value, **settings)


def test_the_context_has_a_budget_of_its_own():
    layout = SITES["ragged"].layout
    rows, blocks = layout.row_blocks, layout.context_blocks
    assert layout.budget(1.0, 0.5) == layout.query_tiles + blocks // 2
    assert layout.budget(0.5, 1.0) == -(-layout.query_tiles // 2) + blocks
    assert layout.budget(0.5, 0.001) == -(-layout.query_tiles // 2)
    assert layout.list_width(0.01, 0, 0, 0.01) == max(1, layout.budget(0.01, 0.01))
    assert layout.list_width(0.01, 3, 0, 0.01) >= 2 * rows
