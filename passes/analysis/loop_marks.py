"""Marks by which the denoising loop is found after outlining: carried values, predictions, and their numbers.

The loop is found in the flat graph, where every scheduler operation is a node. In the root that outlining leaves, a
step is a handful of calls; the values at its borders carry these marks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.fx as fx

from lightint_compile.passes.analysis.loop import DenoisingLoop

_MARK = "denoising"


@dataclass(frozen=True)
class MarkedStep:
    """One step of the loop in a root graph.

    Attributes:
        carried_in: the latent that the step starts from.
        predictions: what the network makes of it.
        scalars: the Python numbers of the scheduler's update; of an Euler step, the difference of two sigmas.
    """

    carried_in: fx.Node
    predictions: tuple[fx.Node, ...]
    scalars: tuple[float, ...]


def borders_of(loop: DenoisingLoop) -> Iterator[fx.Node]:
    """The values that must not disappear inside a region: latents between steps, and predictions."""
    yield from loop.carried
    for step in loop.steps:
        yield from step.predictions


def mark_loop(loop: DenoisingLoop) -> None:
    """Write the marks on the loop's values; copies of a node carry them on."""
    for number, step in enumerate(loop.steps):
        _add(step.carried_in, ("carried", number, step.scalars))
        for place, prediction in enumerate(step.predictions):
            _add(prediction, ("prediction", number, place))


def _add(node: fx.Node, mark: tuple[str, int, Any]) -> None:
    known = node.meta.get(_MARK, ())
    if mark not in known:
        node.meta[_MARK] = (*known, mark)


def marked_steps(graph: fx.Graph) -> tuple[MarkedStep, ...]:
    """The loop's steps as far as their values are nodes of ``graph``; empty when one of them is not."""
    carried: dict[int, fx.Node] = {}
    scalars: dict[int, tuple[float, ...]] = {}
    predicted: dict[int, dict[int, fx.Node]] = defaultdict(dict)
    for node in graph.nodes:
        for kind, number, detail in node.meta.get(_MARK, ()):
            if kind == "carried":
                carried[number], scalars[number] = node, detail
            else:
                predicted[number][detail] = node
    if set(carried) != set(predicted) or set(carried) != set(range(len(carried))):
        return ()
    places = len(predicted.get(0, ()))
    if any(sorted(found) != list(range(places)) for found in predicted.values()):
        return ()
    return tuple(
        MarkedStep(carried[number], tuple(node for _, node in sorted(predicted[number].items())), scalars[number])
        for number in sorted(carried)
    )
