"""What a rollout decided and what its calls took, as data for reports: one row a chunk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.path_from_above import own_frames

Times = tuple[int | None, Mapping[str, float]]
"""The chunk that a call belongs to, ``None`` where nothing is decided, and its milliseconds by stage."""


Of = TypeVar("Of")


def as_rows(
    decisions: Sequence[Decision],
    chunk_frames: int,
    lead: int,
    times: Sequence[Times] = (),
    errors: Mapping[str, Mapping[str, float]] | None = None,
    measured: Mapping[int, Mapping[str, float | str]] | None = None,
) -> tuple[dict[str, Any], ...]:
    """A row a chunk: its decision, its latent frames [first, end), milliseconds by stage, and errors.

    Calls without a decision are chunks of their own where nothing at all is decided; else they are chunk 0, which has
    no context.

    Args:
        lead: frames in front of the first chunk.
        errors: what is known of the error at each setting of a budget.
        measured: what was measured of the error of each chunk.
    """
    spent = by_chunk(times, _added, decides=bool(decisions))
    made = decisions or [Decision(chunk=number, context_frames=()) for number in sorted(spent)]
    told = [{**(errors or {}).get(each.setting, {}), **(measured or {}).get(each.chunk, {})} for each in made]
    return tuple(
        _row(each, chunk_frames, lead, spent.get(each.chunk, {}), error) for each, error in zip(made, told, strict=True)
    )


def _row(
    decision: Decision,
    chunk_frames: int,
    lead: int,
    milliseconds: Mapping[str, float],
    error: Mapping[str, float | str],
) -> dict[str, Any]:
    row = decision.to_dict() | {"frames": list(own_frames(decision, chunk_frames, lead))}
    told = {"milliseconds": dict(milliseconds), "error": dict(error)}
    plain: dict[str, Any] = json.loads(json.dumps(row | {name: value for name, value in told.items() if value}))
    return plain


def by_chunk(calls: Iterable[tuple[int | None, Of]], join: Callable[[Of, Of], Of], *, decides: bool) -> dict[int, Of]:
    """What calls tell, by chunk: of calls of one chunk, such as the steps of a loop outside, joined; of a chunk that
    ran twice, both."""
    found: dict[int, Of] = {}
    for number, (chunk, told) in enumerate(calls):
        own = chunk if chunk is not None else 0 if decides else number
        found[own] = join(found[own], told) if own in found else told
    return found


def _added(one: Mapping[str, float], other: Mapping[str, float]) -> Mapping[str, float]:
    return {stage: one.get(stage, 0.0) + other.get(stage, 0.0) for stage in {**one, **other}}
