"""Names of the root's calls, so that its code reads like the loop it came from: ``step_1_block_3``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch.fx as fx

from lightint_compile.passes.analysis.loop import DenoisingLoop
from lightint_compile.passes.ir.node_queries import with_sources
from lightint_compile.passes.outline_regions.pieces import Piece
from lightint_compile.passes.outline_regions.submodules import Outlined

_INDEX = re.compile(r"(?:^|\.)(\d+)(?:@\d+)?$")


def call_names(entries: Sequence[Outlined], pieces: Sequence[Piece], loop: DenoisingLoop) -> dict[int, str]:
    """A name for each piece's call, by the identity of the piece; names that repeat get a counter from FX.

    What is in step ``k`` of the denoising loop starts with ``step_k``, blocks that the loop depends on with
    ``prefill``, memos with what they depend on. Blocks carry their index in the user's module list, or are numbered.
    """
    entry_of = {id(piece): entry for entry in entries for piece in entry.pieces}
    ahead = with_sources(step.carried_out for step in loop.steps[-1:])
    numbered: Counter[str] = Counter()
    names: dict[int, str] = {}
    taken: set[str] = set()
    for piece in pieces:
        entry = entry_of[id(piece)]
        prefix = _prefix(piece, loop, ahead)
        name = prefix + entry.name
        if piece.is_region:
            index = _INDEX.search(piece.path)
            name = f"{prefix}block_{index[1]}" if index else f"{name}_{numbered[name]}"
            numbered[prefix + entry.name] += 1
        names[id(piece)] = f"{prefix}{entry.name}_{index[1]}" if piece.is_region and index and name in taken else name
        taken.add(names[id(piece)])
    return names


def _prefix(piece: Piece, loop: DenoisingLoop, ahead: set[fx.Node]) -> str:
    if piece.memo:
        return f"{piece.memo}_"
    steps = {loop.step_of[node] for node in piece.nodes if node in loop.step_of}
    if steps:
        after = not loop.steps or not any(node in ahead for node in piece.nodes)
        return "" if after else f"step_{min(steps)}_"
    return "prefill_" if piece.is_region and any(node in ahead for node in piece.nodes) else ""
