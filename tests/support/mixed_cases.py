"""Sizes and operands of linears in float32 over weights in bfloat16."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightint_compile.kernels.mixed_linear import split


@dataclass(frozen=True)
class Case:
    """Rows, features in and out; how many parts the input has; whether there is a bias."""

    rows: int
    features: int
    columns: int
    parts: int = 3
    bias: bool = True


CASES = {
    "whole tiles": Case(256, 128, 128),
    "ragged everywhere": Case(130, 200, 72),
    "one row": Case(1, 8, 8, bias=False),
    "odd features": Case(33, 77, 51),
    "one part": Case(140, 320, 130, parts=1),
    "two parts": Case(140, 96, 130, parts=2, bias=False),
}

LARGE = {
    "Matrix-Game": Case(8800, 3072, 3072),
    "one part": Case(8800, 3072, 3072, parts=1, bias=False),
    "two parts": Case(4000, 5120, 1536, parts=2),
    "ragged": Case(4097, 3080, 1544),
}


def operands(
    case: Case, device: str = "cpu", positive: bool = False
) -> tuple[Tensor, list[Tensor], Tensor, Tensor | None]:
    """The input in float32, its parts, the weight and the bias."""
    generator = torch.Generator(device).manual_seed(case.rows + case.features)

    def drawn(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, device=device)
        return values.abs() if positive else values

    x = drawn(case.rows, case.features)
    x = {1: x.bfloat16().float(), 2: x.half().float(), 3: x}[case.parts]
    weight = (drawn(case.columns, case.features) * 0.02).bfloat16()
    return x, split(x)[: case.parts], weight, drawn(case.columns) if case.bias else None
