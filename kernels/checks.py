"""Argument checks of the operators: one clear error before anything is launched."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightint_compile.errors import InputError

from .tiles import Layout, accumulate_dtype, part_of, volume

SUPPORTED_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
MAX_TILE_SLOTS = 1024

check_index_range = os.environ.get("LIGHTINT_DEBUG", "") not in ("", "0")
"""Whether lists are read back and checked; a host synchronisation, so only for debugging (``LIGHTINT_DEBUG=1``)."""


def no_gradient(*_: Any) -> Any:
    """What asking an operator for a gradient raises."""
    raise InputError(
        "lightint operators have no gradient",
        why="they serve inference; a graph that needs gradients is left to Inductor",
        fix="run under torch.inference_mode() or torch.no_grad(), or detach the inputs",
    )


def site(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    query_grid: Sequence[int],
    key_grid: Sequence[int],
    prefix: int,
    tile: Sequence[int],
) -> Layout:
    """Check the tensors and grids of one attention site and give its layout.

    Raises:
        InputError: ranks, dtypes, devices, heads, grids, tile or lengths that do not fit together.
    """
    _tensors(query, keys, values)
    _grids(query_grid, key_grid, prefix)
    _tile(tile)
    layout = Layout.of(query_grid, key_grid, tile, prefix)
    _length("query", query.shape[2], layout.current_tokens, f"query_grid {tuple(query_grid)}")
    total = sum(key.shape[2] for key in keys)
    _length("key", total, layout.key_tokens, f"prefix {prefix} + key_grid {tuple(key_grid)}")
    return layout


def _tensors(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    if not keys or len(keys) != len(values):
        raise InputError(
            "keys and values must be equally many, and at least one", why=f"{len(keys)} keys, {len(values)} values"
        )
    for tensor in (query, *keys, *values):
        _like_query(tensor, query)
    for key, value in zip(keys, values, strict=True):
        if key.shape != value.shape or key.shape[1] != keys[0].shape[1]:
            raise InputError("keys and values differ in shape", why=f"key {_shape(key)}, value {_shape(value)}")
    if query.shape[1] % keys[0].shape[1]:
        raise InputError(
            "query heads are no multiple of key heads", why=f"{query.shape[1]} query and {keys[0].shape[1]} key heads"
        )


def _like_query(tensor: Tensor, query: Tensor) -> None:
    if tensor.dim() != 4:
        raise InputError("attention takes [batch, heads, tokens, head_dim] tensors", why=f"got {_shape(tensor)}")
    if query.dtype not in SUPPORTED_DTYPES:
        raise InputError("unsupported dtype", why=str(query.dtype), fix="use bfloat16, float16, float32 or float64")
    if tensor.dtype != query.dtype or tensor.device != query.device:
        raise InputError(
            "query, keys and values must share dtype and device",
            why=f"{query.dtype} on {query.device} and {tensor.dtype} on {tensor.device}",
        )
    if tensor.shape[0] != query.shape[0] or tensor.shape[3] != query.shape[3]:
        raise InputError(
            "query, keys and values must share batch and head_dim", why=f"{_shape(query)} and {_shape(tensor)}"
        )


def _grids(query_grid: Sequence[int], key_grid: Sequence[int], prefix: int) -> None:
    if len(query_grid) != 3 or len(key_grid) != 3 or any(n < 1 for n in (*query_grid, *key_grid)) or prefix < 0:
        raise InputError(
            "grids are three positive extents (frames, height, width), the prefix is not negative",
            why=f"query_grid {tuple(query_grid)}, key_grid {tuple(key_grid)}, prefix {prefix}",
        )
    if query_grid[1] != key_grid[1] or query_grid[2] != key_grid[2] or query_grid[0] > key_grid[0]:
        raise InputError(
            "the query grid must be the last frames of the key grid",
            why=f"query_grid {tuple(query_grid)}, key_grid {tuple(key_grid)}",
            fix="give both grids one height and width, and the key grid at least the query's frames",
        )


def _tile(tile: Sequence[int]) -> None:
    if len(tile) != 3 or any(n < 1 for n in tile) or volume(tile) > MAX_TILE_SLOTS:
        raise InputError(
            "the tile does not fit",
            why=f"tile {tuple(tile)}",
            fix=f"three positive extents with a product of at most {MAX_TILE_SLOTS}, such as (4, 8, 4)",
        )


def _length(name: str, seen: int, expected: int, meaning: str) -> None:
    if seen != expected:
        raise InputError(
            f"the {name} length is not that of its grid",
            where=name,
            why=f"{seen} tokens, but {meaning} makes {expected}",
            fix="pass the (frames, height, width) after patchifying, and the text length as prefix",
        )


def policy(
    density: float,
    coverage: float | None,
    protect_frames: int,
    neighbours: int,
    context_density: float | None = None,
) -> None:
    """Check the choice of blocks.

    Raises:
        InputError: density or coverage outside (0, 1], a negative number of frames or radius.
    """
    for name, fraction in (("density", density), ("coverage", coverage), ("context_density", context_density)):
        if fraction is not None and not 0.0 < fraction <= 1.0:
            raise InputError(f"{name} is a kept fraction in (0, 1]", where=name, why=f"got {fraction}")
    if protect_frames < 0 or neighbours < 0:
        raise InputError(
            "protect_frames and neighbours are not negative",
            why=f"protect_frames {protect_frames}, neighbours {neighbours}",
        )


def pool(tokens: Tensor, grid: Sequence[int], tile: Sequence[int]) -> None:
    """Check the arguments of pooling; a grid may have no frames.

    Raises:
        InputError: a rank, dtype, grid, tile or length that does not fit.
    """
    _like_query(tokens, tokens)
    one_more = (grid[0] + 1, *grid[1:]) if len(grid) == 3 else grid
    _grids(one_more, one_more, 0)
    _tile(tile)
    _length("tokens", tokens.shape[2], volume(grid), f"grid {tuple(grid)}")


def parts(tile: Sequence[int], skipped_means: int) -> None:
    """Check how many means stand for a block.

    Raises:
        InputError: a number of parts that the tile does not have.
    """
    try:
        part_of((tile[0], tile[1], tile[2]), skipped_means)
    except ValueError as error:
        raise InputError(
            "a block has no such parts",
            where="skipped_means",
            why=f"skipped_means is {skipped_means}: {error}",
            fix="0 leaves skipped blocks out; 1, 2, 4 or 8 as far as the tile's extents can be halved",
        ) from None


def min_tokens(keys: int | None = None) -> None:
    """Check the number of keys below which a call is dense.

    Raises:
        InputError: a negative number.
    """
    if keys is not None and keys < 0:
        raise InputError("min_tokens is a number of keys, not negative", where="min_tokens", why=f"got {keys}")


def given_pools(pools: Iterable[Tensor | None], key: Tensor, layout: Layout, skipped_means: int) -> None:
    """Check what of the context was pooled earlier: keys by tiles, then keys and values by the parts that have means.

    Raises:
        InputError: as of :func:`context_pool` and :func:`parts`.
    """
    parts(layout.tile, skipped_means)
    finer = layout.finer(max(skipped_means, 1))
    names = ("context_pool", "context_key_means", "context_value_means")
    for name, pool, of in zip(names, pools, (layout, finer, finer), strict=True):
        if pool is not None:
            context_pool(pool, key, of, name)


def context_pool(pool: Tensor, key: Tensor, layout: Layout, name: str) -> None:
    """Check pooled context keys, or values, that were prepared earlier.

    Raises:
        InputError: a shape, dtype or device that pooling this layout's context would not have given.
    """
    expected = (key.shape[0], key.shape[1], layout.context_blocks, key.shape[3] + 1)
    dtype = accumulate_dtype(key.dtype)
    fits = pool.dim() == 4 and all(seen == wanted for seen, wanted in zip(pool.shape, expected, strict=True))
    if not fits or pool.dtype != dtype or pool.device != key.device:
        raise InputError(
            f"{name} is not that of the context",
            where=name,
            why=f"{_shape(pool)} {pool.dtype} on {pool.device}, expected {list(expected)} {dtype} on {key.device}",
            fix=f"pool the context's visual tokens so: prepare_context(key, grid=..., tile={layout.tile})",
        )


def key_mask(mask: Tensor, query: Tensor, layout: Layout) -> None:
    """Check a mask of keys: bool (True takes part) or numbers that are added to the logits.

    Raises:
        InputError: not ``[batch or 1, key_tokens or prefix]``, another dtype or another device.
    """
    known = mask.dtype == torch.bool or mask.dtype in SUPPORTED_DTYPES
    fits = mask.dim() == 2 and any(mask.shape[0] == size for size in (1, query.shape[0]))
    if not fits or not any(mask.shape[1] == size for size in (layout.key_tokens, layout.prefix)) or not known:
        raise InputError(
            "a mask of keys is bool or floating [batch or 1, keys]",
            where="key_mask",
            why=f"{_shape(mask)} {mask.dtype}, for {layout.key_tokens} keys, {layout.prefix} of them text in front",
        )
    if mask.device != query.device:
        raise InputError("the mask is on another device", where="key_mask", why=f"{mask.device}, not {query.device}")


def pools(query_pool: Tensor, key_pools: Sequence[Tensor], layout: Layout) -> None:
    """Check that prepared pools belong to the layout.

    Raises:
        InputError: a number of tiles or heads that the grids do not have.
    """
    for pool in (query_pool, *key_pools):
        _like_query(pool, query_pool)
    _length("query_pool", query_pool.shape[2], layout.query_tiles, "the query grid")
    _length("key_pools", sum(pool.shape[2] for pool in key_pools), layout.key_blocks, "the key grid")
    if any(query_pool.shape[1] % pool.shape[1] for pool in key_pools):
        raise InputError("query heads are no multiple of key heads", where="key_pools")


def lists(index: Tensor, count: Tensor, query: Tensor, layout: Layout) -> None:
    """Check the block lists against the query; their contents only under ``LIGHTINT_DEBUG=1``.

    Raises:
        InputError: wrong dtype, device, shape or memory order; in debug mode a block or count out of range.
    """
    rows = (query.shape[0], query.shape[1], layout.query_tiles)
    if index.dim() != 4 or tuple(index.shape[:3]) != rows or tuple(count.shape) != rows:
        raise InputError(
            "index is [batch, query_heads, query_tiles, width] and count the same without width",
            why=f"index {_shape(index)}, count {_shape(count)}, expected rows {rows}",
        )
    for name, tensor in (("index", index), ("count", count)):
        if tensor.dtype != torch.int32 or tensor.device != query.device or not tensor.is_contiguous():
            raise InputError(
                f"{name} is contiguous int32 on the query's device",
                where=name,
                why=f"{tensor.dtype} on {tensor.device}, strides {tuple(tensor.stride())}",
            )
    if check_index_range:
        _contents(index, count, layout)


def _contents(index: Tensor, count: Tensor, layout: Layout) -> None:
    if bool(((count < 0) | (count > index.shape[-1])).any()):
        raise InputError("a count is out of range", where="count", why=f"the lists are {index.shape[-1]} wide")
    listed = torch.arange(index.shape[-1], device=index.device) < count[..., None]
    if bool((((index < 0) | (index >= layout.key_blocks)) & listed).any()):
        raise InputError("a listed block is out of range", where="index", why=f"there are {layout.key_blocks} blocks")


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
