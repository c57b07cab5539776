import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightint_compile.kernels import reference
from lightint_compile.kernels.spans import from_tiles, split_spans, to_tiles
from lightint_compile.kernels.tiles import (
    Layout,
    ball_size,
    block_positions,
    key_token_map,
    token_map,
    valid_counts,
    volume,
)

extents = st.tuples(*[st.integers(1, 7)] * 3)
tiles = st.tuples(*[st.integers(1, 5)] * 3)


@given(extents, tiles)
@settings(max_examples=40, deadline=None)
def test_every_token_has_exactly_one_slot(grid, tile):
    tokens, valid = token_map(grid, tile)
    assert sorted(tokens[valid].tolist()) == list(range(volume(grid)))
    assert valid_counts(grid, tile).min() >= 1


@given(extents, tiles)
@settings(max_examples=40, deadline=None)
def test_tiling_agrees_with_the_token_map_and_inverts(grid, tile):
    numbers = torch.arange(volume(grid), dtype=torch.float64).view(1, 1, -1, 1) + 1
    tiled = to_tiles(numbers, grid, tile)
    tokens, valid = token_map(grid, tile)
    assert torch.equal(tiled[0, 0, :, :, 0], torch.where(valid, tokens + 1, 0).double())
    assert torch.equal(from_tiles(tiled, grid, tile), numbers)


@given(extents, st.integers(0, 6), tiles)
@settings(max_examples=40, deadline=None)
def test_query_tiles_are_the_last_key_tiles(grid, context, tile):
    layout = Layout.of(grid, (grid[0] + context, *grid[1:]), tile)
    tokens, valid = key_token_map(layout)
    own, own_valid = token_map(grid, tile)
    current = slice(layout.context_blocks, None)
    assert tokens.shape[0] == layout.key_blocks == len(block_positions(layout))
    assert torch.equal(tokens[current][own_valid] - layout.context_tokens, own[own_valid])
    assert torch.equal(valid[current], own_valid)


@given(st.integers(1, 6), st.integers(0, 6), st.integers(1, 4), st.integers(0, 14))
@settings(max_examples=60, deadline=None)
def test_protected_rows_are_those_that_hold_a_recent_frame(current, context, depth, protect):
    layout = Layout((context, current), 1, 1, (depth, 1, 1))
    tokens, valid = key_token_map(layout)
    recent = ((tokens >= context + current - protect) & valid).any(-1)
    rows = torch.arange(layout.key_blocks) >= layout.first_protected_row(protect)
    assert torch.equal(rows, recent)


def test_ball_size_counts_lattice_points():
    for radius in range(5):
        axis = torch.arange(-radius, radius + 1)
        points = torch.cartesian_prod(axis, axis, axis).view(-1, 3)
        assert ball_size(radius) == int((points.abs().sum(-1) <= radius).sum())


def test_budget_is_exact_where_floats_are_not():
    layout = Layout((0, 10), 1, 1, (1, 1, 1))
    assert [layout.budget(density) for density in (0.1, 0.3, 0.7, 0.79, 1.0)] == [1, 3, 7, 7, 10]


def test_spans_are_views_wherever_a_segment_holds_them():
    layout = Layout((2, 1), 2, 2, (1, 2, 2), prefix=3)
    whole = torch.randn(1, 1, 15, 4)
    spans = split_spans([whole], layout)
    assert [span.shape[2] for span in spans] == [3, 8, 4]
    assert all(span.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr() for span in spans)
    pieces = [whole[:, :, :7], whole[:, :, 7:12], whole[:, :, 12:]]
    for span, piece in zip(spans, split_spans(pieces, layout), strict=True):
        assert torch.equal(span, piece)


@given(extents, st.integers(0, 9), tiles, st.floats(0.01, 1), st.integers(0, 9), st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_all_is_kept_exactly_where_every_list_holds_every_block(current, context, tile, density, protect, neighbours):
    layout = Layout((context, current[0]), current[1], current[2], tile)
    pools = torch.zeros(1, 1, layout.query_tiles, 5), torch.zeros(1, 1, layout.key_blocks, 5)
    counts = reference.select_blocks(
        pools[0],
        list(pools[1].split([layout.context_blocks, layout.query_tiles], 2)),
        layout,
        density=density,
        protect_frames=protect,
        neighbours=neighbours,
        coverage=None,
        scale=1.0,
    ).counts
    assert layout.keeps_all(density, protect, neighbours) == bool((counts == layout.key_blocks).all())
