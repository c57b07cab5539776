"""The gather of context: several tensors read along their frame axis with one list of frame numbers."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sympy
import torch
import torch.fx as fx

from lightint_compile.passes.analysis.cameras import camera_input, is_camera_shaped, latents_so_far
from lightint_compile.passes.analysis.coming_frames import coming_frames, denoised
from lightint_compile.passes.analysis.world import FRAMES, chunk_frames, contradicted
from lightint_compile.passes.ir.fake_values import hint_at, hint_of, size_of
from lightint_compile.passes.ir.frame_numbers import Coming
from lightint_compile.passes.ir.fresh_sizes import bounds
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.memory_sharing import is_write
from lightint_compile.passes.ir.op_arguments import Pick, pick_of
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.remarks import Miss
from lightint_compile.passes.ir.world_spec import StatedWorld, WorldSpec

aten = torch.ops.aten


@dataclass(frozen=True)
class ContextGather:
    """One selection of context frames.

    Attributes:
        index: the frame numbers [m], m at most ``memory``.
        gathers: the nodes that read with it.
        history: the latents [B, C, F, h, w] it reads from.
        cameras: world-to-camera, [B, F + chunk, 4, 4] of the history and of the chunk, or a longer path; with or
            without B.
        coming: which of them are the chunk's; ``None`` for the last ones.
        size: m as an expression over the sizes of the capture.
        world: the chunk, and as memory the largest m.
    """

    index: fx.Node
    gathers: tuple[fx.Node, ...]
    history: fx.Node
    cameras: fx.Node
    coming: Coming | None
    size: sympy.Expr
    world: WorldSpec


def find_gather(program: Program, stated: StatedWorld) -> ContextGather | Miss | None:
    """The gather of context of ``program``, in the world as far as it is ``stated``; ``None`` where there is none."""
    misses: list[Miss] = []
    for index, gathers in _by_index(program).items():
        found = _examine(program, stated, index, gathers)
        if isinstance(found, ContextGather):
            return found
        if found is not None:
            misses.append(found)
    return misses[0] if misses else None


def _by_index(program: Program) -> Mapping[fx.Node, list[fx.Node]]:
    """Reads along one axis, by the node that holds the positions."""
    found: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node, pick in _picks(program):
        found[pick.index].append(node)
    return found


def _picks(program: Program) -> Iterator[tuple[fx.Node, Pick]]:
    """Every read along one axis by numbers."""
    for node in program.calls():
        pick = pick_of(node)
        if pick is not None:
            yield node, pick


def _examine(
    program: Program, stated: StatedWorld, index: fx.Node, gathers: list[fx.Node]
) -> ContextGather | Miss | None:
    positions = tensor_of(index)
    sources = {node: pick.source for node, pick in _picks(program) if pick.index is index}
    history = _frames_of(program, gathers, sources)
    if positions is None or positions.dim() != 1 or history is None:
        return None
    if index.op == "placeholder":
        return Miss(index, "the frame numbers are an input, chosen outside", "choose them inside the module")
    gathered = [source for source in sources.values() if is_camera_shaped(source)]
    cameras = gathered[0] if gathered else camera_input(program)
    if cameras is None:
        return Miss(index, "no input holds the cameras", 'name it: options={"roles": {"<input>": "camera"}}')
    coming = coming_frames(program, cameras, index)
    if isinstance(coming, Miss):
        return coming
    astray = contradicted(stated, coming, cameras)
    if astray is not None:
        return astray
    latents = next(iter(denoised(program)), None)
    world = stated.world(chunk=chunk_frames(stated, latents) if coming is None else coming.count)
    memory = _memory(positions.shape[0], world)
    if isinstance(memory, str):
        return Miss(index, memory, "gather min(history, memory) frames of a history whose frame axis is dynamic")
    world = dataclasses.replace(world, memory=memory)
    reason = _unfit(history, cameras, coming, world.chunk)
    if reason:
        return Miss(cameras, reason, "give the cameras of the history and of the coming chunk in one tensor")
    size = positions.shape[0].node.expr  # type: ignore[attr-defined]
    shown = _shown(program, gathers, size)
    if shown is not None:
        return shown
    return ContextGather(index, tuple(gathers), history, cameras, coming, size, world)


def counts_of(program: Program, size: sympy.Expr) -> list[fx.Node]:
    """Nodes that compute the number of context frames as a plain number."""
    return [
        node
        for node in program.calls()
        if isinstance(node.meta.get("val"), torch.SymInt) and size_of(node.meta["val"]) == size and node.users
    ]


def _shown(program: Program, gathers: list[fx.Node], size: sympy.Expr) -> Miss | None:
    """Where the caller would see how many frames were read: a result, or a write, whose size follows their number."""
    below = reached([*gathers, *counts_of(program, size)], lambda node: node.users)
    output = program.graph.output_node()
    if any(_follows(node, size) for node in output.all_input_nodes if node in below):
        why = "the module returns something for every context frame that it reads"
        return Miss(gathers[0], why, "choose the frames where what is made of them is read, or return the chunk alone")
    for write in filter(is_write, below):
        if any(_follows(node, size) for node in write.all_input_nodes if node in below and node is not write.args[0]):
            why = "the call writes something for every context frame that it reads into an input"
            return Miss(write, why, "choose the frames outside of the module")
    return None


def _follows(node: fx.Node, size: sympy.Expr) -> bool:
    """Whether a value is a number that depends on ``size``, or has such a size."""
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
    return any(isinstance(each, torch.SymInt) and each.node.expr.has(size) for each in sizes)


def _memory(size: int | torch.SymInt, world: WorldSpec) -> int | str:
    """The most frames that are gathered, or why their number cannot be decided."""
    if not isinstance(size, torch.SymInt):
        return f"{size} context frames are fixed in the captured graph"
    most, (least, _) = _largest(size.node.expr), bounds(size)
    if most is None:
        return f"the number of context frames, {size}, has no bound"
    if most < world.least_memory:
        return f"the model gathers at most {most} context frames; the rules need room for {world.least_memory}"
    if least is None or least > world.fewest:
        return f"the graph was captured for at least {least} context frames, and holds for no fewer"
    return most


def _frames_of(program: Program, gathers: list[fx.Node], sources: Mapping[fx.Node, fx.Node]) -> fx.Node | None:
    """The latents that are read along their frame axis, if any of ``gathers`` does that."""
    along_frames = {node for node, pick in _picks(program) if pick.axis == FRAMES}
    return latents_so_far(program, [sources[node] for node in gathers if node in along_frames])


def _largest(size: sympy.Expr) -> int | None:
    """The constant that bounds a size such as ``Min(20, s)``."""
    constants = [int(part) for part in size.args if part.is_Integer] if size.func.__name__ == "Min" else []
    return min(constants, default=None)


def _unfit(history: fx.Node, cameras: fx.Node, coming: Coming | None, chunk: int) -> str:
    """Why the sizes at capture do not fit, or nothing; they are checked again in every call."""
    latents, matrices = tensor_of(history), tensor_of(cameras)
    assert latents is not None and matrices is not None
    frames, poses = hint_of(latents.shape[FRAMES]), hint_of(matrices.shape[-3])
    if coming is None or coming.first is None:
        fits = poses == frames + chunk if coming is None else poses >= frames + chunk
        return "" if fits else f"the cameras do not cover the history and one chunk of {chunk} latent frames"
    first = hint_at(history, coming.first)
    told = f"the steps read the cameras of {coming}, which is frame {first}, and the history has {frames} frames"
    return "" if first == frames else told
