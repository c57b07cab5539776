"""Sizes that one operation proves to be equal: keys and values of an attention have one length."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.fx as fx
from torch.fx.experimental.symbolic_shapes import guard_bool

from lightint_compile.passes.ir.fake_values import hint_of, size_of
from lightint_compile.passes.ir.joins import pieces_of
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.sizes import same

aten = torch.ops.aten


def equate_keys_and_values(program: Program) -> None:
    """Make the lengths of keys and values one symbol where a capture gave each input its own.

    Dynamo gives every size that changed between calls a symbol of its own. An attention runs only where both lengths
    are equal, and its fake implementations do not say so. Where both are joined from as many parts, so are these in
    every call that pairs keys with their values. It becomes a guard: other lengths are another graph.
    """
    for node in program.calls(aten.scaled_dot_product_attention.default):
        for key, value in _lengths(*node.args[1:3]):
            if not same(size_of(key), size_of(value)) and hint_of(key) == hint_of(value):
                guard_bool(key == value)


def _lengths(key: object, value: object) -> Iterator[tuple[int | torch.SymInt, int | torch.SymInt]]:
    """Lengths of parts that belong together, then of the whole."""
    left, right = tensor_of(key), tensor_of(value)
    if left is None or right is None or min(left.dim(), right.dim()) < 2:
        return
    assert isinstance(key, fx.Node) and isinstance(value, fx.Node)
    pairs = list(pieces_of(key, left.dim() - 2)), list(pieces_of(value, right.dim() - 2))
    if len(pairs[0]) == len(pairs[1]):
        for one, other in zip(*pairs, strict=True):
            yield one.node.meta["val"].shape[one.axis], other.node.meta["val"].shape[other.axis]
    yield left.shape[-2], right.shape[-2]
