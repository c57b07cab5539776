"""Inputs of ``lightint::camera_heads`` for its tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """Sizes, and what is asked for."""

    batch: int = 1
    tokens: int = 21
    heads: int = 3
    dim: int = 64
    norm: bool = True
    rotation: bool = True
    both: bool = True


CASES = {
    "queries": Case(),
    "two": Case(batch=2, tokens=7, heads=5, dim=32),
    "values": Case(norm=False, rotation=False),
    "normed": Case(rotation=False, dim=128),
    "outputs": Case(norm=False, rotation=False, both=False, dim=32),
}


def inputs(case: Case, dtype: torch.dtype, device: str = "cpu") -> tuple[Any, ...]:
    """Arguments of the operator."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, kind)

    angles = draw(case.tokens, case.dim // 2).repeat_interleave(2, -1)
    tables = (angles.cos(), angles.sin()) if case.rotation else (None, None)
    weight = draw(case.dim, kind=dtype) if case.norm else None
    heads = draw(case.batch, case.tokens, case.heads, case.dim, kind=dtype)
    return heads, draw(case.batch, case.tokens, 4, 4), weight, 1e-6, *tables, case.both
