"""A decision on a memory of single frames: of those that the model asks for, which ones are gathered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.fx as fx

from lightint_compile.passes.adaptive_context.kept_entries.calls import Refused
from lightint_compile.passes.adaptive_context.kept_entries.restricting import Restriction
from lightint_compile.passes.analysis.cameras import camera_input
from lightint_compile.passes.analysis.coming_frames import coming_frames
from lightint_compile.passes.analysis.frame_memory import FrameMemory, find_frame_memory
from lightint_compile.passes.ir.chunk_plan import insert_plan
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.frame_numbers import Coming
from lightint_compile.passes.ir.fresh_sizes import fresh_size
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.remarks import Miss
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.saved import Saved
from lightint_compile.passes.ir.world_spec import StatedWorld, WorldSpec


@dataclass(frozen=True)
class AskedFrames:
    """A memory of single frames, and the world it is in.

    Attributes:
        memory: the gather.
        cameras: world-to-camera of the video so far and of the chunk.
        coming: which of them are the chunk's.
        world: what the rules need to know.
    """

    memory: FrameMemory
    cameras: fx.Node
    coming: Coming
    world: WorldSpec


def find_asked_frames(program: Program, stated: StatedWorld) -> AskedFrames | None:
    """The memory of single frames of ``program``; ``None`` where it has none that can be decided on."""
    cameras = camera_input(program)
    coming = coming_frames(program, cameras) if cameras is not None else None
    if cameras is None or not isinstance(coming, Coming):
        return None
    memory = find_frame_memory(program, cameras, coming)
    if memory is None or memory.frames < 2 or tensor_of(memory.history) is None:
        return None
    world = stated.world(**{**memory.world, "chunk": coming.count, "goes_on": memory.continued > 0})
    return AskedFrames(memory, cameras, coming, world)


def decide_on_frames(
    program: Program, found: AskedFrames, policy: Policy, intrinsics: fx.Node | None, pass_name: str
) -> int | Miss:
    """Insert the plan, and leave out what belongs to frames that it drops; how many calls follow it.

    Gives why not, and leaves the program as it was, where something depends on the frames in a way that is not known.
    """
    saved = Saved(program)
    entries = found.memory.index
    numbers = entries.meta["val"]
    assert isinstance(numbers, torch.Tensor)
    size = fresh_size(program, "memory_frames", found.memory.frames, found.memory.frames, least=1)
    operands = (found.cameras, found.memory.history)
    kept = insert_plan(program, policy, operands, size, numbers, entries, found.coming, intrinsics)
    try:
        return Restriction(program, Rewriter(program, pass_name), entries, kept).apply()
    except Refused as refused:
        miss = Miss(refused.node, f"the number of remembered frames stays as it is: {refused}")
        saved.put_back(program)
        return miss
