"""Higher-order operators whose bodies are captured.

Some wrap a graph and change nothing about what it computes at inference: activation checkpointing says what a backward
pass recomputes, ``nested_compile_region`` what is to be compiled once. Their graph is run in their place, so that what
is inside is rewritten like the rest.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

WrappedCall = tuple[fx.GraphModule, tuple[Any, ...]]
"""A graph and what it is called with."""


def wrapped_call(target: Any, args: Any, kwargs: Any) -> WrappedCall | None:
    """What a wrapper calls; ``None`` for any other operator, and for a wrapper around something that is no graph."""
    skipped = _NOT_OPERANDS.get(target)
    if skipped is None or not isinstance(args[0], fx.GraphModule) or not _OWN_KEYWORDS.issuperset(kwargs):
        return None
    return args[0], tuple(args[skipped:])


#: Wrappers, and how many of their arguments are no operands of the graph: the graph itself, and its name.
_NOT_OPERANDS: dict[Any, int] = {
    torch.ops.higher_order.tag_activation_checkpoint: 1,
    torch.ops.higher_order.wrap: 1,
    torch.ops.higher_order.invoke_subgraph: 2,
}

#: Keywords that say how a backward pass recomputes.
_OWN_KEYWORDS = {"use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop"}
