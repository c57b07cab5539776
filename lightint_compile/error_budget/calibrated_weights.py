"""Which weights a calibration is for: modules of one class share compiled code, and weights can be loaded in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor

from lightint_compile.capture import is_buffer


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights among the arguments of a graph, as they were in one call.

    Attributes:
        first: held, so that no other tensor takes its place.
        state: of each, what changes when it is another tensor, lies elsewhere, or was written to.
    """

    first: Tensor | None
    state: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, args: Sequence[Any], positions: Sequence[int]) -> Weights:
        """Those at some positions of a call's arguments."""
        found = [args[position] for position in positions]
        return cls(found[0] if found else None, tuple(map(_state, found)))

    def are(self, other: Weights) -> bool:
        """Whether both are the same weights with nothing written to them in between."""
        return self.first is other.first and self.state == other.state


def weights_of(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> tuple[int, ...]:
    """The positions of the parameters among a graph's inputs; of the module's buffers where there are none."""
    parameters = tuple(place for place, value in enumerate(inputs) if isinstance(value, torch.nn.Parameter))
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    pairs = enumerate(zip(placeholders, inputs, strict=True))
    return parameters or tuple(place for place, (node, value) in pairs if is_buffer(node, value))


def _state(weight: Tensor) -> tuple[int, int, int]:
    """Buffers may be caches, which are written to: of them, which tensor it is."""
    place = weight.data_ptr() if type(weight) in (Tensor, torch.nn.Parameter) else 0
    counted = isinstance(weight, torch.nn.Parameter) and not weight.is_inference()
    return id(weight), place, weight._version if counted else 0
