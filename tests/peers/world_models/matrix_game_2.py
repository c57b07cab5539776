"""Ours beside upstream's: ``python matrix_game_2.py CHECKOUT`` prints the largest difference, relative, as JSON.

The case of ``causal_wan`` drives upstream's unedited code with its own caches; the same loop then drives ours, which
writes to tensors of the same shapes. Weights are copied by their keys, all of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from causal_wan import CASES
from torch import Tensor

from lightint_compile.models.matrix_game_2 import (
    Caches,
    Kept,
    MatrixGame2Config,
    MatrixGame2Transformer,
    empty_caches,
    recent,
)
from lightint_compile.models.matrix_game_2.caches import slot_of

CONFIG = MatrixGame2Config(
    in_channels=8,
    out_channels=4,
    hidden_size=64,
    heads=2,
    depth=2,
    mlp_size=128,
    frequencies=32,
    action_blocks=2,
    action_heads=2,
    action_size=128,
    key_size=16,
)


class Ours:
    """Called as upstream's model is."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.model = MatrixGame2Transformer(CONFIG).eval().requires_grad_(False)
        self.model.load_state_dict(state)
        self.image, self.begun = empty_caches(CONFIG).image, -1

    def __call__(self, latent: Tensor, t: Tensor, *, current_start: int, **given: Any) -> Tensor:
        first = current_start // CONFIG.tokens_per_frame
        slot = slot_of(CONFIG, min(first, CONFIG.window))
        if first == self.begun:
            slot = slot._replace(dropped=0)
        seen = given["visual_context"] if self.begun < 0 else None
        self.begun = first
        kept = [
            [Kept(each["k"], each["v"]) for each in given[f"kv_cache{part}"]] for part in ("", "_mouse", "_keyboard")
        ]
        rows = [recent(CONFIG, given[name], first) for name in ("mouse_cond", "keyboard_cond")]
        frames = torch.arange(first, first + CONFIG.chunk)
        caches = Caches(*kept, self.image)
        return self.model(latent, t.float(), given["cond_concat"], seen, *rows, frames, caches, slot)


def main(checkout: str) -> dict[str, Any]:
    """Everything that the loop makes, caches of self-attention included."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = CASES["Matrix-Game 2"]
    model = case.build(Path(checkout))
    theirs = case.roll(model)
    mine = case.roll(Ours(model.state_dict()))
    largest = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(mine, theirs, strict=True))
    return {"difference": largest, "tensors": len(mine)}


if __name__ == "__main__":
    with torch.no_grad():
        print(json.dumps(main(*sys.argv[1:])))
