"""Frames to pad and to join: sizes, pads and memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Case(NamedTuple):
    """Sizes of parts, and how they are padded.

    ``last``: channels last in memory; ``still``: a part in front that is one frame again and again; ``ready``: the
    first part is padded already.
    """

    batch: int = 1
    channels: int = 16
    frames: tuple[int, ...] = (2, 3)
    size: tuple[int, int] = (5, 6)
    pads: tuple[int, int, int, int, int, int] = (1, 1, 1, 1, 0, 0)
    last: bool = True
    still: bool = False
    ready: bool = False

    def sizes(self) -> list[tuple[int, ...]]:
        """The shapes of the parts."""
        return [(self.batch, self.channels, count, *self.size) for count in self.frames]


CASES = {
    "a chunk": Case(),
    "channels that fill no block": Case(channels=40),
    "few channels": Case(channels=3),
    "many channels": Case(channels=1040, size=(2, 3)),
    "two samples in the order of axes": Case(batch=2, last=False),
    "the first chunk": Case(still=True),
    "every side": Case(pads=(2, 0, 1, 3, 1, 2)),
    "no side": Case(pads=(0, 0, 0, 0, 0, 0)),
    "a part that is padded already": Case(ready=True),
    "one part": Case(frames=(4,)),
    "pads wider than frames": Case(size=(1, 2), pads=(4, 5, 3, 3, 0, 0)),
}


def parts_of(case: Case) -> list[Tensor]:
    """The parts, in float32."""
    draw = torch.Generator().manual_seed(0)
    memory = torch.channels_last_3d if case.last else torch.contiguous_format
    parts = [torch.randn(size, generator=draw).to(memory_format=memory) for size in case.sizes()]
    if case.ready:
        parts[0] = F.pad(parts[0], case.pads, mode="replicate").to(memory_format=memory)
    return [parts[-1][:, :, :1].expand(-1, -1, 2, -1, -1), *parts] if case.still else parts


def pads_of(case: Case) -> list[int]:
    """The pads of all parts, one behind the other."""
    each = [list(case.pads) for _ in parts_of(case)]
    if case.ready:
        each[0] = [0] * 6
    return [number for own in each for number in own]


def expected(case: Case, parts: list[Tensor]) -> Tensor:
    """The parts padded and joined, by operators of torch."""
    each = torch.tensor(pads_of(case)).view(-1, 6).tolist()
    return torch.cat([F.pad(part, own, mode="replicate") for part, own in zip(parts, each, strict=True)], 2)
