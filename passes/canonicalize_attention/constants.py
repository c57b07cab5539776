"""Masks that hold the same values in every call: found by running the few nodes that make them."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
from torch.utils._python_dispatch import _disable_current_modes

from lightint_compile.passes.canonicalize_attention.chain import MaskPart
from lightint_compile.passes.canonicalize_attention.spellings import CAUSAL_MASK
from lightint_compile.passes.ir.matching import match

aten = torch.ops.aten

#: A larger mask is not run at compile time.
_MOST_ELEMENTS = 1 << 24


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


def constant_of(node: fx.Node) -> torch.Tensor | None:
    """The value of a node that depends on no input and draws no random number, from the CPU; ``None`` for any other."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not all(isinstance(size, int) for size in value.shape):
        return None
    if value.numel() > _MOST_ELEMENTS:
        return None
    with _disable_current_modes(), torch.no_grad():
        found = _run(node, {}, 0)
    return found if isinstance(found, torch.Tensor) else None


def _run(node: fx.Node, known: dict[fx.Node, Any], depth: int) -> Any:
    if node in known or depth > 32:
        return known.get(node)
    known[node] = None
    target = node.target
    pure = isinstance(target, torch._ops.OpOverload) and not target._schema.is_mutable
    if node.op != "call_function" or not pure or torch.Tag.nondeterministic_seeded in target.tags:  # type: ignore[union-attr]
        return None
    values = {argument: _run(argument, known, depth + 1) for argument in node.all_input_nodes}
    if any(value is None for value in values.values()):
        return None
    args = fx.map_arg(node.args, values.__getitem__)
    kwargs = dict(fx.map_arg(node.kwargs, values.__getitem__))
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    known[node] = target(*args, **kwargs)  # type: ignore[operator]
    return known[node]
