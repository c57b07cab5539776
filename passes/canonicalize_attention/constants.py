"""Masks that hold the same values in every call."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.canonicalize_attention.chain import MaskPart
from lightint_compile.passes.canonicalize_attention.spellings import CAUSAL_MASK
from lightint_compile.passes.ir.constant_values import constant_of
from lightint_compile.passes.ir.matching import match

aten = torch.ops.aten


def is_lower_triangle(part: MaskPart) -> bool:
    """Whether a mask lets query ``i`` see the keys ``0..i`` and no other, in every call and every batch and head."""
    if part.kind == "keep" and match(CAUSAL_MASK, part.node):
        return True
    value = constant_of(part.node)
    if value is None or value.dim() < 2:
        return False
    triangle = torch.ones(value.shape[-2:], dtype=torch.bool).tril().expand(value.shape)
    if part.kind == "bias":
        expected = torch.zeros(value.shape).masked_fill(~triangle, float("-inf"))
        return part.factor > 0 and torch.equal(value.float(), expected)
    return torch.equal(value, triangle if part.kind == "keep" else ~triangle)


def masks_nothing(part: MaskPart) -> bool:
    """Whether a mask lets every query see every key, and adds nothing, in every call."""
    wanted = 1.0 if part.kind == "keep" else 0.0
    filled = _fill_of(part.node)
    if filled is not None:
        return filled == wanted
    value = constant_of(part.node)
    return value is not None and bool((value == wanted).all())


_FILLS: dict[Any, float] = {
    aten.ones.default: 1.0,
    aten.zeros.default: 0.0,
    aten.ones_like.default: 1.0,
    aten.zeros_like.default: 0.0,
}

_SPREADS = (
    aten.expand.default,
    aten.view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.transpose.int,
    aten.permute.default,
    aten._to_copy.default,
    aten.to.dtype,
)


def _fill_of(node: fx.Node) -> float | None:
    """The number that every element is, whatever the sizes; ``None`` where that is not written in the graph."""
    while node.target in _SPREADS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    if node.target is aten.full.default and isinstance(node.args[1], (bool, int, float)):
        return float(node.args[1])
    return _FILLS.get(node.target)
