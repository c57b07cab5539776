"""Positions of tokens: RoPE over (t, h, w), and PRoPE, which rotates heads by the camera of their frame.

PRoPE (projective positional encoding): with P = K @ W2C, queries are multiplied by P^T, keys and values by P^-1 and
outputs by P, so that attention sees cameras only through P_a P_b^-1. Matrices stay in float32 (or float64) even where
the weights are half precision: the released code rounds them to bfloat16, which costs 0.3 % of P and 1e-2 of P P^-1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..camera_paths.poses import invert_rigid
from ..dtypes import wide
from .config import WorldPlayConfig

RopeTable = tuple[Tensor, Tensor]


def _axis_angles(positions: Tensor, dim: int, theta: float) -> Tensor:
    exponents = torch.arange(0, dim, 2, device=positions.device, dtype=positions.dtype) / dim
    return positions[:, None] * (1.0 / theta**exponents)


def rope_table(config: WorldPlayConfig, frames: int, first: int, device: torch.device, dtype: torch.dtype) -> RopeTable:
    """Cosine and sine [frames*S1, head_dim] of tokens in (t, h, w) order, each value repeated for its channel pair.

    `first` is the temporal position of the first frame: positions are re-indexed for every pass, context frames count
    from 0 and the current chunk follows them.
    """
    height, width = config.grid
    counts = (frames, height, width)
    starts = (first, 0, 0)
    parts = []
    for axis, dim in enumerate(config.rope_dims):
        positions = torch.arange(counts[axis], device=device).to(dtype) + starts[axis]
        shape = [1, 1, 1, dim // 2]
        shape[axis] = counts[axis]
        angles = _axis_angles(positions, dim, config.rope_theta).reshape(shape)
        parts.append(angles.expand(frames, height, width, dim // 2))
    angles = torch.cat(parts, dim=-1).flatten(0, 2).repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(heads: Tensor, table: RopeTable) -> Tensor:
    """Rotate interleaved channel pairs of heads [B, H, N, D] by the angles of their token; at least float32 inside."""
    cosine, sine = table
    wide_heads = heads.to(cosine.dtype)
    even, odd = wide_heads.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (wide_heads * cosine + turned * sine).to(heads.dtype)


def _focal_matrix(intrinsics: Tensor, inverse: bool) -> Tensor:
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], dim=-1)
    focal = 1.0 / focal if inverse else focal
    return torch.diag_embed(torch.cat([focal, torch.ones_like(focal)], dim=-1))


def projection_matrices(extrinsics: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """P and P^-1 [..., 4, 4] of world-to-camera matrices and normalised intrinsics [..., 3, 3]; no principal point."""
    dtype = wide(extrinsics.dtype)
    extrinsics, intrinsics = extrinsics.to(dtype), intrinsics.to(dtype)
    projection = _focal_matrix(intrinsics, inverse=False) @ extrinsics
    inverse = invert_rigid(extrinsics) @ _focal_matrix(intrinsics, inverse=True)
    return projection, inverse


def apply_matrix(heads: Tensor, matrices: Tensor) -> Tensor:
    """Multiply every group of 4 channels of heads [B, H, N, D] by the matrix [B, N, 4, 4] of its token."""
    groups = heads.to(matrices.dtype).unflatten(-1, (-1, 4))
    return torch.einsum("bnij,bhngj->bhngi", matrices, groups).flatten(-2).to(heads.dtype)
