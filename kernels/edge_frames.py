"""``lightint::joined_frames``: frames with their edges repeated, joined with earlier ones, as a convolution reads them.

A causal video decoder pads its activations by their own edges and puts the last frames of the chunk before in front of
them. One copy does both: for every row of channels in the result it says which row of which part stands there. Where
lines of memory are rows of channels, that is work a row, and not a channel: written into a fused kernel, every element
finds its own place in five dimensions, which costs more than reading and writing it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.library import Library
from torch.nn import functional as F

from lightint_compile.errors import InputError

from .checks import no_gradient
from .mixed_linear import obstacle

SCHEMA = "joined_frames(Tensor[] parts, int[] pads) -> Tensor"

FRAMES = 2
"""The axis on which parts are joined."""

SIDES = 6
"""Numbers of pads a part: both sides of width, height and frames."""

_library = Library("lightint", "FRAGMENT")


def joined_frames(parts: Sequence[Tensor], pads: Sequence[int]) -> Tensor:
    """``cat`` along frames of each part padded by its edges, with channels last in memory; no gradients.

    Args:
        parts: ``[batch, channels, frames, height, width]``; padded they differ in their frames alone.
        pads: as of :func:`torch.nn.functional.pad`, of width, height and frames: 6 numbers a part, none below 0.

    Raises:
        InputError: parts that do not fit together, pads that do not fit them, or a gradient that is asked for.
    """
    return torch.ops.lightint.joined_frames(parts, pads)


def each_with_its_pads(parts: Sequence[Tensor], pads: Sequence[int]) -> Iterator[tuple[Tensor, list[int]]]:
    """Every part, and its pads."""
    for place, part in enumerate(parts):
        yield part, list(pads[SIDES * place : SIDES * (place + 1)])


def _of_any(parts: Sequence[Tensor], pads: Sequence[int]) -> Tensor:
    """The specification, in plain torch."""
    _check(parts, pads)
    padded = [F.pad(part, own, mode="replicate") if any(own) else part for part, own in each_with_its_pads(parts, pads)]
    return torch.cat(padded, FRAMES).clone(memory_format=torch.channels_last_3d)


def _on_gpu(parts: Sequence[Tensor], pads: Sequence[int]) -> Tensor:
    _check(parts, pads)
    if obstacle(parts[0].device) or not all(part.numel() for part in parts):
        return _of_any(parts, pads)
    out = empty(parts, pads)
    with torch.cuda.device(out.device):
        fill(out, parts, pads)
    return out


def fill(out: Tensor, parts: Sequence[Tensor], pads: Sequence[int]) -> None:
    """Write the parts into ``out``, one launch each."""
    from .portable.edge_rows import fill_frames

    first = 0
    for part, own in each_with_its_pads(parts, pads):
        frames = _padded(part, own)[2]
        fill_frames(out, part, own, first, frames)
        first += frames


def empty(parts: Sequence[Tensor], pads: Sequence[int]) -> Tensor:
    """Memory for the parts joined."""
    sizes = [_padded(part, own) for part, own in each_with_its_pads(parts, pads)]
    batch, channels, _, height, width = sizes[0]
    size = (batch, channels, sum(each[2] for each in sizes), height, width)
    like = parts[0]
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)


def _padded(part: Tensor, pads: Sequence[int]) -> tuple[int, ...]:
    left, right, top, bottom, front, back = pads
    batch, channels, frames, height, width = part.shape
    return batch, channels, frames + front + back, height + top + bottom, width + left + right


def _check(parts: Sequence[Tensor], pads: Sequence[int]) -> None:
    shapes = ", ".join(str(tuple(part.shape)) for part in parts)
    if not parts or any(part.dim() != 5 for part in parts):
        raise InputError("parts are not [batch, channels, frames, height, width]", where="joined_frames", why=shapes)
    if len(pads) != SIDES * len(parts) or min(pads) < 0:
        raise InputError("pads are not 6 numbers a part from 0 on", where="joined_frames: pads", why=str(list(pads)))
    sizes = [_padded(part, own) for part, own in each_with_its_pads(parts, pads)]
    alike = all((*each[:2], *each[3:]) == (*sizes[0][:2], *sizes[0][3:]) for each in sizes)
    if not alike or len({(part.dtype, part.device) for part in parts}) > 1:
        raise InputError("parts differ in more than their frames", where="joined_frames", why=shapes)


def _fake(parts: Sequence[Tensor], pads: Sequence[int]) -> Tensor:
    _check(parts, pads)
    return empty(parts, pads)


_library.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("joined_frames", _of_any, "CompositeExplicitAutograd")
_library.impl("joined_frames", _on_gpu, "CUDA")
torch.library.register_fake("lightint::joined_frames", _fake, lib=_library)
torch.library.register_autograd("lightint::joined_frames", no_gradient, lib=_library)
