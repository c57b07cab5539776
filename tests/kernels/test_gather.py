"""The CPU implementation against the specification: every kind of list on every ragged site."""

import pytest
import torch
from attention_cases import SITES, Site, random_lists
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightint_compile import kernels
from lightint_compile.kernels import gather
from lightint_compile.kernels.tiles import key_token_map

KINDS = ["none", "one", "two", "all", "mixed", "permuted", "duplicate"]


def both(site, kind, dtype, seed=0):
    query, key, value = site.tensors(dtype, seed=seed)
    lists = random_lists(site, kind, seed=seed)
    results = []
    for name in ("gather", "reference"):
        with kernels.using(name):
            results.append(kernels.block_sparse_attention(query, key, value, *lists, **site.grids))
    return results


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_specification(name, kind):
    ours, expected = both(SITES[name], kind, torch.float64)
    torch.testing.assert_close(ours, expected)


def test_long_lists_are_merged_from_pieces(monkeypatch):
    monkeypatch.setattr(gather, "_PIECE_BYTES", 1)
    for kind in KINDS:
        ours, expected = both(SITES["ragged"], kind, torch.float64)
        torch.testing.assert_close(ours, expected)


sites = st.builds(
    lambda frames, context, height, width, tile, prefix, heads, groups: Site(
        (frames, height, width),
        (frames + context, height, width),
        tile,
        prefix,
        heads=heads * groups,
        key_heads=heads,
        head_dim=16,
    ),
    *[st.integers(low, high) for low, high in ((1, 5), (0, 4), (1, 7), (1, 7))],
    st.tuples(*[st.integers(1, 5)] * 3),
    *[st.integers(low, high) for low, high in ((0, 9), (1, 2), (1, 3))],
)


@given(sites, st.sampled_from(KINDS), st.integers(0, 99))
@example(Site((1, 1, 2), (1, 1, 2), (1, 2, 1), prefix=1, heads=1, key_heads=1), "none", 0)  # tiles as strided views
@settings(max_examples=40, deadline=None)
def test_equals_the_specification_on_any_geometry(site, kind, seed):
    ours, expected = both(site, kind, torch.float64, seed)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_within_twice_that_of_dense_attention(dtype):
    site = SITES["ragged"]
    query, key, value = site.tensors(dtype)
    lists = random_lists(site, "all")
    ours = kernels.block_sparse_attention(query, key, value, *lists, **site.grids)
    wide = [part.double() for part in (query, key, value)]
    exact = kernels.sparse_attention(*wide, density=1.0, **site.grids)
    dense = kernels.sparse_attention(query, key, value, density=1.0, **site.grids)
    ulp = torch.finfo(dtype).eps * exact.abs().max()
    assert (ours - exact).abs().max() <= 2 * (dense - exact).abs().max() + ulp


def test_blocks_that_a_query_does_not_list_cannot_reach_it():
    site = SITES["ragged"]
    query, key, value = site.tensors(torch.float64)
    index, count = random_lists(site, "one")
    index[...] = 2
    clean = kernels.block_sparse_attention(query, key, value, index, count, **site.grids)
    tokens, valid = key_token_map(site.layout)
    poisoned = torch.ones(site.layout.key_tokens, dtype=torch.bool)
    poisoned[: site.prefix] = False
    poisoned[tokens[2][valid[2]] + site.prefix] = False
    for part in (key, value):
        part[:, :, poisoned] = torch.nan
    for name in ("gather", "reference"):
        with kernels.using(name):
            torch.testing.assert_close(
                kernels.block_sparse_attention(query, key, value, index, count, **site.grids), clean
            )


def test_segments_equal_the_whole_wherever_they_are_cut():
    site = SITES["ragged"]
    query, key, value = site.tensors(torch.float64)
    with kernels.using("gather"):
        whole = kernels.sparse_attention(query, key, value, **site.grids)
        for cuts in ([5, 175, 105], [180, 105], [5, 280], [2, 90, 120, 73]):
            parts = [part.split(cuts, 2) for part in (key, value)]
            torch.testing.assert_close(kernels.sparse_attention_segments(query, *parts, **site.grids), whole)


def test_repeats_are_bitwise_equal():
    first, _ = both(SITES["ragged"], "mixed", torch.float32)
    for _ in range(5):
        assert torch.equal(both(SITES["ragged"], "mixed", torch.float32)[0], first)


def test_density_one_is_dense_attention():
    site = SITES["prefill"]
    query, key, value = site.tensors(torch.float32)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.equal(kernels.sparse_attention(query, key, value, density=1.0, **site.grids), expected)
    lists = random_lists(site, "all")
    torch.testing.assert_close(kernels.block_sparse_attention(query, key, value, *lists, **site.grids), expected)
