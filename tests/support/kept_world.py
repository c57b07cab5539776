"""A small world whose prefill has rotary positions and cameras, with twins in which keys cannot be kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lightint_compile import capture
from lightint_compile.passes.ir.program import Program

WIDTH, PLANE = 16, 6


def rotated(heads: Tensor, places: Tensor) -> Tensor:
    angles = places[:, None] * 0.3 ** torch.arange(WIDTH // 2, dtype=heads.dtype)
    angles = angles.repeat_interleave(PLANE, 0)
    left, right = heads.chunk(2, -1)
    return torch.cat([left * angles.cos() - right * angles.sin(), left * angles.sin() + right * angles.cos()], -1)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.key_norm = nn.LayerNorm(WIDTH)

    def qkv(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner = self.norm(tokens)
        return self.query(inner), self.key_norm(self.key(inner)), self.value(inner)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads = (each.unflatten(-1, (1, WIDTH)).transpose(1, 2) for each in (query, key, value))
        return self.out(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class FusedLayer(Layer):
    """One projection for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.together = nn.Linear(WIDTH, 3 * WIDTH)

    def qkv(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.together(self.norm(tokens)).chunk(3, -1)
        return query, key, value


class KeptWorld(nn.Module):
    """Latents [1, 4, F, 2, 3] to two layers of context keys and values, read by the tokens of the chunk."""

    layer: type[Layer] = Layer

    def __init__(self, memory: int = 20) -> None:
        super().__init__()
        self.memory = memory
        self.embed = nn.Conv3d(4, WIDTH, 1)
        self.pose = nn.Linear(16, WIDTH)
        self.layers = nn.ModuleList([self.layer() for _ in range(2)])

    def forward(self, noise: Tensor, history: Tensor, extrinsics: Tensor) -> Tensor:
        count = torch.sym_min(history.shape[2], self.memory)
        chosen = torch.arange(count) + (history.shape[2] - count)
        cameras = self.pose(extrinsics.index_select(1, chosen).flatten(2)).repeat_interleave(PLANE, 1)
        tokens = self.tokens(history.index_select(2, chosen))
        now = self.tokens(noise)
        for layer in self.layers:
            query, key, value = layer.qkv(tokens)
            key = self.placed(key, self.places(count, tokens)) + cameras
            current = layer.qkv(now)
            later = count + torch.arange(4, dtype=now.dtype)
            keys = torch.cat([key, rotated(current[1], later)], 1)
            now = now + layer.attend(rotated(current[0], later), keys, torch.cat([value, current[2]], 1))
            query = rotated(query, self.places(count, tokens))
            tokens = tokens + self.mixed(layer.attend(query, key, value))
        return now

    def tokens(self, latents: Tensor) -> Tensor:
        return self.embed(latents).flatten(2).transpose(1, 2)

    def places(self, count: int, tokens: Tensor) -> Tensor:
        return torch.arange(count).to(tokens.dtype)

    def placed(self, key: Tensor, places: Tensor) -> Tensor:
        return rotated(key, places)

    def mixed(self, tokens: Tensor) -> Tensor:
        return tokens


class WideWorld(KeptWorld):
    """Rotates in float32, whatever the weights are."""

    def placed(self, key: Tensor, places: Tensor) -> Tensor:
        return rotated(key.float(), places.float()).to(key.dtype)


class FusedWorld(KeptWorld):
    layer = FusedLayer


class MeanOverFrames(KeptWorld):
    """Outside of attention, every frame sees all others."""

    def mixed(self, tokens: Tensor) -> Tensor:
        return tokens - tokens.mean(1, keepdim=True)


class SummedUp(KeptWorld):
    def mixed(self, tokens: Tensor) -> Tensor:
        return tokens.cumsum(1)


class ConvolvedOverTime(KeptWorld):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(4, WIDTH, (3, 1, 1), padding=(1, 0, 0))


class PlacedByLatents(KeptWorld):
    """Positions come from the tokens, besides the keys."""

    def places(self, count: int, tokens: Tensor) -> Tensor:
        return super().places(count, tokens) + tokens.unflatten(1, (-1, PLANE)).mean((0, 2, 3))


class Masked(KeptWorld):
    """Frames see earlier frames only: a mask with an axis of the context on both sides."""

    def forward(self, noise: Tensor, history: Tensor, extrinsics: Tensor) -> Tensor:
        count = torch.sym_min(history.shape[2], self.memory)
        chosen = torch.arange(count) + (history.shape[2] - count)
        cameras = self.pose(extrinsics.index_select(1, chosen).flatten(2)).repeat_interleave(PLANE, 1)
        tokens = self.tokens(history.index_select(2, chosen)) + cameras
        frame = torch.arange(count).repeat_interleave(PLANE)
        for layer in self.layers:
            heads = [each[:, None] for each in layer.qkv(tokens)]
            tokens = tokens + scaled_dot_product_attention(*heads, attn_mask=frame[:, None] >= frame[None])[:, 0]
        return tokens.mean(1) + noise.mean()


class ReadBesides(KeptWorld):
    """The result reads the context's tokens, not only their keys and values."""

    def mixed(self, tokens: Tensor) -> Tensor:
        self.seen = tokens.amax(1, keepdim=True)
        return tokens

    def forward(self, noise: Tensor, history: Tensor, extrinsics: Tensor) -> Tensor:
        return super().forward(noise, history, extrinsics) + self.seen


class WithoutProjection(KeptWorld):
    """Keys are the tokens themselves."""

    def forward(self, noise: Tensor, history: Tensor, extrinsics: Tensor) -> Tensor:
        count = torch.sym_min(history.shape[2], self.memory)
        chosen = torch.arange(count) + (history.shape[2] - count)
        tokens = self.tokens(history.index_select(2, chosen)) + extrinsics.index_select(1, chosen).sum()
        return scaled_dot_product_attention(self.tokens(noise), tokens, tokens)


def inputs_of(frames: int = 24, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise, history = (torch.randn(1, 4, n, 2, 3, generator=generator, dtype=dtype) for n in (4, frames))
    return noise, history, torch.eye(4, dtype=dtype).repeat(1, frames + 4, 1, 1)


def kept_program(module: nn.Module, frames: int = 24, dtype: torch.dtype = torch.float32) -> Program:
    with torch.no_grad():
        inputs = inputs_of(frames, dtype=dtype)
        return capture.trace(module.to(dtype).eval(), inputs, dynamic={"history": 2, "extrinsics": 1})
