"""A world model compiled on its smallest size, and rollouts of it: what is promised of one holds for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

import lightint_compile
from lightint_compile.compiled import CompiledGraph
from lightint_compile.models.registry import FAMILIES, family, world_model
from lightint_compile.models.world_model import ChunkResult, turn_and_back

WORLDS = [f"{name}:{next(iter(family(name).sizes))}" for name in FAMILIES]
"""The smallest size of every family that is built in."""


class Session:
    """A compiled chunk on a device, and rollouts along a turn to the left and back; its first ``warm`` chunks are done.

    Unless it is ``alone``, other sessions stay compiled.
    """

    def __init__(
        self,
        name: str,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        chunks: int = 4,
        depth: int = 0,
        warm: int = 3,
        alone: bool = True,
        **options: Any,
    ) -> None:
        if alone:
            torch._dynamo.reset()
        counters.clear()
        model = world_model(name)
        self.model, self.device = model.at_depth(depth or model.depth), torch.device(device)
        self.module = self.model.module(self.device, dtype)
        options = {"delegate": "eager", "strict": True, **options}
        self.compiled = torch.compile(self.module, backend="lightint", fullgraph=True, options=options)
        self.scene = self.model.scene(self.device, dtype)
        spec = self.model.spec
        self.path = self.model.camera_path(turn_and_back(spec, spec.frames(chunks)))
        for _ in islice(self.rollout(self._noted), warm):
            pass
        # Of this module alone: a world may compile what draws its frames.
        self.captured = len(CompiledGraph.of(self.compiled)) if warm else 0
        self.breaks = dict(counters["graph_break"])

    def _noted(self, *args: Any) -> Tensor:
        self._args = args
        result: Tensor = self.compiled(*args)
        return result

    def rollout(self, call: Callable[..., Tensor] | None = None, **more: Any) -> Iterator[ChunkResult]:
        """Chunk after chunk, by the compiled module unless ``call`` is given."""
        return self.model.rollout(call or self.compiled, self.scene, self.path, **more)

    def latents(self, **more: Any) -> list[Tensor]:
        """Those of every chunk of a rollout by a module that has forgotten everything."""
        lightint_compile.reset(self.compiled)
        return [result.latents for result in self.rollout(**more)]

    def inputs(self) -> dict[str, Any]:
        """Copies of the arguments of the last chunk that was warmed up, by name."""
        names = self.model.example_inputs(self.model.example_history, "meta")
        return {name: None if each is None else each.clone() for name, each in zip(names, self._args, strict=True)}

    def role(self, role: str) -> list[str]:
        """Inputs with this role."""
        return [name for name, each in self.model.roles.items() if each == role]

    @property
    def compilations(self) -> list[int]:
        """Of the regions of each graph."""
        return [graph.driver.compilations for graph in CompiledGraph.of(self.compiled) if graph.driver is not None]

    @property
    def planner(self) -> Any:
        """What decides in the latest rollout."""
        drivers = [graph.driver for graph in CompiledGraph.of(self.compiled)]
        return next(d.decisions._planners.latest for d in drivers if d is not None and d.decisions.made)
