"""Families of operators by what they do to the axes of a tensor, for all analyses.

Two analyses read this table: which values repeat along an axis (``analysis/row_repeats``), and to
which element of a batch a value belongs (``analysis/batch_elements``). Each has its own rule for a family,
because a repetition may be written out where it is in the way, and an element of a batch may not; which spellings make
up a family is said here alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

import torch
import torch.fx as fx

aten = torch.ops.aten

AnyRule = TypeVar("AnyRule")


class Family(Enum):
    """A family of operators, with its members."""

    VIEW = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
    PERMUTATION = (aten.permute.default, aten.transpose.int, aten.t.default)
    UNSQUEEZE = (aten.unsqueeze.default,)
    SQUEEZE = (aten.squeeze.dim, aten.squeeze.dims)
    SELECT = (aten.select.int,)
    SLICE = (aten.slice.Tensor,)
    SPLIT = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
    UNBIND = (aten.unbind.int,)
    CAT = (aten.cat.default,)
    STACK = (aten.stack.default,)
    INDEX_SELECT = (aten.index_select.default,)
    EMBEDDING = (aten.embedding.default,)
    REPEAT = (aten.repeat.default,)
    INTERLEAVE = (aten.repeat_interleave.self_int,)
    EXPAND = (aten.expand.default,)
    FILL = (aten.full.default, aten.ones.default, aten.zeros.default)
    LINEAR = (aten.linear.default,)
    TRAILING_NORM = (aten.layer_norm.default, aten.rms_norm.default)
    GROUP_NORM = (aten.group_norm.default,)
    ALONG = (aten.softmax.int, aten.log_softmax.int, aten._softmax.default, aten.cumsum.default)
    """Keeps the shape and runs along one axis."""
    REDUCTION = (
        aten.mean.dim,
        aten.sum.dim_IntList,
        aten.amax.default,
        aten.amin.default,
        aten.var.correction,
        aten.linalg_vector_norm.default,
    )
    PRODUCT = (aten.matmul.default, aten.mm.default, aten.bmm.default)
    ADDED_PRODUCT = (aten.addmm.default, aten.baddbmm.default)
    EINSUM = (aten.einsum.default,)
    ATTENTION = (aten.scaled_dot_product_attention.default,)
    CONVOLUTION = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
    OF_MATRICES = (aten.linalg_inv.default, aten.inverse.default)
    """A function of the matrix in the last two axes."""
    DIAGONAL = (aten.diag_embed.default,)


def by_operator(rules: Mapping[Family, AnyRule]) -> dict[Any, AnyRule]:
    """The rule of every operator, from the rules of families."""
    return {target: rule for family, rule in rules.items() for target in family.value}


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
}


def is_pointwise(node: fx.Node) -> bool:
    """Whether every value of the result depends on one value of each operand, after broadcasting."""
    if node.target in _LIKE_POINTWISE:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
