"""What a program and its user say of the world: how many frames a chunk has, and by what its views are measured."""

from __future__ import annotations

import torch.fx as fx

from lightint_compile.passes.analysis.cameras import intrinsics_input
from lightint_compile.passes.ir.frame_numbers import Coming
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.remarks import Miss
from lightint_compile.passes.ir.world_spec import PUBLISHED, StatedWorld

FRAMES = 2
"""The frame axis of latents [B, C, F, h, w]."""


def chunk_frames(stated: StatedWorld, latents: fx.Node | None) -> int:
    """Latent frames of a chunk: as stated, else those of the ``latents`` that are denoised, else the published ones."""
    if stated.chunk_frames is not None:
        return stated.chunk_frames
    tensor = tensor_of(latents)
    frames = tensor.shape[FRAMES] if tensor is not None and tensor.dim() == 5 else None
    return frames if isinstance(frames, int) else PUBLISHED.chunk


def contradicted(stated: StatedWorld, coming: Coming | None, cameras: fx.Node) -> Miss | None:
    """The miss where the steps read the cameras of more or fewer frames than a chunk is stated to have."""
    if coming is None or stated.chunk_frames in (None, coming.count):
        return None
    why = f"a chunk is stated to have {stated.chunk_frames} frames, and the steps read the cameras of {coming.count}"
    return Miss(cameras, why, f'leave chunk_frames out, or state options={{"chunk_frames": {coming.count}}}')


def intrinsics_of(program: Program, stated: StatedWorld) -> fx.Node | None:
    """The input that says the field of view, unless it is stated."""
    return None if stated.fov is not None else intrinsics_input(program)
