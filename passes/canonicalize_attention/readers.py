"""Live readers of a node: dead code must not prevent a rewrite."""

from __future__ import annotations

import torch.fx as fx

from lightint_compile.passes.ir.effects import is_pure

#: Dead code with more nodes than this below one is not recognised; looking for it must stay cheap in large graphs.
_MOST_NODES = 32


def is_dead(node: fx.Node) -> bool:
    """Whether no output and no side effect depends on ``node``."""
    seen, pending = {node}, [node]
    while pending:
        known = pending.pop()
        if known.op != "call_function" or not is_pure(known) or len(seen) > _MOST_NODES:
            return False
        pending.extend(reader for reader in known.users if reader not in seen)
        seen.update(known.users)
    return True


def live_readers(node: fx.Node) -> list[fx.Node]:
    """The readers of ``node`` that matter, in the order in which they came to be."""
    return [reader for reader in node.users if not is_dead(reader)]


def erase_dead_readers(node: fx.Node) -> None:
    """Erase the readers of ``node`` that do not matter, and all that hangs on them."""
    for reader in list(node.users):
        if is_dead(reader):
            erase_dead_readers(reader)
            reader.graph.erase_node(reader)
