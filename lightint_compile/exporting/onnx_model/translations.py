"""ONNX forms of ATen operators that torch.onnx has none for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

aten, prims = torch.ops.aten, torch.ops.prims


def table(opset: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations by operator, for ``torch.onnx.export(custom_translation_table=...)``.

    Raises:
        ImportError: onnxscript is not installed.
    """
    import onnxscript

    op = getattr(onnxscript, f"opset{opset}")

    def hypot(one: Any, other: Any) -> Any:
        return op.Sqrt(op.Add(op.Mul(one, one), op.Mul(other, other)))

    def sort(self: Any, stable: bool = False, dim: int = -1, descending: bool = False) -> Any:
        axis = dim % len(self.shape)
        return op.TopK(self, op.Shape(self, start=axis, end=axis + 1), axis=axis, largest=int(descending))

    def subtract_from(self: Any, other: Any, alpha: Any = 1) -> Any:
        subtracted = self if alpha == 1 else op.Mul(self, op.CastLike(alpha, self))
        return op.Sub(op.CastLike(other, self), subtracted)

    def largest(self: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
        axes = (op.Constant(value_ints=list(dim)),) if dim else ()
        return op.ReduceMax(self, *axes, keepdims=int(keepdim))

    return {
        aten.amax.default: largest,
        aten.rsub.Scalar: subtract_from,
        prims.hypot.default: hypot,
        aten.hypot.default: hypot,
        aten.sort.stable: sort,
    }
