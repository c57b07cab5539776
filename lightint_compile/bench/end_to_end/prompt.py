"""The text of a rollout, encoded before its first chunk."""

from __future__ import annotations

from typing import Any

import torch

from lightint_compile.errors import InputError
from lightint_compile.models.world_model import Prompted, PromptEncoder, WorldModel


def prompt_encoder(model: WorldModel, name: str, scene: Any, device: torch.device, dtype: torch.dtype) -> PromptEncoder:
    """What encodes the prompt of a scene.

    Raises:
        InputError: the model has no text encoder, or a package that it needs is not installed.
    """
    if not isinstance(model, Prompted):
        why, fix = f"{type(model).__name__} has no prompt_encoder", "leave --text out"
        raise InputError(f"nothing encodes a text for {name}", where="--text", why=why, fix=fix)
    return model.prompt_encoder(scene, device, dtype)
