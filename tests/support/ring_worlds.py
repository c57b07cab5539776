"""Video transformers with heads that ranks do not divide, and attention in all the ways that a ring must get right."""

from __future__ import annotations

from typing import Any

import torch
from rank_worlds import Block, World, turned
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = ("frames", "per-head", "padding", "one-mask", "causal", "grouped", "one-key-head", "tokens-first", "scale")
"""``frames``: a chunk sees no later frame; ``per-head``: numbers added head by head; ``padding``: some text is left
out; ``one-mask``: queries that see no key at all; ``grouped`` and ``one-key-head``: heads share keys; ``tokens-first``:
keys are put together in front of the transposition; ``scale``: a scale of the model's own."""


class RingBlock(Block):
    """Attention to text, a past and the own tokens in one softmax, with what ``kind`` asks for; an MLP."""

    def __init__(self, width: int, heads: int, kind: str) -> None:
        super().__init__(width, heads, "", True)
        self.kind = kind
        self.key_heads = {"grouped": heads // 3, "one-key-head": 1}.get(kind, heads)
        self.shared = nn.Linear(width, 2 * self.key_heads * (width // heads))

    def forward(
        self, tokens: Tensor, time: Tensor, text: Tensor, table: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        shift, scale, gate = self.mod(time).chunk(3, -1)
        inner = self.norm(tokens) * (1 + scale) + shift
        query = turned(self.split(self.qkv(inner).chunk(3, -1)[0]), table)
        key, value = (each.unflatten(-1, (self.key_heads, -1)) for each in self.shared(inner).chunk(2, -1))
        words = (each.unflatten(-1, (self.key_heads, -1)) for each in self.shared(text).chunk(2, -1))
        key = turned(key.transpose(1, 2), table)
        value, own = value.transpose(1, 2), (key, value.transpose(1, 2))
        spans = [tuple(each.transpose(1, 2) for each in words), *([] if past is None else [past]), (key, value)]
        key, value = (self.joined(each) for each in zip(*spans, strict=True))
        options = {"scale": 0.2} if self.kind == "scale" else {}
        seen = F.scaled_dot_product_attention(
            query, key, value, self.mask(query, key, text), is_causal=self.kind == "causal",
            enable_gqa=self.key_heads != self.heads, **options,
        )  # fmt: skip
        tokens = tokens + gate * self.out(seen.transpose(1, 2).flatten(2))
        return tokens + self.fc2(F.gelu(self.fc1(self.norm(tokens)))), own

    def joined(self, spans: tuple[Tensor, ...]) -> Tensor:
        if self.kind == "changed":
            return 1.5 * torch.cat(spans, 2)
        if self.kind == "tokens-first":
            return torch.cat([each.transpose(1, 2) for each in spans], 1).transpose(1, 2)
        return torch.cat(spans, 2)

    def mask(self, query: Tensor, key: Tensor, text: Tensor) -> Tensor | None:
        queries, keys, words = query.shape[2], key.shape[2], text.shape[1]
        numbers = torch.arange(max(queries, keys), device=query.device)
        rows, columns = numbers[:queries, None], numbers[None, :keys]
        if self.kind == "frames":
            return columns // 32 <= (rows + keys - queries) // 32
        if self.kind == "per-head":
            slopes = torch.linspace(-1, 1, self.heads, dtype=torch.float64, device=query.device)[:, None, None]
            return (slopes * torch.cos((rows * 3 + columns).double())).to(query.dtype)
        if self.kind == "padding":
            return ((columns < words - 2) | (columns >= words))[None, None]
        return (rows % 5 != 0) & (columns >= 0) if self.kind == "one-mask" else None


class RingWorld(World):
    """:class:`rank_worlds.World` with such blocks; ``prefills`` makes the past of frames that it is given."""

    def __init__(self, kind: str = "", *, heads: int = 3, depth: int = 1, **more: Any) -> None:
        super().__init__(width=8 * heads, heads=heads, depth=depth, **more)
        self.blocks = nn.ModuleList([RingBlock(self.width, heads, kind) for _ in range(depth)])
        self.key_heads = self.blocks[0].key_heads
        for layer in (self.head, *(block.out for block in self.blocks)):
            nn.init.normal_(layer.weight)  # what attention gives is most of the result


class Prefilling(RingWorld):
    """Frames behind one another: the first half becomes keys and values, which all steps of the second half read."""

    def forward(self, latents: Tensor, text: Tensor) -> Tensor:
        context, latents = latents.chunk(2, 2)
        past = self.velocity(context, text, 0.1, None)[1]
        for step in range(self.steps):
            latents = latents - 0.2 * self.velocity(latents, text, 1 - 0.2 * step, past)[0]
        return latents
