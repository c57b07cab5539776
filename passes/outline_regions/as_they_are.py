"""Pieces that a compiler would not change: sparse attention by itself, and views.

Compiled code calls an operator of ours as it is, through a region and a dispatcher. Where nothing else is in a piece,
as between two writes to a cache, its nodes stay in the root, and the driver calls the operator directly.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.fx as fx

from lightint_compile.passes.ir.memory_sharing import alias_source
from lightint_compile.passes.outline_regions.pieces import Piece


def left_as_it_is(piece: Piece) -> bool:
    """Whether a piece holds nothing but sparse attention and views, and is not kept between calls."""
    return piece.kind in ("block", "glue") and piece.memo is None and _is_unchanged(piece.nodes)


def _is_unchanged(nodes: Iterable[fx.Node]) -> bool:
    return all(_is_sparse_attention(node) or alias_source(node) is not None for node in nodes)


def _is_sparse_attention(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and str(target).startswith("lightint.sparse_attention")
