"""The gather of context alone, in several spellings: modules that trace in a second."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightint_compile import capture
from lightint_compile.passes.ir.program import Program


class Gather(nn.Module):
    """Picks the newest of at most `memory` frames, looks at their cameras, and mixes them into one latent frame."""

    def __init__(self, memory: int = 20) -> None:
        super().__init__()
        self.memory = memory
        self.mix = nn.Conv3d(4, 4, 1)

    def forward(self, history: Tensor, extrinsics: Tensor) -> Tensor:
        count = min(history.shape[2], self.memory)
        chosen = torch.arange(count) + (history.shape[2] - count)
        return self.read(history, extrinsics, chosen, count)

    def read(self, history: Tensor, extrinsics: Tensor, chosen: Tensor, count: int) -> Tensor:
        poses = extrinsics.index_select(1, chosen).sum((1, 2, 3))
        mixed = self.mix(history.index_select(2, chosen)).reshape(1, 4, count * 24)
        return mixed.sum(-1) / count + poses + torch.full((count,), 2.0).mean()


class Indexed(Gather):
    def read(self, history, extrinsics, chosen, count):
        return self.mix(history[:, :, chosen]).sum((2, 3, 4)) + extrinsics[:, chosen].sum((1, 2, 3))


class BesideAnEqualSize(Gather):
    """Adds as many numbers as there is context, counted anew: they do not follow a decision about the context."""

    def read(self, history, extrinsics, chosen, count):
        numbers = torch.arange(history.shape[2])[: self.memory]
        return (history.index_select(2, chosen) + numbers[:, None, None]).sum((2, 3, 4)) + extrinsics.sum()


class Returned(Gather):
    """Hands out what it reads, frame by frame: context for calls to come."""

    def read(self, history, extrinsics, chosen, count):
        return self.mix(history.index_select(2, chosen)) + extrinsics.sum()


class Written(Gather):
    """Leaves what it reads in a buffer, frame by frame."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(1, 4, 20, 4, 6))

    def read(self, history, extrinsics, chosen, count):
        mixed = self.mix(history.index_select(2, chosen))
        self.kept[:, :, :count] = mixed
        return mixed.sum((2, 3, 4)) + extrinsics.index_select(1, chosen).sum((1, 2, 3))


class WithoutCameras(Gather):
    def forward(self, history):
        count = min(history.shape[2], self.memory)
        return history.index_select(2, torch.arange(count) + (history.shape[2] - count)).sum((2, 3, 4))


class ChosenOutside(Gather):
    def forward(self, history, extrinsics, chosen):
        return history.index_select(2, chosen).sum((2, 3, 4)) + extrinsics.index_select(1, chosen).sum()


def gather_program(
    module: nn.Module, frames: int = 24, *more: Tensor, dynamic: bool = True, cameras: int = 4
) -> Program:
    inputs = (torch.randn(1, 4, frames, 4, 6), torch.eye(4).repeat(1, frames + cameras, 1, 1), *more)
    sizes = {"history": 2, "extrinsics": 1} if dynamic else {}
    if isinstance(module, WithoutCameras):
        inputs, sizes = inputs[:1], {"history": 2}
    with torch.no_grad():
        return capture.trace(module, inputs, dynamic=sizes)
