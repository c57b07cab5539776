"""A memory of single frames, chosen by the cameras: some coming frames each ask for the earlier frame that saw most.

The numbers of the frames are made from the cameras of the coming frames that ask and of those that may be asked for;
the last of them is one that is always remembered. Latents are gathered by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.coming_frames import frames_put_back, windows_choosing
from lightint_compile.passes.analysis.world import FRAMES
from lightint_compile.passes.ir.constant_values import constant_of
from lightint_compile.passes.ir.frame_numbers import Coming
from lightint_compile.passes.ir.op_arguments import argument, pick_of
from lightint_compile.passes.ir.op_families import Family
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.world_spec import PUBLISHED_FRAMES

aten = torch.ops.aten


@dataclass(frozen=True)
class FrameMemory:
    """What is known of such a memory.

    Attributes:
        index: the frame numbers [M].
        history: the latents that are gathered by them.
        frames: M.
        asked_every: latent frames between the coming ones that ask, counted back from the last.
        pinned: the frame that is always remembered, in place of what the last one asks for.
        continued: latest frames of the history that a chunk goes on from; none of them is asked for.
    """

    index: fx.Node
    history: fx.Node
    frames: int
    asked_every: int
    pinned: int
    continued: int

    @property
    def world(self) -> dict[str, Any]:
        """What it says of the world. By which view frames are chosen is not read from the program: it can be stated."""
        return {
            "memory": self.frames + self.continued,
            "recent": self.continued,
            "asked_every": self.asked_every,
            "pinned": self.pinned,
            "clip": 1,
            "fov": PUBLISHED_FRAMES.fov,
            "view_depth": PUBLISHED_FRAMES.view_depth,
        }


def find_frame_memory(program: Program, cameras: fx.Node, coming: Coming) -> FrameMemory | None:
    """The memory of a program whose ``coming`` cameras are known; ``None`` where it has none."""
    for node in program.calls():
        pick = pick_of(node)
        if pick is None or pick.axis != FRAMES or node.meta["val"].dim() != 5:
            continue
        pinned = _pinned(pick.index)
        if pinned is None:
            continue
        frames = int(pick.index.meta["val"].shape[0])
        every = _asked_every(program, cameras, coming, pick.index, frames)
        if every:
            return FrameMemory(pick.index, pick.source, frames, every, pinned, frames_put_back(program))
    return None


_MARK = "world of the cameras"


def mark_world(program: Program, cameras: fx.Node, coming: Coming) -> None:
    """Write on the camera input what a flat program says of the world, to be read when the steps are calls."""
    memory = find_frame_memory(program, cameras, coming)
    goes_on = {"goes_on": frames_put_back(program) > 0}
    cameras.meta[_MARK] = goes_on if memory is None else {**goes_on, **memory.world}


def marked_world(cameras: fx.Node) -> dict[str, Any]:
    """What :func:`mark_world` wrote, in the graph that was made since."""
    return dict(cameras.meta.get(_MARK, {}))


def _pinned(index: fx.Node) -> int | None:
    """The frame that is always the last of a known count of frame numbers; ``None`` for any other numbers."""
    numbers, parts = tensor_of(index), index.args[0] if index.target in Family.CAT.value else ()
    if numbers is None or numbers.dim() != 1 or not isinstance(numbers.shape[0], int):
        return None
    last = parts[-1] if isinstance(parts, (list, tuple)) and len(parts) == 2 else None
    value = _constant(last) if isinstance(last, fx.Node) else None
    return value[0] if value is not None and len(value) == 1 and value[0] >= 0 else None


def _constant(node: fx.Node) -> list[int] | None:
    if node.target in (aten.new_full.default, aten.full_like.default):
        filled = tensor_of(node)
        value = argument(node, "fill_value")
        return [value] * int(filled.numel()) if filled is not None and isinstance(value, int) else None
    found = constant_of(node)
    return None if found is None else found.tolist()


def _asked_every(program: Program, cameras: fx.Node, coming: Coming, index: fx.Node, frames: int) -> int | None:
    """The distance of the frames that ask, where they are as many as are remembered and the last is the last of all."""
    last = Coming(1, None if coming.first is None else coming.past(coming.count - 1).first)
    asking = [window for window in windows_choosing(program, cameras, index) if window.count == frames]
    if len(asking) != 1 or asking[0].first is None or last.first is None:
        return None
    if asking[0].behind(frames - 1) != last.first or asking[0].step % coming.step:
        return None
    return asking[0].step // coming.step
