"""What a training leaves: weights as safetensors, and a card that says how they were made."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightint_compile.errors import InputError
from lightint_compile.models.maze.weight_folder import CARD, PARTS, card_of, has_weights, rest_of
from lightint_compile.training.state import State


def write_artifact(folder: Path, state: State, transformer: nn.Module, facts: dict[str, Any]) -> Path:
    """Write `transformer/` and `codec/` in half precision, and `card.json`, into a folder; returns it."""
    for name, module in {"transformer": transformer, "codec": state.codec}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        tensors = {
            key: (each.detach().half() if each.is_floating_point() else each).contiguous().cpu()
            for key, each in module.state_dict().items()
        }
        save_file(tensors, folder / name / "model.safetensors")
    text = json.dumps({**_facts(state), **facts}, indent=1)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")
    return folder


def put_over(weights: Path, rest: Path, into: Path) -> Path:
    """Write what `weights` has of its own to a folder beside `rest`, which has the others to the bit; returns it.

    Raises:
        InputError: one of the first two is no whole folder of weights, or the last is not beside the second.
    """
    for each in (weights, rest):
        if not has_weights(each) or rest_of(each) is not None:
            raise InputError(
                "this is no whole folder of weights", where=str(each), fix="name one that a training wrote"
            )
    if into.parent.resolve() != rest.parent.resolve() or into.resolve() in (rest.resolve(), weights.resolve()):
        why, fix = f"{rest} must be found from there", f"name a new folder in {rest.parent}"
        raise InputError(f"weights cannot be put into {into}", where=str(into), why=why, fix=fix)
    for part in PARTS:
        mine, theirs = (load_file(each / part / "model.safetensors") for each in (weights, rest))
        own = {key: value for key, value in mine.items() if not _same(value, theirs.get(key))}
        if own:
            (into / part).mkdir(parents=True, exist_ok=True)
            save_file(own, into / part / "model.safetensors")
    card = {**(card_of(weights) or {}), "rest": rest.name}
    (into / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return into


def _same(value: Tensor, other: Tensor | None) -> bool:
    return other is not None and value.dtype == other.dtype and torch.equal(value, other)


def _facts(state: State) -> dict[str, Any]:
    device = torch.cuda.get_device_name(state.device) if state.device.type == "cuda" else platform.machine()
    return {
        "model": f"maze:{state.size.name}",
        "data": "mazes rendered from seeds of 2^20 and above; those below are for judging",
        "parameters": {name: _count(getattr(state, name)) for name in ("transformer", "codec")},
        "seed": state.plan.seed,
        **({"start": state.progress.start} if state.progress.start else {}),
        "steps": state.progress.steps,
        "seconds": {name: round(value, 1) for name, value in state.progress.seconds.items()},
        "device": device,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def _count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())
