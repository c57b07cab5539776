"""Small causal world models that write keys and values into their caller's buffers, and attend to a window of these."""

from __future__ import annotations

from typing import Any

import torch
from kept_context import DIM, HEADS, LAYERS, PLANE, World
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

SIZE, SINK = 12 * PLANE, PLANE


class Rolling(World):
    """A dictionary a layer, tokens first; behind its sink a full window rolls by the frames that come."""

    def forward(self, latent: Tensor, caches: list[dict[str, Tensor]], start: int) -> Tensor:
        def attend(layer: int, x: Tensor) -> Tensor:
            query, key, value = self.projected(layer, x)
            held, first, end = caches[layer], start, start + x.shape[1]
            if end > SIZE:
                dropped = end - SIZE
                kept = first - dropped - SINK
                for buffer in (held["k"], held["v"]):
                    buffer[:, SINK : SINK + kept] = buffer[:, SINK + dropped : SINK + dropped + kept].clone()
                first, end = first - dropped, SIZE
            held["k"][:, first:end] = key
            held["v"][:, first:end] = value
            held["end"].fill_(end)
            operands = (query, held["k"][:, :end], held["v"][:, :end])
            return scaled_dot_product_attention(*(t.transpose(1, 2) for t in operands)).transpose(1, 2).flatten(2)

        return self.run(latent, attend)

    @staticmethod
    def caches() -> Any:
        return [
            {name: torch.zeros(1, SIZE, HEADS, DIM) for name in "kv"} | {"end": torch.zeros(1, dtype=torch.long)}
            for _ in range(LAYERS)
        ]


class Stacked(World):
    """One buffer for all layers, heads first; the newest frames push the oldest out of a full window."""

    def forward(self, latent: Tensor, caches: Tensor, start: int) -> Tensor:
        def attend(layer: int, x: Tensor) -> Tensor:
            query, key, value = (each.transpose(1, 2) for each in self.projected(layer, x))
            first, new = start, x.shape[1]
            if first + new > SIZE:
                caches[layer, :, :, :, :-new] = caches[layer, :, :, :, new:].clone()
                first = SIZE - new
            caches[layer, 0, :, :, first : first + new] = key
            caches[layer, 1, :, :, first : first + new].copy_(value)
            key, value = caches[layer, :, :, :, : first + new]
            return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

        return self.run(latent, attend)

    @staticmethod
    def caches() -> Any:
        return torch.zeros(LAYERS, 2, 1, HEADS, SIZE, DIM)


WORLDS: dict[str, type[World]] = {"rolling": Rolling, "stacked": Stacked}
