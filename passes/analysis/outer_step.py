"""A program that is one step of a denoising loop outside of it, and what the runtime must know to follow that loop.

It has a latent and a timestep, no loop of its own, and predicts something of the latent's shape. Roles are found in the
flat graph; in the root that outlining leaves, marks on the inputs say what they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.passes.analysis.cameras import camera_input
from lightint_compile.passes.analysis.coming_frames import coming_frames
from lightint_compile.passes.analysis.loop import DenoisingLoop
from lightint_compile.passes.analysis.roles import Role, Roles
from lightint_compile.passes.analysis.world import FRAMES
from lightint_compile.passes.ir.fake_values import Size, hinted_shape, size_of
from lightint_compile.passes.ir.frame_numbers import Coming
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.memory_sharing import alias_source
from lightint_compile.passes.ir.op_arguments import sizes_of
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.remarks import Miss

aten = torch.ops.aten

_MARK = "outer step"


@dataclass(frozen=True)
class OuterStep:
    """The inputs that change with the steps, and what the step predicts.

    Attributes:
        latent: [B, C, F, h, w].
        timestep: the noise level, in whatever scale: numbers that fall from step to step.
        cameras: [B, V, 4, 4] or [V, 4, 4], the last F of them those of the latent's frames.
        prediction: the one result that depends on the latent.
        frames: F.
    """

    latent: fx.Node
    timestep: fx.Node
    cameras: fx.Node
    prediction: fx.Node
    frames: int


def mark_outer_step(program: Program) -> None:
    """Write on the inputs of a flat program that it is a step, to be read when blocks are calls."""
    if program.fact(DenoisingLoop):
        return
    roles = program.fact(Roles)
    inputs = {program.input_of(node).path: node for node in program.placeholders()}
    found = {role: [inputs[path] for path in roles.paths(role)] for role in (Role.LATENT, Role.TIMESTEP)}
    if any(len(nodes) != 1 for nodes in found.values()):
        return
    (latent,), (timestep,) = found[Role.LATENT], found[Role.TIMESTEP]
    results = _results(program, latent)
    moved = len(results) == 1 and _moves(results[0], latent)
    latent.meta[_MARK] = "the latent moved on" if moved else "latent"
    timestep.meta[_MARK] = "timestep"
    cameras = camera_input(program)
    if cameras is not None and _are_last(coming_frames(program, cameras), sizes_of(cameras)[-3]):
        cameras.meta[_MARK] = "cameras"


def marked_outer_step(program: Program) -> OuterStep | Miss | None:
    """What :func:`mark_outer_step` wrote, in the graph that was made since; a miss where cameras are there in vain."""
    marks = {mark: node for node in program.placeholders() if (mark := node.meta.get(_MARK))}
    timestep, last, cameras = marks.pop("timestep", None), marks.pop("cameras", None), camera_input(program)
    if timestep is None or cameras is None:
        return None
    ((mark, latent),) = marks.items()
    results = _results(program, latent)
    if len(results) != 1:
        why = f"{len(results)} results depend on the latent: what a left-out step would have returned is not known"
        return Miss(latent, why, "return the prediction alone")
    if mark != "latent":
        why = f"{results[0].name} is the latent itself, moved on: a step that is left out would stand still"
        return Miss(results[0], why, "compile the module that predicts, without the scheduler")
    frames = _frames(latent, results[0])
    if frames is None:
        return Miss(latent, "the latent is no [B, C, F, h, w] with a fixed number of frames", "")
    if last is None and sizes_of(cameras)[-3] != frames:
        why = f"the step does not read the last {frames} of the cameras as those of the latent's frames"
        return Miss(cameras, why, "give a step the cameras of its own frames, behind those of its context")
    return OuterStep(latent, timestep, cameras, results[0], frames)


def _are_last(coming: Coming | Miss | None, cameras: Size) -> bool:
    """Whether a step reads the last ``cameras`` as those of its own frames."""
    return isinstance(coming, Coming) and coming.step == 1 and coming.is_last(cameras)


def _results(program: Program, latent: fx.Node) -> list[fx.Node]:
    """What is returned and depends on the latent."""
    below = reached([latent], lambda node: (user for user in node.users if user.op != "output"))
    leaves = pytree.tree_leaves(program.graph.output_node().args)
    return list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, fx.Node) and leaf in below))


def _frames(latent: fx.Node, prediction: fx.Node) -> int | None:
    """The frames of a latent and of a prediction that has its shape, as it was seen, but perhaps other channels."""
    given, made = tensor_of(latent), tensor_of(prediction)
    if given is None or made is None or given.dim() != 5 or made.dim() != 5 or not made.is_floating_point():
        return None
    sizes, others = hinted_shape(given), hinted_shape(made)
    frames = size_of(given.shape[FRAMES])
    alike = sizes[0] == others[0] and sizes[FRAMES:] == others[FRAMES:]
    return frames if alike and isinstance(frames, int) else None


def _moves(result: fx.Node, latent: fx.Node) -> bool:
    """Whether the latent comes through to a result element by element, as in a scheduler's update.

    Holding what the last step returned is then no estimate. A prediction of the clean latent that is blended with its
    input looks the same.
    """
    if not _passes_on(result):
        return False
    return latent in reached([result], lambda node: node.all_input_nodes if _passes_on(node) else ())


def _passes_on(node: fx.Node) -> bool:
    """Whether an operation keeps elements apart: arithmetic, a cast, a view."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or node.target in _CASTS or alias_source(node) is not None


_CASTS = frozenset((aten._to_copy.default, aten.clone.default))
