"""What a training leaves: weights as safetensors, and a card that says how they were made."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

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
    (folder / "card.json").write_text(text + "\n", encoding="utf-8")
    return folder


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
