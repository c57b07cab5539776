"""Spellings of operators that do the same to the axes of a tensor, each family said once."""

from __future__ import annotations

from enum import Enum
from operator import attrgetter
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.kernels import mixed_linear as _mixed_linear  # noqa: F401 - registers the operator
from lightint_compile.passes.ir.program import tensor_of

aten = torch.ops.aten


def _of(names: str) -> tuple[Any, ...]:
    """Overloads of ATen operators."""
    return tuple(attrgetter(name)(aten) for name in names.split())


class Family(Enum):
    """A family of operators, with its members."""

    VIEW = _of("view.default reshape.default _unsafe_view.default view_copy.default flatten.using_ints unflatten.int")
    PERMUTATION = _of("permute.default transpose.int t.default swapaxes.default movedim.int movedim.intlist")
    UNSQUEEZE = _of("unsqueeze.default")
    SQUEEZE = _of("squeeze.dim squeeze.dims squeeze.default")
    SELECT = _of("select.int")
    SLICE = _of("slice.Tensor")
    SPLIT = _of("split.Tensor split_with_sizes.default chunk.default tensor_split.sections tensor_split.indices")
    UNBIND = _of("unbind.int")
    CAT = _of("cat.default concat.default concatenate.default")
    STACK = _of("stack.default")
    INDEX_SELECT = _of("index_select.default")
    EMBEDDING = _of("embedding.default")
    REPEAT = _of("repeat.default")
    INTERLEAVE = _of("repeat_interleave.self_int")
    EXPAND = _of("expand.default")
    FILL = _of("full.default ones.default zeros.default new_full.default new_ones.default new_zeros.default")
    LINEAR = (*_of("linear.default"), torch.ops.lightint.mixed_linear.default)
    TRAILING_NORM = _of("layer_norm.default rms_norm.default")
    GROUP_NORM = _of("group_norm.default instance_norm.default")
    ALONG = _of(
        "softmax.int log_softmax.int _softmax.default _log_softmax.default _safe_softmax.default cumsum.default"
    )
    """Keeps the shape and runs along one axis."""
    REDUCTION = _of(
        "mean.default mean.dim sum.default sum.dim_IntList amax.default amin.default var.correction "
        "var.dim std.correction std.dim all.default all.dim any.default any.dim logsumexp.default "
        "linalg_vector_norm.default norm.ScalarOpt_dim argmax.default argmin.default prod.dim_int"
    )
    PRODUCT = _of("matmul.default mm.default bmm.default _int_mm.default")
    ADDED_PRODUCT = _of("addmm.default baddbmm.default")
    EINSUM = _of("einsum.default")
    CONVOLUTION = _of("conv1d.default conv2d.default conv3d.default conv_transpose2d.input conv_transpose3d.input")
    POOLING = _of(
        "avg_pool2d.default avg_pool3d.default max_pool2d.default max_pool3d.default "
        "adaptive_avg_pool2d.default adaptive_avg_pool3d.default"
    )
    OF_MATRICES = _of("linalg_inv.default inverse.default")
    """A function of the matrix in the last two axes."""
    DIAGONAL = _of("diag_embed.default")


COPIES = frozenset({aten.clone.default, aten.contiguous.default, aten.detach.default})
"""Elementwise operations that hand values on as they are."""

_LIKE_POINTWISE = COPIES.union(
    _of(
        "_to_copy.default to.dtype to.device ones_like.default zeros_like.default full_like.default "
        "type_as.default empty_like.default rand_like.default randn_like.default dropout.default "
        "copy.default fill.Scalar masked_fill.Tensor where.ScalarSelf where.ScalarOther where.Scalar "
        "__and__.Tensor __or__.Tensor"
    )
)


def is_pointwise(node: fx.Node) -> bool:
    """Whether every value of the result depends on one value of each operand, after broadcasting."""
    if node.target in _LIKE_POINTWISE:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


def is_cast(node: fx.Node) -> bool:
    """Whether ``node`` changes the dtype and nothing else."""
    if node.target not in (aten._to_copy.default, aten.to.dtype):
        return False
    before, after = tensor_of(node.args[0]), tensor_of(node)
    return before is not None and after is not None and before.device == after.device


def widened_from(value: Any) -> fx.Node | None:
    """What of 16 bits a value in float32 was cast from; ``None`` where it was not."""
    if not isinstance(value, fx.Node) or not is_cast(value) or value.meta["val"].dtype is not torch.float32:
        return None
    source = value.args[0]
    assert isinstance(source, fx.Node)
    before = source.meta["val"].dtype
    return source if before.is_floating_point and before.itemsize == 2 else None


_LEAST_ROWS: dict[Any, int] = {aten._int_mm.default: 17}
"""Rows of a product of 8-bit numbers from which on CUDA computes it."""


def takes_rows(target: Any, rows: Any) -> bool:
    """Whether an operator computes so many rows on every device; a symbolic number may be anything."""
    least = _LEAST_ROWS.get(target, 0)
    return not least or (isinstance(rows, int) and rows >= least)
