"""Linears and norms: those that run in float32 whatever their weights are, and those of 8 bit.

Under the released code's autocast the projections of self-attention, the time embedding and the head run in float32:
bfloat16 weights are widened in every call. Written out here, so that every device computes the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..dtypes import wide
from .config import MatrixGameConfig
from .sizes import GameSizes

_LEAST_SCALE = 1e-12


class WideLinear(nn.Linear):
    """A Linear in float32 or wider: the input, the weight and the bias are widened."""

    def forward(self, input: Tensor) -> Tensor:
        """input [..., in] -> [..., out] in float32, or float64 where the weights are."""
        dtype = wide(self.weight.dtype)
        return F.linear(input.to(dtype), self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))


class Int8Linear(nn.Module):
    """A Linear with 8-bit weights, one scale a row, and inputs rounded to 8 bit in every call, one scale a token.

    A row of zeros keeps a scale of 1e-12 instead of becoming NaN, as it does in the released code.
    """

    weight_int8: Tensor
    weight_scales: Tensor
    bias: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.register_buffer("weight_int8", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scales", torch.ones(out_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(out_features))

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """A Linear, rounded: the largest weight of a row becomes 127."""
        made = cls(linear.in_features, linear.out_features).to(linear.weight.device)
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(dim=1) / 127.0).clamp_min(_LEAST_SCALE)
        made.weight_int8.copy_((weight / scales[:, None]).round().clamp(-128, 127))
        made.weight_scales.copy_(scales)
        made.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=linear.bias.requires_grad)
        return made

    def forward(self, input: Tensor) -> Tensor:
        """input [..., in] -> [..., out] in the input's dtype; the product is rounded to that of the bias."""
        tokens = input.flatten(0, -2).float()
        scales = tokens.abs().amax(dim=-1, keepdim=True).clamp_min(_LEAST_SCALE) / 127.0
        scaled = tokens / scales
        rounded = (scaled.sign() * (scaled.abs() + 0.5).floor()).to(torch.int8)
        product = torch._int_mm(rounded, self.weight_int8.t()).float() * scales * self.weight_scales
        return (product.to(self.bias.dtype) + self.bias).to(input.dtype).unflatten(0, input.shape[:-1])


class RMSNorm(nn.Module):
    """Root-mean-square norm over all channels: statistics in float32 or wider, cast back, then the weight."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [..., dim] -> [..., dim]."""
        inner = tokens.to(wide(tokens.dtype))
        inner = inner * torch.rsqrt(inner.pow(2).mean(-1, keepdim=True) + self.eps)
        return inner.to(tokens.dtype) * self.weight


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32 or wider, in the dtype of its input outside."""

    def forward(self, input: Tensor) -> Tensor:
        """input [..., dim] -> [..., dim]."""
        dtype = wide(input.dtype)
        weight, bias = (None if each is None else each.to(dtype) for each in (self.weight, self.bias))
        return F.layer_norm(input.to(dtype), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


def plain_norm(hidden: int) -> LayerNorm:
    """A LayerNorm without weights."""
    return LayerNorm(hidden, eps=1e-6, elementwise_affine=False)


def projection(config: MatrixGameConfig, widened: bool) -> nn.Module:
    """A square projection of attention: 8 bit, in float32 whatever its weights are, or plain."""
    hidden = config.hidden_size
    if config.int8:
        return Int8Linear(hidden, hidden)
    return WideLinear(hidden, hidden) if widened else nn.Linear(hidden, hidden)


def unpatchify(config: GameSizes, tokens: Tensor, frames: int) -> Tensor:
    """The rows of actual tokens of [B, N, patch area * C] as latents [B, C, T, h, w]."""
    height, width = config.grid
    _, patch_height, patch_width = config.patch_size
    actual = tokens[:, : frames * height * width]
    shape = (actual.shape[0], frames, height, width, patch_height, patch_width, config.out_channels)
    return actual.reshape(shape).permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
