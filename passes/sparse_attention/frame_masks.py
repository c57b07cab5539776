"""Masks that say which frames see which, the same in every call: one call of sparse attention for each group of frames.

Causal video models let a frame, or a chunk of frames, see earlier ones: all, the latest, or those and a few first ones.
Written as a mask of all pairs of tokens, that is an attention of which half is thrown away. Frames that see the same
frames are attended together here, as the last frames of the keys that they see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.fx as fx
from torch import Tensor

from lightint_compile.kernels.tiles import Layout
from lightint_compile.passes.analysis.attention_sites import AttentionSite, SiteKind
from lightint_compile.passes.ir.constant_values import constant_of
from lightint_compile.passes.ir.rewriter import Rewriter

MOST_PAIRS = 1 << 30
"""Pairs of a query and a key of the largest mask that is looked at, a byte each: 21 frames at 480p have no more."""

MOST_GROUPS = 128

Rows = Callable[[int, int], Tensor]
"""The mask of some queries, by the first and the one behind the last: bool ``[queries, keys]``."""


@dataclass(frozen=True)
class Group:
    """Frames ``start`` to ``stop``, which see themselves and the frames of ``others``, runs in order."""

    start: int
    stop: int
    others: tuple[tuple[int, int], ...]

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """All frames that are seen, as runs of which the last ends with the group's own."""
        *before, last = (*self.others, (self.start, self.start))
        joined = before[-1:] == [(before[-1][0], self.start)] if before else False
        return (*before[:-1], (before[-1][0], self.stop)) if joined else (*before, (last[0], self.stop))

    @property
    def frames(self) -> int:
        """How many frames are seen."""
        return sum(stop - start for start, stop in self.runs)


class RowsOfQueries(Protocol):
    """A mask of which the rows of some queries are read."""

    def of_queries(self, start: Any, stop: Any, rewriter: Rewriter) -> fx.Node:
        """Those rows, as ``scaled_dot_product_attention`` takes them."""


@dataclass(frozen=True)
class MaskNode:
    """A mask that a node holds."""

    node: fx.Node

    def of_queries(self, start: Any, stop: Any, rewriter: Rewriter) -> fx.Node:
        """See :class:`RowsOfQueries`."""
        return rewriter.call(torch.ops.aten.slice.Tensor, self.node, -2, start, stop)


@dataclass(frozen=True)
class FrameMask:
    """Groups of frames in order, whether all of them see the text, and the mask that says so."""

    groups: tuple[Group, ...]
    sees_text: bool
    source: RowsOfQueries

    @property
    def told(self) -> str:
        """What the mask is, for a remark."""
        seen = sum((group.stop - group.start) * group.frames for group in self.groups) / self.groups[-1].stop
        return f"a mask of frames ({len(self.groups)} groups, which see {seen:.1f} frames on average)"

    def of_queries(self, start: Any, stop: Any, rewriter: Rewriter) -> fx.Node:
        """The mask of some of the queries, those of text, as ``scaled_dot_product_attention`` takes it."""
        return self.source.of_queries(start, stop, rewriter)

    def layouts(self, layout: Layout) -> Iterator[Layout]:
        """The layout of each group's call."""
        for group in self.groups:
            own = group.stop - group.start
            prefix = layout.prefix if self.sees_text else 0
            yield replace(layout, frames=(group.frames - own, own), prefix=prefix)


def frame_mask_of(site: AttentionSite) -> FrameMask | None:
    """The mask of a site as one of frames; ``None`` where it is another, or not known when compiled."""
    if site.mask is None or not is_square(site):
        return None
    value = _boolean(site.mask)
    if value is None or value.shape != (site.query.meta["val"].shape[2], site.key.meta["val"].shape[2]):
        return None  # what is broadcast along queries or keys is no mask of pairs of frames
    return frames_seen(site, lambda start, stop: value[start:stop], MaskNode(site.mask))


def is_square(site: AttentionSite) -> bool:
    """Whether the grid attends to itself, with all sizes known."""
    grid = site.query_grid
    sizes = (*site.query.meta["val"].shape, *site.key.meta["val"].shape)
    if grid is None or site.kind is not SiteKind.PREFILL or site.key_grid is None:
        return False
    known = all(isinstance(size, int) for size in (*grid.shape, *sizes))
    return known and site.key_grid.frames == grid.frames and sizes[2] * sizes[6] <= MOST_PAIRS


def frames_seen(site: AttentionSite, rows: Rows, source: RowsOfQueries) -> FrameMask | None:
    """The frames that each frame sees, where a frame is seen by all tokens of another or by none."""
    grid = site.query_grid
    assert grid is not None
    frames, plane = int(grid.frames), int(grid.height * grid.width)
    first = int(site.query_axis.prefix)
    key = int(site.key_axis.prefix)
    seen: list[Tensor] = []
    text: set[bool] = set()
    for frame in range(frames):
        start = first + frame * plane
        block = rows(start, start + plane)
        of_frames = block[:, key : key + frames * plane].unflatten(1, (frames, plane))
        words = torch.cat([block[:, :key], block[:, key + frames * plane :]], 1)
        seen.append(of_frames[0, :, 0])
        if not torch.equal(of_frames, seen[-1][None, :, None].expand_as(of_frames)) or not seen[-1][frame]:
            return None
        if words.numel():
            text |= {bool(words.any()), bool(words.all())}
    groups = _groups(seen)
    return FrameMask(groups, True in text, source) if len(text) <= 1 and len(groups) <= MOST_GROUPS else None


def _groups(seen: list[Tensor]) -> tuple[Group, ...]:
    """Neighbours that see the same frames, each other among them."""
    found, start = [], 0
    for stop in range(1, len(seen) + 1):
        if stop == len(seen) or not torch.equal(seen[stop], seen[start]):
            others = seen[start].clone()
            others[start:stop] = False
            found.append(Group(start, stop, tuple(_runs(others.tolist()))))
            start = stop
    return tuple(found)


def _runs(flags: list[bool]) -> Iterator[tuple[int, int]]:
    start = None
    for place, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = place
        elif not flag and start is not None:
            yield start, place
            start = None


def _boolean(mask: fx.Node) -> Tensor | None:
    """A mask that every call has, of all batches and heads, as bool ``[queries, keys]``."""
    value = constant_of(mask, MOST_PAIRS, MOST_PAIRS)
    if value is None or value.dim() < 2:
        return None
    if value.dtype != torch.bool:
        keep = value == 0
        if not torch.equal(keep, value > float("-inf")):
            return None
        value = keep
    flat = value.flatten(0, -3) if value.dim() > 2 else value[None]
    return flat[0] if all(torch.equal(flat[0], other) for other in flat[1:]) else None
