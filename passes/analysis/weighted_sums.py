"""Weighted sums of several latents, as multistep solvers write them: stacked, multiplied by a few numbers, summed.

UniPC (arXiv 2302.04867) takes ``einsum("k,bkc...->bc...", weights, stack(differences, 1))``; others write a product and
``sum``, or ``tensordot``. None of it is elementwise on values of the latent's shape, though all of it is arithmetic of
the scheduler's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.fx as fx

from lightint_compile.passes.ir.program import tensor_of

aten = torch.ops.aten

_JOINS = frozenset((aten.stack.default, aten.cat.default))

_SUMS = frozenset(
    (
        *(aten.einsum.default, aten.tensordot.default, aten.matmul.default, aten.mm.default, aten.bmm.default),
        *(aten.sum.dim_IntList, aten.sum.default, aten.mean.dim),
        *(aten.mul.Tensor, aten.div.Tensor, aten._to_copy.default, aten.clone.default),
        *(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default),
        *(aten.permute.default, aten.transpose.int, aten.movedim.int, aten.unsqueeze.default, aten.squeeze.dim),
    )
)

_FEW = 16
"""Numbers that a solver weighs with, at most: it looks at a handful of earlier predictions."""


def weighted_sum(node: fx.Node, is_latent: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """The operations from values that look like a latent to ``node``, a sum of them; empty where it is none.

    A product with weights is none: only latents, and a few numbers, may enter.
    """
    inside, pending = {node}, [node]
    while pending:
        current = pending.pop()
        if current.target not in _SUMS and current.target not in _JOINS:
            return set()
        for source in current.all_input_nodes:
            if source not in inside and not is_latent(source) and not _is_few(source):
                inside.add(source)
                pending.append(source)
    return inside if any(each.target in _JOINS for each in inside) else set()


def _is_few(node: fx.Node) -> bool:
    """Whether a value is a handful of numbers."""
    tensor = tensor_of(node)
    return tensor is not None and all(isinstance(size, int) for size in tensor.shape) and tensor.numel() <= _FEW
