"""What a node does besides computing its value: randomness, writes, checks. The schema's tag alone says too much."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

aten = torch.ops.aten

#: Operations tagged as random that draw nothing when this argument is given this way: position, name, value.
_SILENT: dict[Any, tuple[int, str, Any]] = {
    aten.scaled_dot_product_attention.default: (4, "dropout_p", 0.0),
    aten.dropout.default: (2, "train", False),
}


def draws_random(node: fx.Node) -> bool:
    """Whether two evaluations with the same arguments may differ. Attention without dropout draws nothing."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    if target in _SILENT:
        position, name, silent = _SILENT[target]
        given = node.args[position] if len(node.args) > position else node.kwargs.get(name, silent)
        return bool(given != silent)
    return True


def is_pure(node: fx.Node) -> bool:
    """Whether a node may be erased when unread, moved, and merged with an equal one."""
    return not draws_random(node) and not node.is_impure(impure_random=False)
