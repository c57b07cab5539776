"""Memory orders that suit the regions to come, chosen before they are cut.

A compiler of the whole graph may choose the memory order of every value; a region that is compiled alone must take and
return what the graph says. Two orders that models write down without meaning to are changed here:

* A patch embedding is a convolution, flattened and transposed: its tokens [B, N, C] are stored channel by channel, and
  elementwise operations keep that order through the residual stream. They are copied once, in front of the first norm.
* Queries, keys and values [B, H, N, D] are views of projections, which are stored token by token; ``cat`` of two of
  them copies them head by head, and attention's result has to be copied back. They are concatenated in their memory
  order.
"""

from __future__ import annotations

import torch
import torch.fx as fx

from lightint_compile.passes.ir.fake_values import described, refresh, size_of
from lightint_compile.passes.ir.memory_sharing import memory_of
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.saved import Saved

aten = torch.ops.aten

_NORMS = {aten.layer_norm.default, aten.rms_norm.default, aten.native_layer_norm.default}

#: Operations between tokens and a norm that keep shape and memory order, and how many are looked through.
_CARRY = {aten._to_copy.default, aten.add.Tensor, aten.mul.Tensor, aten.dropout.default}
_HOPS = 3


def choose_memory_orders(program: Program, pass_name: str) -> bool:
    """Change the memory orders above; whether anything changed.

    Nothing is done where an output of the program would change its memory order.
    """
    columns = [node for node in program.calls() if _is_stored_by_channel(node) and _is_normed(node)]
    joined = [node for node in program.calls(aten.cat.default) if _joins_heads(node)]
    if not columns and not joined:
        return False
    saved, outputs = Saved(program), _output_layouts(program)
    rewriter = Rewriter(program, pass_name)
    refresh(program, [*(_copied(node, rewriter) for node in columns), *(_rejoined(node, rewriter) for node in joined)])
    if _output_layouts(program) != outputs:
        saved.put_back(program)
        return False
    program.changed()
    return True


def _is_stored_by_channel(node: fx.Node) -> bool:
    """Whether a node is a view of computed tokens [B, N, C] that is not stored along its last axis."""
    tensor = tensor_of(node)
    if tensor is None or tensor.dim() != 3 or size_of(tensor.stride(-1)) == 1 or size_of(tensor.shape[-1]) == 1:
        return False
    base = memory_of(node)
    return base is not node and base.op == "call_function"


def _is_normed(node: fx.Node, hops: int = _HOPS) -> bool:
    """Whether a norm over the last axis reads the node, at most ``hops`` elementwise operations on."""
    return any(
        user.target in _NORMS or (hops > 0 and user.target in _CARRY and _is_normed(user, hops - 1))
        for user in node.users
    )


def _copied(node: fx.Node, rewriter: Rewriter) -> fx.Node:
    with rewriter.at(node, rule="rows", after=True):
        copied = rewriter.call(aten.clone.default, node, memory_format=torch.contiguous_format)
    node.replace_all_uses_with(copied, delete_user_cb=lambda user: user is not copied, propagate_meta=False)
    return copied


def _joins_heads(node: fx.Node) -> bool:
    """Whether a node concatenates heads [B, H, N, D] stored token by token, along another axis than the channels."""
    parts, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
    tensor = tensor_of(node)
    if tensor is None or tensor.dim() != 4 or not isinstance(parts, (tuple, list)) or axis not in (0, 1, 2, -2, -3, -4):
        return False
    return all(_lies_token_by_token(part) for part in parts)


def _lies_token_by_token(node: object) -> bool:
    """Whether [B, H, N, D] is a transposed contiguous [B, N, H, D]."""
    tensor = tensor_of(node)
    if tensor is None or tensor.dim() != 4:
        return False
    (_, heads, tokens, channels), strides = map(size_of, tensor.shape), list(map(size_of, tensor.stride()))
    return heads != 1 and tokens != 1 and strides[3] == 1 and strides[1] == channels and strides[2] == heads * channels


def _rejoined(node: fx.Node, rewriter: Rewriter) -> fx.Node:
    parts, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
    assert isinstance(parts, (tuple, list)) and isinstance(axis, int)
    with rewriter.at(node, rule="heads"):
        turned = [rewriter.call(aten.transpose.int, part, 1, 2) for part in parts]
        joined = rewriter.call(aten.cat.default, turned, {0: 0, 1: 2, 2: 1}[axis % 4])
        result = rewriter.call(aten.transpose.int, joined, 1, 2)
    rewriter.replace(node, result)
    return result


def _output_layouts(program: Program) -> list[object]:
    return [described(node) for node in program.graph.output_node().all_input_nodes]
