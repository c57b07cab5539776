"""Which inputs are the cameras and the latents so far, by role, shape and name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch.fx as fx
from lightint_compile.passes.program import InputKind, Program, ProgramInput, tensor_of

_CAMERA_NAMES = ("extrinsic", "viewmat", "view_mat", "w2c", "pose", "camera", "cam")


def is_camera_shaped(node: fx.Node) -> bool:
    """Whether a value is [..., frames, 4, 4] and of floating point."""
    tensor = tensor_of(node)
    if tensor is None or not tensor.is_floating_point() or tensor.dim() not in (3, 4):
        return False
    return all(isinstance(size, int) and size == 4 for size in tensor.shape[-2:])


def camera_input(program: Program) -> fx.Node | None:
    """The input that holds the cameras: the one whose role was stated, else one of the right shape, by its name.

    ``None`` when there is none, or when several look alike and no name tells them apart.
    """
    stated = [node for entry, node in _tensors(program) if program.roles.get(entry.path) == "camera"]
    if stated:
        return stated[0]
    shaped = [(entry, node) for entry, node in _tensors(program) if is_camera_shaped(node)]
    named = [node for entry, node in shaped if any(name in entry.path.lower() for name in _CAMERA_NAMES)]
    nodes = named or [node for _, node in shaped]
    return nodes[0] if len(nodes) == 1 else None


def latents_so_far(program: Program, nodes: Iterable[fx.Node]) -> fx.Node | None:
    """The one of ``nodes`` that is [B, C, F, h, w]; the input with the stated role where there is one."""
    stated = [node for entry, node in _tensors(program) if program.roles.get(entry.path) == "context"]
    video = [node for node in nodes if (tensor := tensor_of(node)) is not None and tensor.dim() == 5]
    return next(iter([*(node for node in stated if node in video), *video]), None)


def _tensors(program: Program) -> Iterator[tuple[ProgramInput, fx.Node]]:
    for entry, node in zip(program.inputs, program.placeholders(), strict=True):
        if entry.kind is InputKind.TENSOR and tensor_of(node) is not None:
            yield entry, node
