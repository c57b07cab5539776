"""What a rollout decided and what its calls took, as data for reports: one row a chunk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.path_from_above import own_frames

Times = tuple[int | None, Mapping[str, float]]
"""The chunk that a call belongs to, ``None`` where nothing is decided, and its milliseconds by stage."""


def as_rows(
    decisions: Sequence[Decision],
    chunk_frames: int,
    lead: int,
    times: Sequence[Times] = (),
    errors: Mapping[str, Mapping[str, float]] | None = None,
) -> tuple[dict[str, Any], ...]:
    """A row a chunk: its decision, its latent frames [first, end), milliseconds by stage, and errors.

    Calls without a decision are chunks of their own where nothing at all is decided; else they are chunk 0, which has
    no context.

    Args:
        lead: frames in front of the first chunk.
        errors: what is known of the error at each setting of a budget.
    """
    by_chunk = _by_chunk(times, decides=bool(decisions))
    made = decisions or [Decision(chunk=number, context_frames=()) for number in sorted(by_chunk)]
    return tuple(_row(each, chunk_frames, lead, by_chunk.get(each.chunk, {}), errors or {}) for each in made)


def _row(
    decision: Decision,
    chunk_frames: int,
    lead: int,
    milliseconds: Mapping[str, float],
    errors: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    row = decision.to_dict() | {"frames": list(own_frames(decision, chunk_frames, lead))}
    told = {"milliseconds": dict(milliseconds), "error": dict(errors.get(decision.setting, {}))}
    plain: dict[str, Any] = json.loads(json.dumps(row | {name: value for name, value in told.items() if value}))
    return plain


def _by_chunk(times: Iterable[Times], *, decides: bool) -> dict[int, dict[str, float]]:
    """Calls of one chunk, such as the steps of a loop outside, added up; of a chunk that ran twice, both."""
    found: dict[int, dict[str, float]] = {}
    for number, (chunk, milliseconds) in enumerate(times):
        own = found.setdefault(chunk if chunk is not None else 0 if decides else number, {})
        for stage, spent in milliseconds.items():
            own[stage] = own.get(stage, 0.0) + spent
    return found
