"""Which inputs are the cameras and the latents so far, by role, shape and name."""

from __future__ import annotations

from collections.abc import Iterable

import torch.fx as fx

from lightint_compile.passes.analysis.roles import Role, Roles
from lightint_compile.passes.analysis.stated_inputs import by_path
from lightint_compile.passes.ir.program import Program, tensor_of

_CAMERA_NAMES = ("extrinsic", "viewmat", "view_mat", "w2c", "pose", "camera", "cam")


def is_camera_shaped(node: fx.Node) -> bool:
    """Whether a value is [..., frames, 4, 4] and of floating point."""
    tensor = tensor_of(node)
    if tensor is None or not tensor.is_floating_point() or tensor.dim() not in (3, 4):
        return False
    return all(isinstance(size, int) and size == 4 for size in tensor.shape[-2:])


def camera_input(program: Program) -> fx.Node | None:
    """The input that holds the cameras: the one stated to, else the one that looks like it, by name if there are more.

    ``None`` when there is none, or when several qualify and no name distinguishes them.
    """
    roles = program.fact(Roles)
    inputs = {program.input_of(node).path: node for node in program.placeholders()}
    found = {path: inputs[path] for path in roles.paths(Role.CAMERA)}
    stated = [node for path, node in found.items() if roles.evidence[path].stated]
    if stated:
        return stated[0]
    shaped = {path: node for path, node in found.items() if is_camera_shaped(node)}
    named = [node for path, node in shaped.items() if any(name in path.lower() for name in _CAMERA_NAMES)]
    nodes = named or list(shaped.values())
    return nodes[0] if len(nodes) == 1 else None


def intrinsics_input(program: Program) -> fx.Node | None:
    """The input with the focal lengths of the cameras; ``None`` when there is none, or more than one."""
    roles = program.fact(Roles)
    inputs = {program.input_of(node).path: node for node in program.placeholders()}
    found = [path for path in roles.paths(Role.INTRINSICS) if tensor_of(inputs[path]) is not None]
    stated = [path for path in found if roles.evidence[path].stated]
    chosen = stated or found
    return inputs[chosen[0]] if len(chosen) == 1 else None


def latents_so_far(program: Program, nodes: Iterable[fx.Node]) -> fx.Node | None:
    """The one of ``nodes`` that is [B, C, F, h, w]; an input stated to be context before any other."""
    video = [node for node in nodes if (tensor := tensor_of(node)) is not None and tensor.dim() == 5]
    stated = [path for path, role in by_path(program, program.roles).items() if role == Role.CONTEXT]
    named = [node for node in video if node.op == "placeholder" and program.input_of(node).path in stated]
    return next(iter([*named, *video]), None)
