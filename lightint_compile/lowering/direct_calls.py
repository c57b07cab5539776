"""Operators of ours that the driver calls as the functions they are, past the dispatcher.

What the driver hands over are plain tensors that need no gradient, so there is nothing for a dispatcher to do; it takes
20 to 40 microseconds a call, most of them in the kernel that refuses gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from lightint_compile.kernels import ops as sparse
from lightint_compile.passes.ir.input_writes import write_window
from lightint_compile.torch_compat import is_observed

_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "sparse_attention": sparse.sparse_attention,
    "sparse_attention_segments": sparse.sparse_attention_segments,
    "sparse_attention_prepared": sparse.sparse_attention_prepared,
    "sparse_attention_masked": sparse.sparse_attention_masked,
    "write_window": write_window,
}


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _direct(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``; a call that a mode watches, of another kind of tensor, or by name goes to the operator."""
    operator = getattr(torch.ops.lightint, name).default

    def call(*args: Any, **named: Any) -> Any:
        if named or type(args[0]) not in _PLAIN or is_observed():
            return operator(*args, **named)
        return function(*args)

    call.__name__ = name
    return call


DIRECT: Mapping[str, Callable[..., Any]] = {name: _direct(name, function) for name, function in _FUNCTIONS.items()}
"""The functions by the names under which a driver's source calls them."""

SPELLED: Mapping[str, str] = {f"torch.ops.lightint.{name}.default(": f"{name}(" for name in DIRECT}
"""How the generated source names the operator, and what the driver calls instead."""
