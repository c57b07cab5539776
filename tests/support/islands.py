"""Projections in float32 over weights of fewer bits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from differential import feeds_of, rewritten, run, trace
from torch import Tensor, nn
from torch.nn import functional as F


class Island(nn.Linear):
    """A projection in float32 whatever its weights are, as authors keep some under autocast."""

    wide = torch.float32

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.wide)
        return F.linear(x.to(self.wide), self.weight.to(self.wide), bias)


def island(dtype: torch.dtype = torch.bfloat16, bias: bool = True, wide: torch.dtype = torch.float32) -> Island:
    """A projection of 64 features to 48, without gradients."""
    torch.manual_seed(0)
    made = Island(64, 48, bias).to(dtype).requires_grad_(False)
    made.wide = wide
    return made


def float64_of(module: Island, x: Tensor) -> Tensor:
    """What a projection computes, in float64."""
    bias = None if module.bias is None else module.bias.double()
    return F.linear(x.double(), module.weight.double(), bias)


def at_other_rows(text: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What passes make of a projection of any number of rows, the projection itself, and float64; for some numbers."""
    module = island()
    copy, result = rewritten(trace(module, {"x": torch.randn(300, 64)}, dynamic={"x": 0}), text)
    assert result.modified
    for rows in (300, 7, 1025):
        x = torch.randn(rows, 64)
        (ours,) = run(copy, feeds_of(module, {"x": x}))
        yield ours, module(x), float64_of(module, x)
