"""Frames that are padded by their edges, joined, and stored with channels last: one copy of rows of channels.

What computes the frames is then written once, and norm and activation are one kernel.
:mod:`lightint_compile.kernels.edge_frames` says why that beats a kernel that computes while it pads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
import torch.fx as fx

from lightint_compile.kernels.edge_frames import FRAMES, SIDES
from lightint_compile.lowering.edge_pads import REPLICATION, numbers_of, repeats_edges
from lightint_compile.lowering.region_nodes import call
from lightint_compile.passes.ir.fake_values import numel_hint

aten = torch.ops.aten

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def join_frames(graph: fx.Graph, node: fx.Node, made: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """The copy that ``node``, a clone with channels last, is; ``None`` where it stores other values."""
    joined = node.args[0]
    if node.kwargs.get("memory_format") is not torch.channels_last_3d or not isinstance(joined, fx.Node):
        return None
    value = node.meta["val"]
    if value.dim() != 5 or value.dtype not in DTYPES or joined.target is not aten.cat.default or len(joined.users) > 1:
        return None
    parts, axis = _joined(joined)
    if axis not in (FRAMES, FRAMES - 5):
        return None
    pads = [pads for part in parts if (pads := _pads(part, value.dtype)) is not None]
    if len(pads) < len(parts) or not any(map(any, pads)):
        return None
    sources = [_source(part) for part in parts]
    largest = max((source.meta["val"] for source in sources), key=numel_hint)
    if largest.stride(1) != 1:
        return None  # a row of channels is no line of memory
    return call(graph, torch.ops.lightint.joined_frames.default, [made[s] for s in sources], [*chain(*pads)])


def _joined(node: fx.Node) -> tuple[Sequence[fx.Node], int]:
    given = [*node.args, node.kwargs.get("dim", 0)]
    return given[0], given[1]  # type: ignore[return-value]


def _is_padding(node: fx.Node) -> bool:
    return (node.target is aten.pad.default or node.target in REPLICATION) and repeats_edges(node)


def _pads(part: fx.Node, dtype: torch.dtype) -> Sequence[int] | None:
    """How far a part is padded by its edges, in six numbers; ``None`` where it cannot be told or others read it."""
    value = part.meta["val"]
    if value.dim() != 5 or value.dtype is not dtype:
        return None
    if not _is_padding(part):
        return (0,) * SIDES
    given = numbers_of(part.args[1])
    return None if given is None or min(given) < 0 or len(part.users) > 1 else given


def _source(part: fx.Node) -> fx.Node:
    return part.args[0] if _is_padding(part) else part  # type: ignore[return-value]
