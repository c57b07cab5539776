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


@dataclass(frozen=True)
class KeptCase:
    """Sizes of heads of which frames are kept, in which slots, and whether they are rotated."""

    slots: tuple[int, ...] = (3, 0, 4)
    batch: int = 1
    capacity: int = 6
    frame: int = 7
    fresh: int = 14
    heads: int = 3
    dim: int = 64
    rotation: bool = True


KEPT_CASES = {
    "keys": KeptCase(),
    "kept values": KeptCase(rotation=False, dim=32),
    "a batch": KeptCase(batch=2, slots=(5, 1), dim=32),
    "none kept": KeptCase(slots=()),
    "none fresh": KeptCase(fresh=0),
}


def kept_inputs(case: KeptCase, dtype: torch.dtype, device: str = "cpu") -> tuple[Any, ...]:
    """Arguments of the operator that reads slots; slots that are not read hold no numbers."""
    tokens = len(case.slots) * case.frame + case.fresh
    heads, matrix, _, _, *tables, _ = inputs(
        Case(case.batch, tokens, case.heads, case.dim, norm=False, rotation=case.rotation), dtype, device
    )
    pool = heads.new_full((case.batch, case.capacity, case.frame, case.heads, case.dim), torch.nan)
    for place, slot in enumerate(case.slots):
        pool[:, slot] = heads[:, place * case.frame : (place + 1) * case.frame]
    slots = torch.tensor(case.slots, dtype=torch.int64, device=device)
    return pool, slots, heads[:, len(case.slots) * case.frame :].contiguous(), matrix, *tables


def joined(pool: torch.Tensor, slots: torch.Tensor, heads: torch.Tensor, *rest: Any) -> tuple[Any, ...]:
    """The same as arguments of the operator that takes heads in one piece."""
    matrix, *tables = rest
    return torch.cat([pool[:, slots].flatten(1, 2), heads], 1), matrix, None, 0.0, *tables, True
