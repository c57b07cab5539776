"""Latents in which a scheduler puts known frames back after each step: those of a first image, or of the clip before.

``cat([clean, latents[:, :, kept:]], 2)`` has the latent's shape and is made of it, though it is not elementwise. A
blend with a mask is, and needs no rule. Where the scheduler's work on known frames is left out, the latent is what the
network reads behind them: the rest of ``cat([clean, latents], 2)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.fx as fx

from lightint_compile.passes.ir.memory_sharing import memory_of
from lightint_compile.passes.ir.program import tensor_of

aten = torch.ops.aten

_PARTS = frozenset((aten.slice.Tensor, aten.narrow.default, aten._to_copy.default, aten.clone.default))


def pinned_frames(node: fx.Node, is_latent: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """The operations from one latent to ``node``, the same with given values in part of it; empty where it is none."""
    joined: Sequence[object] = ()
    if node.target is aten.cat.default and isinstance(node.args[0], (list, tuple)):
        joined = node.args[0]
    elif node.target is aten.slice_scatter.default:
        joined = node.args[:2]
    parts = [part for part in joined if isinstance(part, fx.Node)]
    chains = [found for part in parts if (found := _part_of_a_latent(part, is_latent)) is not None]
    given = [part for part in parts if _is_given(part)]
    return {node, *chains[0]} if len(chains) == 1 and len(given) == len(parts) - 1 > 0 else set()


def behind_pinned(node: fx.Node, is_latent: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """The slice and the join where ``node`` is a latent out of a join with given values; empty where it is none."""
    joined = node.args[0] if node.target is aten.slice.Tensor else None
    if not isinstance(joined, fx.Node) or joined.target is not aten.cat.default or len(node.args) < 3:
        return set()
    axis = joined.args[1] if len(joined.args) > 1 else 0
    parts = joined.args[0]
    if node.args[1] != axis or not isinstance(axis, int) or not isinstance(parts, (list, tuple)):
        return set()
    begin = 0
    for part in parts:
        if isinstance(part, fx.Node) and is_latent(part) and begin == node.args[2]:
            others = [other for other in parts if other is not part]
            return {node, joined} if all(isinstance(o, fx.Node) and _is_given(o) for o in others) else set()
        tensor = tensor_of(part)
        size = tensor.shape[axis] if tensor is not None else None
        if not isinstance(size, int):
            return set()
        begin += size
    return set()


def known_frames(latents: fx.Node, axis: int) -> int:
    """How many given frames ``latents`` begin with along their frame axis: those that a chunk goes on from."""
    joined = latents.args[0] if latents.target is aten.cat.default else ()
    known = 0
    for part in joined if isinstance(joined, (list, tuple)) else ():
        tensor = tensor_of(part)
        along = latents.args[1] if len(latents.args) > 1 else 0
        size = tensor.shape[axis] if tensor is not None and along in (axis, axis - tensor.dim()) else None
        if not isinstance(part, fx.Node) or not _is_given(part) or not isinstance(size, int):
            return known
        known += size
    return 0  # all of it is given


def _part_of_a_latent(part: fx.Node, is_latent: Callable[[fx.Node], bool]) -> set[fx.Node] | None:
    """The slices and casts from a latent to ``part``; ``None`` where it is no part of one."""
    inside = set[fx.Node]()
    while not is_latent(part):
        if part.target not in _PARTS or not isinstance(part.args[0], fx.Node):
            return None
        inside.add(part)
        part = part.args[0]
    return inside


def _is_given(part: fx.Node) -> bool:
    """Whether a value is a view of an input, or a constant."""
    source = memory_of(part)
    while source.target in _PARTS and isinstance(source.args[0], fx.Node):
        source = memory_of(source.args[0])
    return source.op == "placeholder" or (source.op == "call_function" and not source.all_input_nodes)
