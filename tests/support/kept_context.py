"""Small world models that are called step by step: keys and values of earlier frames come in, in several forms.

Frames have 4x4 tokens (a latent [B, 4, F, 8, 8] in patches of 1x2x2), a chunk has four of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

WIDTH, HEADS, LAYERS, PLANE, TEXT = 32, 2, 2, 16, 5
DIM = WIDTH // HEADS


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions [tokens, dim / 2] on [..., tokens, dim]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()], -1)
    return turned.flatten(-2)


def positions(frames: int) -> Tensor:
    """Angles of the tokens of ``frames`` frames, by frame, row and column."""
    grid = torch.meshgrid(torch.linspace(0, 1, frames), torch.linspace(0, 1, 4), torch.linspace(0, 1, 4), indexing="ij")
    return torch.stack(grid, -1).flatten(0, 2) @ torch.linspace(1, 3, 3 * DIM // 2).view(3, -1)


class World(nn.Module):
    """Patches, blocks that add what their attention gives, and back to a latent."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.patch = nn.Conv3d(4, WIDTH, (1, 2, 2), (1, 2, 2))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(LAYERS))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 16)

    def projected(self, layer: int, x: Tensor) -> list[Tensor]:
        """Queries, keys and values ``[batch, tokens, heads, dim]``."""
        return [part.unflatten(-1, (HEADS, DIM)) for part in self.qkv[layer](x).chunk(3, -1)]

    def run(self, latent: Tensor, attend: Callable[[int, Tensor], Tensor]) -> Tensor:
        x = self.patch(latent)
        frames, height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        for layer in range(LAYERS):
            x = x + self.out[layer](attend(layer, x))
        video = self.head(x).view(-1, frames, height, width, 4, 1, 2, 2)
        return video.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class DictCache(World):
    """A dictionary a layer, heads first, positions already in the keys; text keys of their own, for one guidance."""

    def forward(self, latent: Tensor, kv_cache: list[dict[str, Tensor]]) -> Tensor:
        def attend(layer: int, x: Tensor) -> Tensor:
            query, key, value = (each.transpose(1, 2) for each in self.projected(layer, x))
            kept = kv_cache[layer]
            key, value = torch.cat([kept["k_vision"], key], 2), torch.cat([kept["v_vision"], value], 2)
            text = [kept[name].expand(len(x), -1, -1, -1) for name in ("k_txt", "v_txt")]
            key, value = torch.cat([text[0], key], 2), torch.cat([text[1], value], 2)
            return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

        return self.run(latent, attend)

    @staticmethod
    def inputs(frames: float, text: int = TEXT, batch: int = 2) -> dict[str, Any]:
        tokens = round(frames * PLANE)
        shapes = {"k_vision": (batch, tokens), "v_vision": (batch, tokens), "k_txt": (1, text), "v_txt": (1, text)}
        cache = [
            {name: noise(size, HEADS, length, DIM, seed=layer + len(name)) for name, (size, length) in shapes.items()}
            for layer in range(LAYERS)
        ]
        return {"latent": noise(batch, 4, 4, 8, 8), "kv_cache": cache}


class TupleCache(World):
    """Pairs of keys and values, tokens first; past and current frames get their positions once they are joined."""

    def forward(self, latent: Tensor, past: list[tuple[Tensor, Tensor]], angles: Tensor) -> Tensor:
        def attend(layer: int, x: Tensor) -> Tensor:
            query, key, value = self.projected(layer, x)
            key = torch.cat([past[layer][0], key], dim=1).transpose(1, 2)
            value = torch.cat([past[layer][1], value], dim=1).transpose(1, 2)
            query = rotated(query.transpose(1, 2), angles[-x.shape[1] :])
            return scaled_dot_product_attention(query, rotated(key, angles), value).transpose(1, 2).flatten(2)

        return self.run(latent, attend)

    @staticmethod
    def inputs(frames: float, batch: int = 1) -> dict[str, Any]:
        tokens = round(frames * PLANE)
        past = [
            (noise(batch, tokens, HEADS, DIM, seed=layer), noise(batch, tokens, HEADS, DIM, seed=9 + layer))
            for layer in range(LAYERS)
        ]
        angles = positions(-(-tokens // PLANE) + 4)[-tokens - 4 * PLANE :]
        return {"latent": noise(batch, 4, 4, 8, 8), "past": past, "angles": angles}


class StackedCache(World):
    """One tensor ``[layers, 2, batch, heads, tokens, dim]``; text is projected here, and stands behind the frames."""

    def forward(self, latent: Tensor, cache: Tensor, text: Tensor) -> Tensor:
        def attend(layer: int, x: Tensor) -> Tensor:
            query, key, value = (each.transpose(1, 2) for each in self.projected(layer, x))
            _, text_key, text_value = (each.transpose(1, 2) for each in self.projected(layer, text))
            key = torch.cat([cache[layer, 0], key, text_key], 2)
            value = torch.cat([cache[layer, 1], value, text_value], 2)
            return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

        return self.run(latent, attend)

    @staticmethod
    def inputs(frames: float, batch: int = 1) -> dict[str, Any]:
        cache = noise(LAYERS, 2, batch, HEADS, round(frames * PLANE), DIM)
        return {"latent": noise(batch, 4, 4, 8, 8), "cache": cache, "text": noise(batch, TEXT, WIDTH)}


class JoinedCache(World):
    """Text and frames in one tensor a layer, heads not split; the frames get their positions, the text does not."""

    def forward(self, latent: Tensor, keys: list[Tensor], values: list[Tensor], angles: Tensor) -> Tensor:
        def attend(layer: int, x: Tensor) -> Tensor:
            query, key, value = (each.transpose(1, 2) for each in self.projected(layer, x))
            kept = keys[layer].unflatten(-1, (HEADS, DIM)).transpose(1, 2)
            frames = rotated(torch.cat([kept[:, :, TEXT:], key], 2), angles)
            key = torch.cat([kept[:, :, :TEXT], frames], 2)
            value = torch.cat([values[layer].unflatten(-1, (HEADS, DIM)).transpose(1, 2), value], 2)
            query = rotated(query, angles[-query.shape[2] :])
            return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

        return self.run(latent, attend)

    @staticmethod
    def inputs(frames: float, batch: int = 1) -> dict[str, Any]:
        tokens = round(frames * PLANE)
        kept = [[noise(batch, TEXT + tokens, WIDTH, seed=layer + seed) for layer in range(LAYERS)] for seed in (0, 9)]
        angles = positions(-(-tokens // PLANE) + 4)[-tokens - 4 * PLANE :]
        return {"latent": noise(batch, 4, 4, 8, 8), "keys": kept[0], "values": kept[1], "angles": angles}


class WindowCache(World):
    """A sink and a window of one buffer, out of place; positions sample by sample, on the keys that are attended to."""

    def forward(self, latent: Tensor, cache: list[dict[str, Tensor]], angles: Tensor, evicted: int = PLANE) -> Tensor:
        def attend(layer: int, x: Tensor) -> Tensor:
            query, key, value = self.projected(layer, x)
            kept = [self.window(cache[layer][name], new, evicted) for name, new in (("k", key), ("v", value))]
            keys = torch.stack([rotated(one.transpose(0, 1), angles).transpose(0, 1) for one in kept[0]])
            query = rotated(query.transpose(1, 2), angles[-x.shape[1] :])
            out = scaled_dot_product_attention(query, keys.transpose(1, 2), kept[1].transpose(1, 2))
            return out.transpose(1, 2).flatten(2)

        return self.run(latent, attend)

    @staticmethod
    def window(kept: Tensor, new: Tensor, evicted: int) -> Tensor:
        sink = 2 * PLANE
        return torch.cat([kept[:, :sink], kept[:, sink + evicted :], new], dim=1)

    @staticmethod
    def inputs(frames: float, batch: int = 1) -> dict[str, Any]:
        tokens = round(frames * PLANE) + PLANE
        cache = [
            {name: noise(batch, tokens, HEADS, DIM, seed=layer + seed) for seed, name in enumerate("kv")}
            for layer in range(LAYERS)
        ]
        angles = positions(-(-tokens // PLANE) + 4)[-tokens - 3 * PLANE :]
        return {"latent": noise(batch, 4, 4, 8, 8), "cache": cache, "angles": angles}


@dataclass(frozen=True)
class Kept:
    """A world, the inputs of a step, and how its keys read in the report."""

    world: type[World]
    keys: str

    def inputs(self, frames: float) -> dict[str, Any]:
        """The arguments of a step behind that many frames; a fraction of a frame makes a length that is no multiple."""
        return self.world.inputs(frames)  # type: ignore[attr-defined]


WORLDS = {
    "dicts": Kept(DictCache, "5 | 6x4x4 | 4x4x4"),
    "tuples": Kept(TupleCache, "6x4x4 | 4x4x4"),
    "stacked": Kept(StackedCache, "6x4x4 | 4x4x4 | 5"),
    "joined": Kept(JoinedCache, "5 | 6x4x4 | 4x4x4"),
    "windows": Kept(WindowCache, "2x4x4 | 4x4x4 | 4x4x4"),
}
