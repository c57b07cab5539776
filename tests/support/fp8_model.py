"""Blocks of linears and attention, and what the 8-bit product of a linear is, in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EIGHT_BITS, LARGEST = torch.float8_e4m3fn, 448.0
WIDTH, HEADS, CHANNELS = 64, 4, 16


class Block(nn.Module):
    """Attention whose query, key and value read one norm, and a feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        heads = (each(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.norm(x))))


class Model(nn.Module):
    """An embedding, blocks, and a final layer."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Linear(CHANNELS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.final = nn.Linear(WIDTH, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.final(x)


def made(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """``model`` as it is called: of a dtype, without gradients."""
    return model.to(dtype).eval().requires_grad_(False)


def rounded(rows: Tensor) -> Tensor:
    """What the 8-bit numbers and the scales of rows stand for, in float64."""
    wide = rows.float()
    scales = wide.abs().amax(-1, keepdim=True).clamp_min(LARGEST * 2.0**-126) / LARGEST
    return (wide / scales).to(EIGHT_BITS).double() * scales.double()


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product of rounded rows in float64, not rounded to 16 bits."""
    return F.linear(rounded(x), rounded(weight), None if bias is None else bias.double())


def error(ours: Tensor, theirs: Tensor) -> float:
    """The root mean square of the difference over that of the reference."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
