"""Attention kernels of other packages beside ours; each is a row of the table where it is installed.

``fa3-fwd`` is dense FlashAttention-3. ``fastvideo-kernel`` (blocks of 64) and ``nvidia-cudnn-frontend`` (blocks of 64
or 128) attend to block lists like our kernel, but want tiles side by side in memory: that copy is not charged to them.
They get the lists of our selection, so every row reads the same keys; a row whose result differs is not printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightint_compile.errors import InputError
from lightint_compile.kernels import dispatch
from lightint_compile.kernels.steps import ContextPools, run_steps
from lightint_compile.kernels.tiles import Layout, ceil_div, token_map, volume

from .sites import BLOCK, Site, Tensors, visual

Way = tuple[str, Callable[[], object], float]
_LARGEST_DIFFERENCE = 0.02
"""Relative difference from our result, in bfloat16, above which a peer computes something else."""


def ways(site: Site, tensors: Tensors) -> Iterator[Way | str]:
    """The rows of every peer, or a line that says why there is none."""
    for package, build in _PEERS.items():
        try:
            yield from build(site, tensors)
        except ImportError as error:
            yield f"{package}: not installed ({error})"
        except Exception as error:
            yield f"{package}: does not run here ({type(error).__name__}: {str(error).strip()[:200]})"


def _flash_attention_3(site: Site, tensors: Tensors) -> Iterator[Way]:
    from fa3_fwd_interface import flash_attn_func

    query, key, value = (part.transpose(1, 2) for part in (tensors.query, *tensors.whole()))

    def call() -> Any:
        return flash_attn_func(query, key, value, softmax_scale=site.scale)

    result = call()
    _compare((result[0] if isinstance(result, tuple) else result).transpose(1, 2), _dense(site, tensors))
    yield "dense, FlashAttention-3 (fa3-fwd)", call, site.dense_flops


def _fastvideo(site: Site, tensors: Tensors) -> Iterator[Way]:
    from fastvideo_kernel import block_sparse_attn_from_indices

    # Its sm_90 kernel takes as many queries as keys: rows of other tokens read one block each.
    packed = Packed.of(site, tensors, 64, square=True)

    def call() -> Any:
        return block_sparse_attn_from_indices(
            packed.query, packed.key, packed.value, packed.index, packed.count, packed.sizes
        )

    packed.check(call()[0], site, tensors)
    yield "VSA kernel (fastvideo-kernel), blocks of 64, tiles prepared", call, site.kept_flops


def _cudnn(site: Site, tensors: Tensors) -> Iterator[Way]:
    from cudnn import BSA

    for block in (128, 64):
        packed = Packed.of(site, tensors, block)

        def call(packed: Packed = packed, block: int = block) -> Any:
            return BSA.block_sparse_attention_forward(
                packed.query,
                packed.key,
                packed.value,
                packed.index,
                block_sizes=packed.sizes,
                q2k_block_nums=packed.count,
                sparse_block_size=block,
                softmax_scale=site.scale,
            )

        packed.check(call()["o_tensor"], site, tensors)
        yield f"cuDNN BSA, blocks of {block}, tiles prepared", call, site.kept_flops


_PEERS: dict[str, Callable[[Site, Tensors], Iterator[Way]]] = {
    "fa3-fwd": _flash_attention_3,
    "fastvideo-kernel": _fastvideo,
    "nvidia-cudnn-frontend": _cudnn,
}


@dataclass(frozen=True)
class Packed:
    """A site as list kernels elsewhere want it: blocks of ``block`` slots side by side, tokens that exist in front.

    Attributes:
        query, key, value: ``[batch, heads, slots, head_dim]``; prefix blocks come before the tiles of keys.
        index, count: int32 lists over blocks of keys, ``[batch, heads, query blocks, width]`` and without ``width``.
        sizes: int32 tokens of each block of keys.
        tokens: for each query slot its token, or -1 for an empty slot or a row that is not a query.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    index: Tensor
    count: Tensor
    sizes: Tensor
    tokens: Tensor

    @staticmethod
    def of(site: Site, tensors: Tensors, block: int, *, square: bool = False) -> Packed:
        """Pack a site with the lists that our selection gives; ``square`` pads queries to the length of the keys."""
        layout, device = site.layout, tensors.query.device
        parts = BLOCK // block
        tokens, keys = _query_slots(layout, parts), _key_slots(layout, parts)
        index, count = _split_lists(*_lists(site, tensors), parts, ceil_div(layout.prefix, block))
        if square:
            missing = keys.shape[0] - tokens.shape[0]
            tokens = torch.cat([tokens.new_full((missing, block), -1), tokens])
            index = torch.cat([index.new_zeros((*index.shape[:2], missing, index.shape[3])), index], 2)
            count = torch.cat([count.new_ones((*count.shape[:2], missing)), count], 2)
        tokens, keys = tokens.to(device), keys.to(device)
        whole = tensors.whole()
        query = tensors.query[:, :, tokens.clamp(min=0).flatten()]
        key, value = (part[:, :, keys.clamp(min=0).flatten()] for part in whole)
        sizes = (keys >= 0).sum(1, dtype=torch.int32)
        return Packed(query.contiguous(), key.contiguous(), value.contiguous(), index, count, sizes, tokens.flatten())

    def check(self, result: Tensor, site: Site, tensors: Tensors) -> None:
        """Compare a packed result with ours.

        Raises:
            InputError: it differs by more than rounding.
        """
        exists = self.tokens >= 0
        ours = _sparse(site, tensors)[:, :, self.tokens[exists]]
        _compare(result[:, :, exists], ours)


def _lists(site: Site, tensors: Tensors) -> tuple[Tensor, Tensor]:
    layout = site.layout
    steps = dispatch.load("portable" if tensors.query.is_cuda else "reference")
    query, *pools = steps.pool_spans([(tensors.query, layout.current_grid), *visual(tensors.keys, layout)], layout.tile)
    found = steps.select_blocks(query, pools, layout, **site.policy())
    return found.lists, found.counts


def _slots(grid: tuple[int, int, int], tile: tuple[int, int, int], parts: int) -> Tensor:
    """Token of each slot, tiles cut into ``parts`` along their height, -1 last where there is none."""
    tokens, exist = token_map(grid, tile)
    shape = (-1, tile[0], parts, tile[1] // parts, tile[2])
    cut = torch.where(exist, tokens, -1).view(shape).transpose(1, 2).reshape(-1, volume(tile) // parts)
    return cut.gather(1, (cut < 0).to(torch.int8).argsort(dim=1, stable=True))


def _query_slots(layout: Layout, parts: int) -> Tensor:
    return _slots(layout.current_grid, layout.tile, parts)


def _key_slots(layout: Layout, parts: int) -> Tensor:
    block = volume(layout.tile) // parts
    text = torch.arange(ceil_div(layout.prefix, block) * block)
    pieces = [torch.where(text < layout.prefix, text, -1).view(-1, block)]
    start = layout.prefix
    for grid in (layout.context_grid, layout.current_grid):
        if grid[0]:
            slots = _slots(grid, layout.tile, parts)
            pieces.append(torch.where(slots < 0, -1, slots + start))
        start += volume(grid)
    return torch.cat(pieces)


def _split_lists(index: Tensor, count: Tensor, parts: int, prefix_blocks: int) -> tuple[Tensor, Tensor]:
    """Lists over tiles as lists over their parts, prefix blocks in front; every part of a query tile has the same."""
    pieces = index[..., None] * parts + torch.arange(parts, device=index.device) + prefix_blocks
    text = torch.arange(prefix_blocks, device=index.device).expand(*index.shape[:3], -1)
    whole = torch.cat([text, pieces.flatten(3)], 3).repeat_interleave(parts, 2)
    counts = (count * parts + prefix_blocks).repeat_interleave(parts, 2)
    return whole.to(torch.int32).contiguous(), counts.to(torch.int32).contiguous()


def _sparse(site: Site, tensors: Tensors) -> Tensor:
    steps = dispatch.load(dispatch.implementation(tensors.query, site.layout.tile))
    spans = tensors.keys, tensors.values
    return run_steps(steps, tensors.query, *spans, site.layout, site.policy(), ContextPools(), parts=0)


def _dense(site: Site, tensors: Tensors) -> Tensor:
    key, value = tensors.whole()
    return torch.nn.functional.scaled_dot_product_attention(tensors.query, key, value, scale=site.scale)


def _compare(result: Tensor, ours: Tensor) -> None:
    difference = float((result.float() - ours.float()).norm() / ours.float().norm())
    if not difference < _LARGEST_DIFFERENCE:
        raise InputError(f"its result differs from ours by {difference:.2g}")
