"""Spellings of operators that do the same to the axes of a tensor, each family said once."""

from __future__ import annotations

from enum import Enum

import torch
import torch.fx as fx

aten = torch.ops.aten


class Family(Enum):
    """A family of operators, with its members."""

    VIEW = (
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.view_copy.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
    )
    PERMUTATION = (
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.swapaxes.default,
        aten.movedim.int,
        aten.movedim.intlist,
    )
    UNSQUEEZE = (aten.unsqueeze.default,)
    SQUEEZE = (aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
    SELECT = (aten.select.int,)
    SLICE = (aten.slice.Tensor,)
    SPLIT = (
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.chunk.default,
        aten.tensor_split.sections,
        aten.tensor_split.indices,
    )
    UNBIND = (aten.unbind.int,)
    CAT = (aten.cat.default, aten.concat.default, aten.concatenate.default)
    STACK = (aten.stack.default,)
    INDEX_SELECT = (aten.index_select.default,)
    EMBEDDING = (aten.embedding.default,)
    REPEAT = (aten.repeat.default,)
    INTERLEAVE = (aten.repeat_interleave.self_int,)
    EXPAND = (aten.expand.default,)
    FILL = (aten.full.default, aten.ones.default, aten.zeros.default)
    LINEAR = (aten.linear.default,)
    TRAILING_NORM = (aten.layer_norm.default, aten.rms_norm.default)
    GROUP_NORM = (aten.group_norm.default, aten.instance_norm.default)
    ALONG = (
        aten.softmax.int,
        aten.log_softmax.int,
        aten._softmax.default,
        aten._log_softmax.default,
        aten._safe_softmax.default,
        aten.cumsum.default,
    )
    """Keeps the shape and runs along one axis."""
    REDUCTION = (
        aten.mean.default,
        aten.mean.dim,
        aten.sum.default,
        aten.sum.dim_IntList,
        aten.amax.default,
        aten.amin.default,
        aten.var.correction,
        aten.var.dim,
        aten.std.correction,
        aten.std.dim,
        aten.all.default,
        aten.all.dim,
        aten.any.default,
        aten.any.dim,
        aten.logsumexp.default,
        aten.linalg_vector_norm.default,
        aten.norm.ScalarOpt_dim,
        aten.argmax.default,
        aten.argmin.default,
        aten.prod.dim_int,
    )
    PRODUCT = (aten.matmul.default, aten.mm.default, aten.bmm.default)
    ADDED_PRODUCT = (aten.addmm.default, aten.baddbmm.default)
    EINSUM = (aten.einsum.default,)
    CONVOLUTION = (
        aten.conv1d.default,
        aten.conv2d.default,
        aten.conv3d.default,
        aten.conv_transpose2d.input,
        aten.conv_transpose3d.input,
    )
    POOLING = (
        aten.avg_pool2d.default,
        aten.avg_pool3d.default,
        aten.max_pool2d.default,
        aten.max_pool3d.default,
        aten.adaptive_avg_pool2d.default,
        aten.adaptive_avg_pool3d.default,
    )
    OF_MATRICES = (aten.linalg_inv.default, aten.inverse.default)
    """A function of the matrix in the last two axes."""
    DIAGONAL = (aten.diag_embed.default,)


COPIES = frozenset({aten.clone.default, aten.contiguous.default, aten.detach.default})
"""Elementwise operations that hand values on as they are."""

_LIKE_POINTWISE = COPIES | {
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.device,
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
    aten.type_as.default,
    aten.empty_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.dropout.default,
    aten.copy.default,
    aten.fill.Scalar,
    aten.masked_fill.Tensor,
    aten.where.ScalarSelf,
    aten.where.ScalarOther,
    aten.where.Scalar,
    aten.__and__.Tensor,
    aten.__or__.Tensor,
}


def is_pointwise(node: fx.Node) -> bool:
    """Whether every value of the result depends on one value of each operand, after broadcasting."""
    if node.target in _LIKE_POINTWISE:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
