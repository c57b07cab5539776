"""Values that are the same in every call: found by running the few nodes that make them."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
from torch.utils._python_dispatch import _disable_current_modes

#: A larger value is not made at compile time, unless it is asked for.
_MOST_ELEMENTS = 1 << 24


def constant_of(node: fx.Node, most: int = _MOST_ELEMENTS, most_bytes: float = float("inf")) -> torch.Tensor | None:
    """The value of a node that depends on no input and draws no random number, from the CPU; ``None`` for any other.

    Also for one of more elements than ``most``, or where it, or a value that it is made of, has more than
    ``most_bytes``.
    """
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not all(isinstance(size, int) for size in value.shape):
        return None
    if value.numel() > most:
        return None
    with _disable_current_modes(), torch.no_grad():
        found = _run(node, {}, 0, most_bytes)
    return found if isinstance(found, torch.Tensor) else None


def _run(node: fx.Node, known: dict[fx.Node, Any], depth: int, most_bytes: float) -> Any:
    if node in known or depth > 32:
        return known.get(node)
    known[node] = None
    target = node.target
    pure = isinstance(target, torch._ops.OpOverload) and not target._schema.is_mutable
    if node.op != "call_function" or not pure or torch.Tag.nondeterministic_seeded in target.tags:  # type: ignore[union-attr]
        return None
    if not _is_within(node, most_bytes):
        return None
    values = {argument: _run(argument, known, depth + 1, most_bytes) for argument in node.all_input_nodes}
    if any(value is None for value in values.values()):
        return None
    args = fx.map_arg(node.args, values.__getitem__)
    kwargs = dict(fx.map_arg(node.kwargs, values.__getitem__))
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    known[node] = target(*args, **kwargs)  # type: ignore[operator]
    return known[node]


def _is_within(node: fx.Node, most_bytes: float) -> bool:
    """Whether a value is of known size, and has no more bytes. A symbolic size is not compared: it would be guarded."""
    made = node.meta.get("val")
    if not isinstance(made, torch.Tensor):
        return True
    return all(isinstance(size, int) for size in made.shape) and made.numel() * made.itemsize <= most_bytes
