"""What the page is told, as JSON; pictures follow as PNG."""

from __future__ import annotations

import io
import math
from typing import Any

from torch import Tensor

from lightint_compile.models.pixels import as_bytes
from lightint_compile.play.opening import Played
from lightint_compile.play.walking import Steered, Walking
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.path_from_above import from_above


def hello(played: Played, walk: Walking) -> dict[str, Any]:
    """The model, and the place from above: rows of `1` for walls, by z and then x, or nothing."""
    spec, walls = played.model.spec, walk.place.walls
    return {
        "kind": "hello",
        "name": played.name,
        "model": str(played.model),
        "preset": played.preset,
        "device": str(played.device),
        "walls": None if walls is None else ["".join(str(int(cell)) for cell in row) for row in walls.tolist()],
        "steps": spec.denoising_steps,
        "memory": spec.memory,
    }


def chunk(walk: Walking, made: Steered, accelerated: bool) -> dict[str, Any]:
    """A chunk of the latent frames `made` [first, end), with their cameras from above."""
    spec, way, decision = walk.model.spec, walk.path, made.decision
    first, end = spec.frames(made.index), spec.frames(made.index + 1)
    path = from_above(walk.place.cameras(way)[first:])
    return {
        "kind": "chunk",
        "chunk": made.index,
        "made": [first, end],
        "milliseconds": made.milliseconds,
        "accelerated": accelerated,
        "decided": made.decided,
        "context": list(decision.context_frames),
        "reused": [step for step in decision.reused_steps if step not in decision.refused_steps],
        "says": _said(made, decision),
        "places": [list(each) for each in zip(path["x"], path["z"], path["heading"], strict=True)],
        "half_view": math.atan(0.5 / float(way.intrinsics[-1, 0, 0])),
        "pictures": len(made.frames),
    }


def _said(made: Steered, decision: Decision) -> str:
    if made.milliseconds is None:
        return "given: the camera stands still"
    if not made.decided:
        return f"the model by itself: {len(decision.context_frames)} context frames, every step computed"
    return str(decision).partition(": ")[2]


def png(frame: Tensor) -> bytes:
    """A frame [3, H, W] in [0, 1], without loss."""
    from PIL import Image

    pixels = as_bytes(frame).numpy()
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG", compress_level=1)
    return held.getvalue()
