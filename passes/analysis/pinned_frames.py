"""Latents in which a scheduler puts known frames back after each step: those of a first image, or of the clip before.

``cat([clean, latents[:, :, kept:]], 2)`` has the latent's shape and is made of it, though it is not elementwise. A
blend with a mask is, and needs no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.fx as fx

from lightint_compile.passes.ir.memory_sharing import memory_of

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
