"""``lightint decisions``: what the rules of a preset decide along a camera path, without running a model."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from lightint_compile.errors import InputError
from lightint_compile.models.registry import LARGE, world_model
from lightint_compile.models.world_model import WorldModel
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import pipeline_of
from lightint_compile.passes.adaptive_context import AdaptiveContext
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.world_spec import StatedWorld, WorldSpec
from lightint_compile.passes.step_cache import StepCache
from lightint_compile.runtime.cameras import view_of
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.frame_memory import FrameMemoryRules, rules_in_world
from lightint_compile.runtime.kept_frames import kept_along
from lightint_compile.runtime.planner import plan
from lightint_compile.runtime.rules import AdaptiveRules, ModelRules, Rules

LONGEST = 2048
"""Latent frames of a path that are decided for while one waits: every chunk looks at all before it."""


def decide(
    trajectory: str,
    latents: int | None,
    preset: str,
    memory: int | None = None,
    age: int = 0,
    kept: int = 0,
    chunk_frames: int | None = None,
    model: WorldModel | None = None,
) -> list[Decision]:
    """The decisions along a pose string, chunk by chunk.

    Args:
        latents: latent frames to decide for; ``None`` for all that the path has.
        memory: most context frames that the model itself gathers; as its world has it unless given.
        age: most chunks for which keys and values of context frames are kept.
        kept: most frames of which they are kept; at least ``memory``.
        chunk_frames: latent frames of a chunk, likewise.
        model: whose cameras the pose string moves, and whose world it is; the large built-in one unless given.

    Raises:
        InputError: the path is shorter than ``latents``, no whole number of chunks, or longer than :data:`LONGEST`.
    """
    _check_length(trajectory)
    model = world_model(LARGE) if model is None else model
    stated: dict[str, Any] = {"memory": memory, "chunk": chunk_frames}
    spec = dataclasses.replace(model.spec, **{name: value for name, value in stated.items() if value is not None})
    path = model.camera_path(trajectory)
    extrinsics = path.extrinsics
    wanted = extrinsics.shape[0] if latents is None else latents
    if wanted > extrinsics.shape[0]:
        why = f"{trajectory!r} has {extrinsics.shape[0]} latent frames, {wanted} were asked for"
        raise InputError("The path is too short.", where="--trajectory", why=why, fix="lengthen it, or ask for fewer")
    _check_chunks(wanted, spec)
    rules: Rules = rules_for(LightintOptions(preset=preset), spec)
    if isinstance(rules, AdaptiveRules):
        rules = rules.seeing(view_of(path.intrinsics))
    made = plan(extrinsics[:wanted], rules)
    return kept_along(made, age, max(kept, spec.memory), rules.clip)


def _check_length(trajectory: str) -> None:
    """Refuse a path by its counts, before any of it is walked."""
    counts = re.findall(r"-0*([0-9]+)", trajectory)
    if any(len(count) > 9 for count in counts) or sum(map(int, counts)) >= LONGEST:
        shown = trajectory if len(trajectory) <= 40 else f"{trajectory[:40]}..."
        why = f"{shown!r} has more than {LONGEST} latent frames, and every chunk looks at all before it"
        raise InputError("The path is too long.", where="--trajectory", why=why, fix=f"ask for at most w-{LONGEST - 1}")


def _check_chunks(frames: int, spec: WorldSpec) -> None:
    """Refuse what is no whole number of chunks, where the first is longer than others, with the lengths that are."""
    whole = spec.chunks(frames)
    if spec.first_chunk is None or frames == spec.frames(whole):
        return
    why = f"it has {frames} latent frames; the first chunk has {spec.first_chunk}, every other adds {spec.chunk}"
    lengths = [spec.frames(chunks) for chunks in (whole, whole + 1) if chunks]
    fix = f"take {' or '.join(map(str, lengths))}; a pose string has one frame more than its counts sum to"
    raise InputError("The path is no whole number of chunks.", where="--trajectory", why=why, fix=fix)


def rules_for(options: LightintOptions, spec: WorldSpec) -> Rules:
    """The rules by which a program compiled with these options decides; the model's own where nothing is decided."""
    passes = pipeline_of(options).passes
    context = next((step for step in passes if isinstance(step, AdaptiveContext)), None)
    cache = next((step for step in passes if isinstance(step, StepCache)), None)
    step = cache or context
    world = (step or StatedWorld()).world(**vars(spec))
    if step is None:
        return ModelRules.of(world) if world.asked_every is None else FrameMemoryRules.of(world)
    steps = () if cache is None else spec.interior_steps
    more = {"rules": step.rules, "overlap": step.overlap, "adapt_context": context is not None, "steps": steps}
    policy = Policy.of(world, **more)
    return rules_in_world(policy)


def summary(made: list[Decision]) -> str:
    """One line a chunk, and the totals."""
    context = sum(len(decision.context_frames) for decision in made)
    saved = sum(decision.saved_frames for decision in made)
    reusing = sum(bool(decision.reused_steps) for decision in made)
    kept = sum(decision.kept_frames for decision in made)
    gathered = f"{context} context frames in {len(made)} chunks, {saved} fewer than the model's own"
    kept_too = f", {kept} of them kept from earlier chunks" if kept else ""
    return "\n".join([*map(str, made), f"{gathered}{kept_too}; {reusing} chunks may reuse steps"])
