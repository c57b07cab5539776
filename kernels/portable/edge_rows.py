"""Rows of channels from where they stand, or from the nearest edge: padding by repetition as a copy of rows."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..triton_compat import OPTIONS

ELEMENTS = 8192
"""What a program copies, in rows of up to as many channels."""

MOST_CHANNELS = 1024


_COUNTS = ["rows", "frames", "height", "width", "out_frames", "first", "source_frames", "source_height", "source_width"]
_COUNTS += ["before_frames", "before_height", "before_width"]


@triton.jit(do_not_specialize=_COUNTS)
def edge_rows_kernel(
    out, source, channels, rows, frames, height, width, out_frames, first,
    source_frames, source_height, source_width, before_frames, before_height, before_width,
    stride_batch, stride_channel, stride_frame, stride_row, stride_column,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """``ROWS`` rows of a part's padded frames; grid ``(blocks of rows, blocks of channels)``."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column, line = row % width, row // width
    high, plane = line % height, line // height
    frame, batch = plane % frames, (plane // frames).to(tl.int64)
    from_frame = _clamped(frame - before_frames, source_frames).to(tl.int64)
    from_row = _clamped(high - before_height, source_height).to(tl.int64)
    from_column = _clamped(column - before_width, source_width).to(tl.int64)
    origin = batch * stride_batch + from_frame * stride_frame + from_row * stride_row + from_column * stride_column
    target = ((batch * out_frames + first + frame) * height + high) * width + column
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = (row < rows)[:, None]
    if not WHOLE:
        there = there & (channel < channels)[None, :]
    found = tl.load(source + origin[:, None] + (channel.to(tl.int64) * stride_channel)[None, :], mask=there)
    tl.store(out + (target * channels)[:, None] + channel[None, :], found, mask=there)


@triton.jit
def _clamped(place, size):
    return tl.minimum(tl.maximum(place, 0), size - 1)


def fill_frames(out: Tensor, part: Tensor, pads: Sequence[int], first: int, frames: int) -> None:
    """Write one part, padded by its edges, into ``out`` from frame ``first`` on.

    Args:
        out: ``[batch, channels, ...]`` with channels last in memory.
        part: ``[batch, channels, frames, height, width]`` in any memory.
        pads: of width, height and frames, 2 numbers each.
        frames: how many the padded part has.
    """
    batch, channels, out_frames, height, width = out.shape
    rows = batch * frames * height * width
    block = min(triton.next_power_of_2(channels), MOST_CHANNELS)
    lines = max(1, ELEMENTS // block)
    sizes = [channels, rows, frames, height, width, out_frames, first, *part.shape[2:], pads[4], pads[2], pads[0]]
    options = {"ROWS": lines, "CHANNELS": block, "WHOLE": channels % block == 0, "num_warps": 8}
    grid = (triton.cdiv(rows, lines), triton.cdiv(channels, block))
    edge_rows_kernel[grid](out, part, *sizes, *part.stride(), **options, **OPTIONS)
