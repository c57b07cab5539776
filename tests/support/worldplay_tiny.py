"""The tiny WorldPlay chunk with random weights in float64, traced once a session with a symbolic history."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from differential import trace
from torch import nn

from lightint_compile.models.worldplay import WorldPlayChunk, WorldPlayConfig, example_inputs, fill_random
from lightint_compile.passes.ir.program import Program

CONFIG = WorldPlayConfig.tiny()
NAMES = ("noise", "history", "extrinsics", "intrinsics", "actions", "image", "text", "glyphs", "vision")


@cache
def module() -> nn.Module:
    """The module, in eval mode without gradients."""
    return fill_random(WorldPlayChunk(CONFIG)).double().eval().requires_grad_(False)


def inputs(history: int, seed: int = 0) -> dict[str, Any]:
    """Arguments by name for a chunk after ``history`` latent frames."""
    return dict(zip(NAMES, example_inputs(CONFIG, history, dtype=torch.float64, seed=seed)[0], strict=True))


@cache
def program() -> Program:
    """The program; take a ``snapshot()`` before editing it (``differential.rewritten`` does)."""
    return trace(module(), inputs(8), dynamic={"history": 2})
