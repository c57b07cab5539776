"""Blocks that are not read take part by their means: what that is, when it is exact, and who computes it."""

import pytest
import torch
import torch.nn.functional as F
from attention_cases import SITES

from lightint_compile import kernels
from lightint_compile.errors import InputError
from lightint_compile.kernels import reference
from lightint_compile.kernels.tiles import key_token_map

POLICIES = (
    {"density": 0.2, "neighbours": 0},
    {"density": 0.5, "coverage": 0.6},
    {"density": 0.3, "context_density": 0.1},
)
NAMES = ("aligned", "ragged", "odd-tile", "wide-tile")
QUICK = {("odd-tile", 1), ("wide-tile", 1), ("ragged", 4), ("prefill", 2)}
FINER = (("aligned", 2), ("ragged", 4), ("ragged", 8), ("prefill", 2), ("wide-tile", 8))


def by_hand(site, query, key, value, policy, parts):
    """Dense attention over every token that is read and one token for each part of a block that is not."""
    layout, groups = site.layout, site.heads // site.key_heads
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    blocks, finer = (tokens_of(each, layout.prefix) for each in (layout, layout.finer(parts)))
    pool = torch.stack([key[:, :, tokens].mean(2) for tokens in blocks], 2)
    spread = torch.stack([key[:, :, tokens].var(2, correction=0).mean(-1, keepdim=True) for tokens in blocks], 2)
    query_pool = kernels.pool_tiles(query, grid=site.query_grid, tile=site.tile)
    grids = {"query_grid": site.query_grid, "key_grid": site.key_grid, "tile": site.tile}
    index, count = kernels.select_blocks(query_pool, [torch.cat([pool, spread], -1)], **grids, **policy)
    read = reference.token_weights(index, count, layout).bool()
    means = [torch.stack([part[:, :, tokens].mean(2) for tokens in finer], 2) for part in (key, value)]
    skipped = torch.stack([~read[..., tokens[0]] for tokens in finer], -1)
    logs = torch.tensor([len(tokens) for tokens in finer]).to(key).log()
    bias = torch.cat([torch.where(read, 0.0, -torch.inf), torch.where(skipped, logs, -torch.inf)], -1)
    keys, values = (torch.cat([part, mean], 2) for part, mean in zip((key, value), means, strict=True))
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)


def tokens_of(layout, prefix):
    """The tokens of each tile."""
    tokens, valid = key_token_map(layout)
    return [t[v] for t, v in zip(tokens + prefix, valid, strict=True)]


@pytest.mark.parametrize("implementation", ["reference", "gather"])
@pytest.mark.parametrize("policy", POLICIES, ids=["thin", "covering", "context"])
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow)
        for each in (*((n, 1) for n in NAMES), *FINER)
    ],
)
def test_a_skipped_block_counts_as_the_means_of_its_parts(name, parts, policy, implementation):
    site = SITES[name]
    tensors = site.tensors(torch.float64)
    with kernels.using(implementation):
        ours = kernels.sparse_attention(*tensors, **policy, skipped_means=parts, **site.grids)
        without = kernels.sparse_attention(*tensors, **policy, skipped_means=0, **site.grids)
    expected = by_hand(site, *tensors, policy, parts)
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


@pytest.mark.parametrize("parts", [1, 4])
def test_prepared_means_are_what_stands_for_context(parts):
    site = SITES["ragged"]
    layout, (query, key, value) = site.layout, site.tensors(torch.float64)
    cut = [layout.prefix, layout.context_tokens, layout.current_tokens]
    keys, values = key.split(cut, 2), value.split(cut, 2)
    finer = kernels.part_tile(site.tile, parts)
    pool, key_means, value_means = (
        kernels.prepare_context(spans[1], grid=layout.context_grid, tile=tile)
        for spans, tile in ((keys, site.tile), (keys, finer), (values, finer))
    )
    settings = {"density": 0.3, "neighbours": 0, **site.grids}

    def prepared(*means):
        with kernels.using("gather"):
            return kernels.sparse_attention_prepared(query, keys, values, pool, *means, skipped_means=parts, **settings)

    whole = kernels_whole(query, key, value, {**settings, "skipped_means": parts})
    torch.testing.assert_close(prepared(key_means, value_means), whole)
    torch.testing.assert_close(prepared(), whole)
    assert not torch.allclose(prepared(key_means, -value_means), whole)
    assert not torch.allclose(prepared(-key_means, value_means), whole)


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


@pytest.mark.parametrize(("tile", "parts"), [((1, 3, 5), 2), ((4, 8, 4), 3), ((2, 2, 1), 8), ((4, 8, 4), -1)])
def test_parts_that_a_tile_does_not_have(tile, parts):
    query = torch.zeros(1, 1, 64, 8)
    grids = {"query_grid": (4, 4, 4), "key_grid": (4, 4, 4), "tile": tile}
    with pytest.raises(InputError, match="no such parts"):
        kernels.sparse_attention(query, query, query, density=0.5, skipped_means=parts, **grids)
    with pytest.raises(InputError, match="skipped_means"):
        kernels.part_tile(tile, parts)


def test_a_part_is_half_of_the_frames_then_of_the_rows_then_of_the_columns():
    assert [kernels.part_tile((4, 8, 4), parts) for parts in (1, 2, 4, 8, 16)] == [
        (4, 8, 4), (2, 8, 4), (2, 4, 4), (2, 4, 2), (1, 4, 2),
    ]  # fmt: skip
    assert kernels.part_tile((1, 6, 4), 4) == (1, 3, 2)
