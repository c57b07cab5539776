"""A small world that remembers single frames, goes on from known ones, and has a camera for every frame of the video.

A chunk has three new latent frames behind two that it goes on from, and three remembered ones; a latent frame stands
for four frames of the video, the first for one. Blocks are of two kinds; the scheduler goes on from two estimates.
"""

from __future__ import annotations

from typing import Any

import torch
from cameras import camera
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

WIDTH, PLANE, CHANNELS = 16, 6, 4
EVERY, NEW, KNOWN, MEMORY, FIRST = 4, 3, 2, 3, 6
SIGMAS = (1.0, 0.8, 0.5, 0.0)


class Layer(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.norm, self.cameras = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, wide), nn.Linear(wide, WIDTH)

    def forward(self, tokens: Tensor, cameras: Tensor, time: Tensor) -> Tensor:
        inner = self.norm(tokens) * (1 + time) + self.cameras(cameras)
        heads = [each(inner).unflatten(-1, (2, -1)).transpose(1, 2) for each in (self.query, self.key, self.value)]
        tokens = tokens + self.out(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return tokens + self.down(self.up(self.norm(tokens)).relu())


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pose = nn.Conv3d(CHANNELS, WIDTH, 1), nn.Linear(16, WIDTH)
        self.out = nn.Linear(WIDTH, CHANNELS)
        self.blocks = nn.ModuleList(Layer(wide) for wide in (24, 24, 32, 32))

    def forward(self, latents: Tensor, memory: Tensor, cameras: Tensor, frames: Tensor, time: float) -> Tensor:
        both = torch.cat([memory, latents], 2)
        tokens = self.embed(both).flatten(2).transpose(1, 2)
        seen = (self.pose(cameras.flatten(2)) + frames[None, :, None] * 0.1).repeat_interleave(PLANE, 1)
        for block in self.blocks:
            tokens = block(tokens, seen, torch.full((1, 1, 1), time))
        made = self.out(tokens).transpose(1, 2).unflatten(2, both.shape[2:])
        return made[:, :, memory.shape[2] :]


class FrameMemoryWorld(nn.Module):
    """[1, 4, 5, 2, 3] noise, [1, 4, F, 2, 3] history, [1, V, 4, 4] cameras to the end of the chunk -> new latents.

    Args:
        pinned: the frame that is remembered in place of what the last one asks for; none with ``None``.
        asks: coming frames of the video between those that ask.

    Attributes:
        places: of the frames that are asked for, those that are remembered; ``None`` for all of them.
    """

    def __init__(self, pinned: int | None = 1, asks: int = 4) -> None:
        super().__init__()
        self.network, self.pinned, self.asks = Network(), pinned, asks
        self.places: list[int] | None = None

    def forward(self, noise: Tensor, history: Tensor, extrinsics: Tensor) -> Tensor:
        chosen, asking = self.remembered(extrinsics), self.asking(extrinsics)
        if self.places is not None:
            chosen, asking = chosen[self.places], asking[:, self.places]
        memory, known = history.index_select(2, chosen), history[:, :, -KNOWN:]
        span = EVERY * (KNOWN + NEW - 1) + 1
        coming = extrinsics[:, -span::EVERY]
        moved = coming @ torch.cat([coming[:, :1], coming[:, :-1]], 1).mT
        recalled = extrinsics.index_select(1, EVERY * chosen) @ asking.mT
        cameras = torch.cat([recalled, moved], 1)
        frames = torch.cat([chosen, torch.arange(KNOWN + NEW) + (history.shape[2] - KNOWN)])
        latents = torch.cat([known, noise[:, :, KNOWN:]], 2)
        before = None
        for step in range(3):
            estimate = latents - SIGMAS[step] * self.network(latents, memory, cameras, frames, SIGMAS[step])
            follows = estimate if before is None else 1.5 * estimate - 0.5 * before
            ratio = SIGMAS[step + 1] / SIGMAS[step]
            latents, before = ratio * latents + (1 - ratio) * follows, estimate
            latents = torch.cat([known, latents[:, :, KNOWN:]], 2)
        return latents[:, :, KNOWN:]

    def asking(self, extrinsics: Tensor) -> Tensor:
        return extrinsics[:, -self.asks * (MEMORY - 1) - 1 :: self.asks].flip(1)

    def remembered(self, extrinsics: Tensor) -> Tensor:
        ahead = self.asking(extrinsics)[:, :, 2, :3]
        earlier = extrinsics[:, 1 : -EVERY * (KNOWN + NEW), 2, :3]
        best = (ahead[:, :, None] * earlier[:, None]).sum(-1).sum(0).argmax(1) // EVERY + 1
        return best if self.pinned is None else torch.cat([best[:-1], best.new_full((1,), self.pinned)])


def turning(degrees: list[float]) -> Tensor:
    """Cameras [1, V, 4, 4] that turn by so many degrees in every video frame."""
    angles = torch.tensor(degrees).cumsum(0).tolist()
    return torch.stack([camera(angle) for angle in angles])[None].float()


def walking(frames: int, step: float = 0.1) -> Tensor:
    """Cameras [1, V, 4, 4] that walk ahead."""
    return torch.stack([camera(0.0, centre=(0.0, 0.0, step * frame)) for frame in range(frames)])[None].float()


def arguments(chunk: int, path: Tensor) -> dict[str, Any]:
    """Those of a chunk along a path, whose first chunk has six latent frames."""
    make = torch.Generator().manual_seed(chunk)
    frames = FIRST + NEW * (chunk - 1)
    size = (2, PLANE // 2)
    return {
        "noise": torch.randn(1, CHANNELS, KNOWN + NEW, *size, generator=make),
        "history": torch.randn(1, CHANNELS, frames, *size, generator=make),
        "extrinsics": path[:, : EVERY * (frames + NEW - 1) + 1].contiguous(),
    }


def video_frames(chunks: int) -> int:
    """Frames of the video of a first chunk and so many others."""
    return EVERY * (FIRST + NEW * chunks - 1) + 1
