"""Sizes that one operation proves to be equal: keys and values of an attention have one length."""

from __future__ import annotations

import torch

from lightint_compile.passes.ir.fake_values import hint_of, size_of
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.sizes import same

aten = torch.ops.aten


def equate_keys_and_values(program: Program) -> None:
    """Make the lengths of keys and values one symbol where a capture gave each input its own.

    Dynamo gives every size that changed between calls a symbol of its own. An attention runs only where both lengths
    are equal, and its fake implementations do not say so. It becomes a guard, which no call that runs can fail.
    """
    for node in program.calls(aten.scaled_dot_product_attention.default):
        key, value = (tensor_of(operand) for operand in node.args[1:3])
        if key is None or value is None or min(key.dim(), value.dim()) < 2:
            continue
        lengths = key.shape[-2], value.shape[-2]
        if not same(*map(size_of, lengths)) and hint_of(lengths[0]) == hint_of(lengths[1]):
            assert lengths[0] == lengths[1]
