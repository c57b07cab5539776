"""Names of the root's calls, so that its code reads as the loop it came from: ``step_1_block_3``."""

from __future__ import annotations

from collections.abc import Sequence

from lightint_compile.passes.outlining.pieces import Piece
from lightint_compile.passes.outlining.submodules import Outlined


def call_names(entries: Sequence[Outlined], pieces: Sequence[Piece]) -> dict[int, str]:
    """A name for each piece's call, by the identity of the piece."""
    entry_of = {id(piece): entry for entry in entries for piece in entry.pieces}
    return {id(piece): f"call_{entry_of[id(piece)].name}" for piece in pieces}
