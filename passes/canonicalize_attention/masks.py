"""Several masks and biases as the one mask that an attention operator takes, or as its causal flag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.fx as fx

from lightint_compile.passes.canonicalize_attention.arrange import Ops, arrange
from lightint_compile.passes.canonicalize_attention.axes import Axes, broadcast, fresh_axes, resolved
from lightint_compile.passes.canonicalize_attention.chain import MaskPart
from lightint_compile.passes.canonicalize_attention.constants import is_lower_triangle, masks_nothing
from lightint_compile.passes.canonicalize_attention.spellings import BOOLEAN_MASK
from lightint_compile.passes.ir.matching import match
from lightint_compile.passes.ir.program import tensor_of

aten = torch.ops.aten

_NOTS = (aten.bitwise_not.default, aten.logical_not.default)


class MaskOps(Ops, Protocol):
    """What else is needed to put masks together."""

    def call(self, target: Any, *args: Any) -> Any:
        """Apply an ATen operator."""

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        """Change the dtype; nothing happens when it is right already."""

    def dtype_of(self, value: Any) -> torch.dtype:
        """The dtype of a value."""

    def mask(self, node: fx.Node) -> Any:
        """The value of a mask in the original graph."""


def simplified(part: MaskPart) -> MaskPart:
    """``part`` as a mask of what to keep: without a negation, and without zeros and infinities that spell a boolean."""
    if part.kind == "bias" and part.factor > 0:
        found = match(BOOLEAN_MASK, part.node)
        if found and (own := tensor_of(found["mask"])) is not None and own.dtype == torch.bool:
            kind = "keep" if found.tags["mask"] == "keep" else "fill"
            return simplified(replace(part, node=found["mask"], kind=kind, axes=_aligned(part.axes, own)))
    inner = part.node.args[0] if part.node.target in _NOTS else None
    negates = part.kind != "bias" and (own := tensor_of(inner)) is not None and own.dtype == torch.bool
    if negates and isinstance(inner, fx.Node):
        return simplified(replace(part, node=inner, kind="keep" if part.kind == "fill" else "fill"))
    return part


def _aligned(axes: Axes, own: torch.Tensor) -> Axes:
    """The axes of a mask that was broadcast into a tensor with ``axes``."""
    narrowed = fresh_axes(tuple(own.shape))
    broadcast(axes, narrowed)
    return narrowed


def needed(masks: Sequence[MaskPart], target: Axes) -> tuple[list[MaskPart], bool]:
    """The masks that a call needs, simplified, and whether it is causal: the operator takes a mask or the flag.

    A mask that is known to let everything through is left out, and so is one that says causal, if it is the only one.
    """
    masks = [simple for simple in map(simplified, masks) if not masks_nothing(simple)]
    if len(masks) != 1 or masks[0].swallow:
        return masks, False
    part = masks[0]
    rows_and_keys = [axis for axis in resolved(part.axes) if axis] == list(resolved(target[2:]))
    return (masks, False) if not rows_and_keys or not is_lower_triangle(part) else ([], True)


def combined(ops: MaskOps, masks: Sequence[MaskPart], target: Axes, dtype: torch.dtype) -> Any:
    """One mask with the axes ``target`` (size one where it does not vary): boolean, float, or ``None``."""
    kept = [_kept(ops, part, target) for part in masks if part.kind != "bias" and not part.swallow]
    added = [_added(ops, part, target, dtype) for part in masks if part.kind == "bias" or part.swallow]
    keep, bias = _folded(ops, aten.logical_and.default, kept), _folded(ops, aten.add.Tensor, added)
    if bias is None:
        return keep
    if keep is not None:
        bias = ops.call(aten.where.ScalarOther, keep, bias, float("-inf"))
    # The operator takes a float32 mask beside half-precision queries: a bias keeps its precision.
    return bias if ops.dtype_of(bias) in (dtype, torch.float32) and dtype != torch.float64 else ops.cast(bias, dtype)


def is_as_built(part: MaskPart, simple: MaskPart) -> bool:
    """Whether a mask is already what :func:`combined` makes of its simple form: itself, or its negation."""
    negated = simple.kind == "fill" and part.node.target in _NOTS and part.node.args[0] is simple.node
    return part.node is simple.node or negated


def _folded(ops: MaskOps, target: Any, values: Sequence[Any]) -> Any:
    result = None
    for value in values:
        result = value if result is None else ops.call(target, result, value)
    return result


def _placed(ops: MaskOps, part: MaskPart, target: Axes) -> Any:
    """A mask with the axes of the target, or as it is where it broadcasts to them in two or four dimensions."""
    value, own = ops.mask(part.node), resolved(part.axes)
    aligned = resolved(target)[len(target) - len(own) :]
    if len(own) in (2, 4) and all(not axis or axis == wanted for axis, wanted in zip(own, aligned, strict=True)):
        return value
    return arrange(ops, value, part.axes, target, fill=False)


def _kept(ops: MaskOps, part: MaskPart, target: Axes) -> Any:
    value = _placed(ops, part, target)
    return ops.call(aten.logical_not.default, value) if part.kind == "fill" else value


def _added(ops: MaskOps, part: MaskPart, target: Axes, dtype: torch.dtype) -> Any:
    value = _placed(ops, part, target)
    if part.kind == "bias":
        return value if part.factor == 1.0 else ops.call(aten.mul.Tensor, value, part.factor)
    wide = dtype if dtype == torch.float64 else torch.float32
    lowest = torch.finfo(torch.float32 if dtype == torch.float16 else dtype).min
    zero_or_lowest = (0.0, lowest) if part.kind == "keep" else (lowest, 0.0)
    return ops.cast(ops.call(aten.where.Scalar, value, *zero_or_lowest), wide)
