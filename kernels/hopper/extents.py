"""The token grids that the sm_90 kernel works on, as one group of numbers."""

from __future__ import annotations

from typing import Any, NamedTuple


class Extents(NamedTuple):
    """The token grids of queries and keys: 32-bit numbers of the kernel.

    Attributes:
        prefix: tokens of the prefix.
        prefix_blocks: the same in blocks.
        context_blocks: blocks of the context; those of the current frames are numbered after them.
        context_rows: rows of blocks along the frames of the context.
        context_frames: frames of the context.
        current_frames: frames of the query.
        height: lines of a frame.
        width: tokens of a line.
        blocks_high: blocks along the height.
        blocks_wide: blocks along the width.
    """

    prefix: Any
    prefix_blocks: Any
    context_blocks: Any
    context_rows: Any
    context_frames: Any
    current_frames: Any
    height: Any
    width: Any
    blocks_high: Any
    blocks_wide: Any
