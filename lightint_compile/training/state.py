"""What a training is made of, and how it is written down and taken up again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightint_compile.errors import CheckpointError
from lightint_compile.models.maze.codec import MazeCodec
from lightint_compile.models.maze.config import MazeSize
from lightint_compile.models.maze.weight_folder import card_of, load_part, unreadable
from lightint_compile.models.worldplay.blocks import DoubleBlock
from lightint_compile.models.worldplay.transformer import WorldPlayTransformer
from lightint_compile.read_back import of_type
from lightint_compile.training.plan import Plan

FILE = "checkpoint.pt"


@dataclass
class Progress:
    """Steps and seconds of every phase by its name, and how often the pool was renewed.

    `start` says which weights the training began with; empty where they were drawn.
    """

    steps: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    renewed: int = 0
    start: str = ""


class State:
    """Models, averages and optimisers of a training.

    `average` is the moving average of `transformer` over the steps of flow matching, `student_average` that of the
    distilled one. `own` is the past of the model's own in block 0 of the pool, None until there is any.
    """

    def __init__(self, size: MazeSize, plan: Plan, device: torch.device) -> None:
        self.size, self.plan, self.device = size, plan, device
        torch.manual_seed(plan.seed)
        self.codec = MazeCodec(size.codec).to(device)
        self.transformer = prepared(WorldPlayTransformer(size.transformer)).to(device)
        self.average = _copy(self.transformer, size, device)
        self.student = _copy(self.transformer, size, device)
        self.student_average = _copy(self.transformer, size, device)
        self.optimisers = {
            "codec": _optimiser(self.codec, plan.codec_rate, 0.0, device),
            "flow": _optimiser(self.transformer, plan.flow_rate, 0.01, device),
            "distil": _optimiser(self.student, plan.distil_rate, 0.0, device),
        }
        self.own: Tensor | None = None
        self.progress = Progress()

    def modules(self) -> dict[str, nn.Module]:
        """Everything with weights, by name."""
        names = ("codec", "transformer", "average", "student", "student_average")
        return {name: getattr(self, name) for name in names}

    def begin_with(self, folder: Path) -> None:
        """Begin with the weights of another training: of this size, or of one that has the same widths.

        A codec for which the plan has no time stays as it is there.

        Raises:
            CheckpointError: there are none, or the widths are others.
        """
        load_part(self.codec, folder, "codec", self.device)
        load_part(self.transformer, folder, "transformer", self.device)
        for each in (self.average, self.student, self.student_average):
            each.load_state_dict(self.transformer.state_dict())
        self.progress.start = _told(folder)
        if not self.plan.limit("codec").takes_time:
            self.progress.done.append("codec")

    def save(self, folder: Path) -> None:
        """Write the checkpoint; the old one stays whole until the new one is."""
        content = {
            "size": self.size.name,
            "seed": self.plan.seed,
            "modules": {name: each.state_dict() for name, each in self.modules().items()},
            "optimisers": {name: each.state_dict() for name, each in self.optimisers.items()},
            "own": self.own,
            "progress": vars(self.progress),
        }
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(content, folder / f"{FILE}.new")
        os.replace(folder / f"{FILE}.new", folder / FILE)

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote.

        Raises:
            CheckpointError: there is none, it cannot be read, or it is of another size or seed.
        """
        path = folder / FILE
        if not path.is_file():
            raise CheckpointError("There is nothing to resume.", where=str(path), fix="leave --resume out")
        try:
            content: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            mine, theirs = (self.size.name, self.plan.seed), (content["size"], content["seed"])
            if mine != theirs:
                why = f"it is of size and seed {theirs}, asked for are {mine}"
                raise CheckpointError("The checkpoint is of another training.", where=str(path), why=why)
            self._take(content)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError("The checkpoint cannot be read.", where=str(path), why=str(error)) from error

    def _take(self, content: Mapping[str, Any]) -> None:
        for name, each in self.modules().items():
            each.load_state_dict(content["modules"][name])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(content["optimisers"][name])
        self.own, self.progress = content["own"], of_type(Progress, content["progress"])
        if self.progress.start and "codec" not in self.progress.steps:
            self.plan = self.plan.without_codec()


def _told(folder: Path) -> str:
    """What the card of a folder of weights says: the model, and the steps of each phase."""
    facts = card_of(folder)
    if facts is None:
        return "weights without a card"
    try:
        return f"{facts['model']}, " + ", ".join(f"{steps} steps of {name}" for name, steps in facts["steps"].items())
    except (KeyError, AttributeError, TypeError) as error:
        raise unreadable(folder, error) from error


def prepared(transformer: WorldPlayTransformer) -> WorldPlayTransformer:
    """Gates and the last linear at zero, so that every block begins as the identity (Peebles and Xie, 2023).

    The camera branch, which the released code begins at zero, begins as any other linear: the gate is zero already.
    """
    for each in transformer.double_blocks:
        block = cast(DoubleBlock, each)
        _zero(block.img_mod.linear)
        _zero(block.txt_mod.linear)
        block.img_attn_prope_proj.reset_parameters()
    _zero(transformer.final_layer.linear)
    return transformer


def _zero(linear: nn.Module) -> None:
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)


def _copy(transformer: WorldPlayTransformer, size: MazeSize, device: torch.device) -> WorldPlayTransformer:
    # Averages keep requires_grad although nothing trains them: one compiled function then serves all.
    made = WorldPlayTransformer(size.transformer).to(device)
    made.load_state_dict(transformer.state_dict())
    return made


def _optimiser(module: nn.Module, rate: float, decay: float, device: torch.device) -> torch.optim.AdamW:
    parameters = list(module.parameters())
    fused = device.type == "cuda"
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=decay, fused=fused)


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, step: int, decay: float) -> None:
    """Move a moving average towards a module; early steps are forgotten faster."""
    keep = min(decay, (1.0 + step) / (10.0 + step))
    mine, theirs = [each.detach() for each in average.parameters()], [each.detach() for each in module.parameters()]
    torch._foreach_lerp_(mine, theirs, 1.0 - keep)
